"""Training sparse dictionaries: one step engine for ReLU, TopK, BatchTopK and JumpReLU codes.

    x' = x - b_dec,  h = x' W_enc + b_enc,  f = the active part of h,  y = f W_dec + b_dec
    loss = mean_n ( |y - x|^2 + penalty(f) )

| activation | active part | penalty | source |
| --- | --- | --- | --- |
| relu | h > 0 | l1 * sum f | Bricken et al. 2023 |
| topk | the k largest h > 0 of each row | none | Gao et al. 2024, eq. 2 |
| batchtopk | N k largest h > 0 of the batch; later h > the mean cut | none | Bussmann et al. 2024 |
| jumprelu | h > threshold | l0 * number active, straight-through, rectangle kernel | Rajamanoharan et al. 2024 |

Only the encoder product is dense. Everything behind it, forward and backward, runs on the active entries alone, and
the gradients equal autograd's. Decoder rows keep unit length: their gradient is projected and the rows renormalised
after each step. Features silent for `dead_after` rows are drawn anew from inputs that are badly reconstructed.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.artifacts.dictionary import Dictionary
from interneuron.core.errors import InputError, ShapeError, need
from interneuron.core.seeds import generator

Codes = Literal["relu", "topk", "batchtopk", "jumprelu"]


@dataclasses.dataclass(frozen=True)
class SparseCoding:
    """What to train.

    n_features  F           k      active features a row (topk, batchtopk)
    l1          weight of sum f (relu)              l0     weight of the number active (jumprelu)
    lr          Adam's, decayed linearly over the last fifth of the steps
    bandwidth   width of the straight-through kernel (jumprelu), in units of the standardised input
    dead_after  rows a feature may stay silent before it is drawn anew; 0 never
    """

    n_features: int
    activation: Codes = "topk"
    k: int = 32
    l1: float = 0.0
    l0: float = 0.0
    lr: float = 1e-3
    batch_size: int = 4096
    steps: int = 1000
    seed: int = 0
    bandwidth: float = 0.05
    dead_after: int = 200_000

    def __post_init__(self) -> None:
        unused = {"l1": self.activation != "relu", "l0": self.activation != "jumprelu"}
        for name, ignored in unused.items():
            if ignored and getattr(self, name):
                raise InputError(f"{name}={getattr(self, name)} would be ignored with activation={self.activation!r}.")
        if self.activation in ("topk", "batchtopk") and not 0 < self.k <= self.n_features:
            raise InputError(f"k={self.k}: expected 1..{self.n_features} active features for {self.activation}.")


class SparseTrainer:
    """The parameters and one optimiser step. Inputs are divided by their root mean square, which the result undoes.

    mean, rms   of the data; the decoder bias starts at the mean
    """

    def __init__(self, config: SparseCoding, mean: Float[Tensor, " D"], rms: float) -> None:
        self.config = config
        d, f = mean.shape[0], config.n_features
        rng = generator(config.seed)
        decoder = torch.randn(f, d, generator=rng)
        decoder /= decoder.norm(dim=1, keepdim=True)
        need("numba", extra="fast")
        self._kernels = importlib.import_module("interneuron.parts.sparse_kernels")
        self.rms = rms
        self.encoder = decoder.clone()  # [F D]: rows, so that a feature's gradient is contiguous
        self.encoder_bias = torch.zeros(f)
        self.decoder = decoder
        self.decoder_bias = mean / rms
        self.log_threshold = torch.full((f,), math.log(0.1)) if config.activation == "jumprelu" else None
        self.batch_threshold = torch.zeros(())
        named = [self.encoder, self.encoder_bias, self.decoder, self.decoder_bias]
        self.parameters = [*named, *([self.log_threshold] if self.log_threshold is not None else [])]
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.lr, betas=(0.9, 0.999), fused=True)
        self.silent = torch.zeros(f, dtype=torch.long)
        self._rng = rng
        self._buffers: dict[str, Tensor] = {}

    def _buffer(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory kept from step to step: fresh memory costs several times as much as warm."""
        size = math.prod(shape)
        held = self._buffers.get(name)
        if held is None or held.numel() < size:
            held = self._buffers[name] = torch.empty(size, dtype=dtype)
        return held[:size].view(shape)

    @torch.no_grad()
    def step(self, x: Float[Tensor, "B D"]) -> dict[str, float]:
        """One optimiser step on a batch in the units of the data. Returns the fraction of variance unexplained and l0.

        Raises ShapeError when the width differs from the data the trainer was made for.
        """
        if x.shape[1] != self.decoder.shape[1]:
            raise ShapeError(f"the batch has width {x.shape[1]}, the dictionary {self.decoder.shape[1]}: same site?")
        b = x.shape[0]
        x = torch.mul(x, 1.0 / self.rms, out=self._buffer("x", *x.shape))
        centred = torch.sub(x, self.decoder_bias, out=self._buffer("centred", *x.shape))
        pre = torch.addmm(
            self.encoder_bias, centred, self.encoder.T, out=self._buffer("pre", b, self.config.n_features)
        )
        ptr, index, value = self._active(pre)
        err = self._buffer("err", *x.shape)
        grad = self._buffer("grad", len(value))
        self._gradients(x, centred, ptr, index, value, err, grad)
        if self.log_threshold is not None:
            self._threshold_gradient(pre, err)
        self._finish(index, b)
        total = x.var(0, unbiased=False).sum()
        return {"fvu": float(err.square().sum() / b / total), "l0": len(value) / b}

    def _active(self, pre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The active entries of the code in compressed rows: ptr, feature index, value."""
        c, b = self.config, pre.shape[0]
        if c.activation == "topk":
            value, index = pre.topk(c.k, dim=1, sorted=False)
            ptr = torch.arange(0, b * c.k + 1, c.k)
            return ptr, index.reshape(-1), value.reshape(-1).clamp_(min=0)
        if c.activation == "batchtopk":
            cut = pre.reshape(-1).kthvalue(pre.numel() - b * c.k).values.clamp(min=0)
            self.batch_threshold.lerp_(cut, 0.01 if bool(self.batch_threshold) else 1.0)
            keep = pre > cut
        elif self.log_threshold is not None:
            keep = pre > self.log_threshold.exp()
        else:
            keep = pre > 0
        index = keep.nonzero()[:, 1]
        ptr = torch.zeros(b + 1, dtype=torch.long)
        torch.cumsum(keep.sum(1), 0, out=ptr[1:])
        return ptr, index, pre[keep]

    def _gradients(
        self, x: Tensor, centred: Tensor, ptr: Tensor, index: Tensor, value: Tensor, err: Tensor, grad: Tensor
    ) -> None:
        k, b = self._kernels, x.shape[0]
        k.use_threads(torch.get_num_threads())
        scale = np.float32(2.0 / b)
        rows = (ptr.numpy(), index.numpy(), value.numpy())
        k.residual(*rows, self.decoder.numpy(), self.decoder_bias.numpy(), x.numpy(), err.numpy())
        k.value_gradient(rows[0], rows[1], self.decoder.numpy(), err.numpy(), scale, grad.numpy())
        grad += self.config.l1 / b
        grad.masked_fill_(value <= 0, 0.0)
        n = len(value)
        row, place = (self._buffer(name, n, dtype=torch.long).numpy() for name in ("row", "place"))
        column_ptr = self._buffer("column_ptr", self.config.n_features + 1, dtype=torch.long).numpy()
        k.transpose(rows[0], rows[1], column_ptr, row, place)
        assert self.encoder.grad is not None and self.encoder_bias.grad is not None
        assert self.decoder.grad is not None and self.decoder_bias.grad is not None
        k.weight_gradient(
            column_ptr, row, place, rows[2], grad.numpy(), centred.numpy(), err.numpy(), scale,
            self.decoder.grad.numpy(), self.encoder.grad.numpy(), self.encoder_bias.grad.numpy(),
        )  # fmt: skip
        bias_grad = err.sum(0) * (2.0 / b) - self.encoder.T @ self.encoder_bias.grad
        self.decoder_bias.grad.copy_(bias_grad)

    def _threshold_gradient(self, pre: Tensor, err: Tensor) -> None:
        """Straight-through gradient of the thresholds: -(theta dL/df + l0) K((h - theta)/eps) / eps, times theta."""
        assert self.log_threshold is not None and self.log_threshold.grad is not None
        theta, eps, b = self.log_threshold.exp(), self.config.bandwidth, pre.shape[0]
        rows, columns = ((pre - theta).abs() < eps / 2).nonzero(as_tuple=True)
        d_value = (err[rows] * self.decoder[columns]).sum(1) * (2.0 / b)
        slope = -(theta[columns] * d_value + self.config.l0 / b) / eps * theta[columns]
        self.log_threshold.grad.zero_().index_add_(0, columns, slope)

    def _finish(self, index: Tensor, rows: int) -> None:
        grad = self.decoder.grad
        assert grad is not None
        grad -= (grad * self.decoder).sum(1, keepdim=True) * self.decoder
        self.optimizer.step()
        self.decoder /= self.decoder.norm(dim=1, keepdim=True)
        self.silent += rows
        self.silent[index] = 0

    @torch.no_grad()
    def revive(self, x: Float[Tensor, "B D"]) -> int:
        """Draw dead features anew, towards inputs chosen with probability proportional to their squared loss."""
        dead = (self.silent > self.config.dead_after).nonzero().flatten() if self.config.dead_after else []
        if len(dead) == 0:
            return 0
        found = self.dictionary()
        loss = (x - found.reconstruct(x)).square().sum(1).double()
        chosen = torch.multinomial(loss + 1e-12, len(dead), replacement=True, generator=self._rng)
        rows = x[chosen] / self.rms - self.decoder_bias
        rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-8)
        self.decoder[dead] = rows
        self.encoder[dead] = rows * 0.2
        self.encoder_bias[dead] = 0
        for parameter in (self.encoder, self.encoder_bias, self.decoder):
            state = self.optimizer.state[parameter]
            for name in ("exp_avg", "exp_avg_sq"):
                state[name][dead] = 0
        self.silent[dead] = 0
        return len(dead)

    def dictionary(self, **facts: Any) -> Dictionary:
        """The dictionary learned so far, for activations in their own units."""
        kind: str = self.config.activation
        threshold = None
        if kind == "batchtopk":
            kind, threshold = "jumprelu", self.batch_threshold.expand(self.config.n_features).clone()
        elif self.log_threshold is not None:
            threshold = self.log_threshold.exp()
        return Dictionary(
            encoder=self.encoder.T.contiguous(),
            decoder=self.decoder.clone(),
            encoder_bias=self.encoder_bias.clone(),
            decoder_bias=self.decoder_bias.clone(),
            activation=kind,
            k=self.config.k if kind == "topk" else 0,
            threshold=threshold,
            center=True,
            scale=1.0 / self.rms,
            **facts,
        )


def train_dictionary(
    data: Float[Tensor, "N D"] | Iterable[Tensor], config: SparseCoding, **facts: Any
) -> tuple[Dictionary, list[dict[str, float]]]:
    """Train a dictionary on rows of activations, or on batches of them (a Store's `batches`, say).

    facts: fields of the artifact, such as site= and fingerprint=. Returns the dictionary and the log of the steps.
    Raises InputError when the batches end before `config.steps`.
    """
    from interneuron.core.progress import track

    batches = _batches(data, config) if isinstance(data, Tensor) else iter(data)
    first = next(batches, None)
    if first is None:
        raise InputError("train_dictionary was given no rows: pass a tensor [N D] or an iterator of batches.")
    mean = first.mean(0)
    trainer = SparseTrainer(config, mean, float((first - mean).square().mean().sqrt()))
    log: list[dict[str, float]] = []
    x: Tensor = first
    for step in track(range(config.steps), label="dictionary", unit="step"):
        left = (config.steps - step) / max(1, config.steps // 5)
        trainer.optimizer.param_groups[0]["lr"] = config.lr * min(1.0, left, (step + 1) / 50)
        log.append(trainer.step(x.float()))
        if step % 250 == 249 and step < config.steps * 0.7:
            trainer.revive(x.float())
        if step + 1 < config.steps:
            following = next(batches, None)
            if following is None:
                raise InputError(f"the data ended after {step + 1} batches of {config.steps} steps: repeat it.")
            x = following
    fitted = {"config": dataclasses.asdict(config), "fvu": log[-1]["fvu"], "l0": log[-1]["l0"]}
    return trainer.dictionary(fitted=fitted, **facts), log


def _batches(x: Tensor, config: SparseCoding) -> Iterator[Tensor]:
    """Shuffled batches without end."""
    rng = generator(config.seed + 1)
    size = min(config.batch_size, len(x))
    while len(x):
        order = torch.randperm(len(x), generator=rng)
        for start in range(0, len(x) - size + 1, size):
            yield x[order[start : start + size]]
