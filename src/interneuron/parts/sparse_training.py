"""Training sparse dictionaries: one step engine for ReLU, TopK, BatchTopK and JumpReLU codes.

    x' = x - b_dec,  h = x' W_enc + b_enc,  f = the active part of h,  y = f W_dec + b_dec
    loss = mean_n ( |y - x|^2 + penalty(f) )

| activation | active part | penalty | source |
| --- | --- | --- | --- |
| relu | h > 0 | l1 * sum f | Bricken et al. 2023 |
| topk | the k largest h > 0 of each row | none | Gao et al. 2024, eq. 2 |
| batchtopk | N k largest h > 0 of the batch; later h > the mean cut | none | Bussmann et al. 2024 |
| jumprelu | h > threshold | l0 * number active, straight-through, rectangle kernel | Rajamanoharan et al. 2024 |

Only the encoder product is dense; for top-k codes, CPUs that are faster in bfloat16 halve it (`sparse_preselect`).
Everything behind it, forward and backward, runs on the active entries alone, and the gradients equal autograd's.
Decoder rows keep unit length: their gradient is projected and the rows renormalised after each step. Features silent
for `dead_after` rows are drawn anew from inputs that are badly reconstructed, or kept alive by an auxiliary loss
(`aux_k`). Adam runs in the same pass over the memory as projection and renormalisation.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.artifacts.dictionary import Dictionary
from interneuron.core.errors import InputError, ShapeError, TrainingError, need
from interneuron.core.seeds import generator

Codes = Literal["relu", "topk", "batchtopk", "jumprelu"]


@dataclasses.dataclass(frozen=True)
class SparseCoding:
    """What to train.

    n_features  F           k      active features a row (topk, batchtopk)
    l1          weight of sum f (relu)              l0     weight of the number active (jumprelu); both grow over the
                first tenth of the steps
    lr          Adam's, decayed linearly over the last fifth of the steps; beta2 its second decay rate
    bandwidth   width of the straight-through kernel (jumprelu), in units of the standardised input
    dead_after  rows a feature may stay silent before it counts as dead; 0 never
    aux_k       0: dead features are drawn anew. Else they stay, and the aux_k most active of them learn to reconstruct
                what the others leave, at the weight `aux` (Gao et al. 2024, appendix A.2)
    bias        False: the encoder bias stays 0
    """

    n_features: int
    activation: Codes = "topk"
    k: int = 32
    l1: float = 0.0
    l0: float = 0.0
    lr: float = 1e-3
    beta2: float = 0.999
    batch_size: int = 4096
    steps: int = 1000
    seed: int = 0
    bandwidth: float = 0.05
    dead_after: int = 200_000
    aux_k: int = 0
    aux: float = 1 / 32
    bias: bool = True

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
    weight      of what a derived trainer adds to the selection or to the loss

    A method with another selection or another penalty derives from this class and overrides `select` or `penalise`;
    `functools.partial(Derived, weight=...)` is a trainer for `train_dictionary`.
    """

    def __init__(self, config: SparseCoding, mean: Float[Tensor, " D"], rms: float, weight: float = 0.0) -> None:
        self.config, self.weight = config, weight
        d, f = mean.shape[0], config.n_features
        rng = generator(config.seed, "dictionary")
        decoder = torch.randn(f, d, generator=rng)
        decoder /= decoder.norm(dim=1, keepdim=True)
        need("numba", extra="fast")
        self.kernels = importlib.import_module("interneuron.parts.sparse_kernels")
        self.selection = importlib.import_module("interneuron.parts.sparse_selection")
        self.rms = rms
        self.lr, self.penalty, self.steps_done = config.lr, config.l1 + config.l0, 0
        self.encoder = decoder.clone()  # [F D]: rows, so that a feature's gradient is contiguous
        self.encoder_bias = torch.zeros(f)
        self.decoder = decoder
        self.decoder_bias = mean.float() / rms
        self.log_threshold = torch.full((f,), math.log(0.1)) if config.activation == "jumprelu" else None
        self.batch_threshold = torch.zeros(())
        named = [self.encoder, self.encoder_bias, self.decoder, self.decoder_bias]
        self.parameters = [*named, *([self.log_threshold] if self.log_threshold is not None else [])]
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.silent = torch.zeros(f, dtype=torch.long)
        self._rng = rng
        self._buffers: dict[str, Tensor] = {}
        self.preselection: Any = None  # of top-k codes by their bfloat16 scores, where that is faster
        if config.activation == "topk" and type(self).select is SparseTrainer.select:
            preselect = importlib.import_module("interneuron.parts.sparse_preselect")
            if preselect.worthwhile(d, f, config.k):
                self.preselection = preselect.Preselection(config.k, self.buffer)

    def buffer(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory kept from step to step: fresh memory costs several times as much as warm."""
        size = math.prod(shape)
        held = self._buffers.get(name)
        if held is None or held.numel() < size:
            held = self._buffers[name] = torch.empty(size, dtype=dtype)
        return held[:size].view(shape)

    @torch.no_grad()
    def step(self, x: Float[Tensor, "B D"], guide: Tensor | None = None) -> dict[str, float]:
        """One optimiser step on a batch in the units of the data.

        guide  what the selection of a derived trainer needs beside x, row by row
        Returns `fvu`, the mean squared error over the variance of the data, and `l0`.

        Raises ShapeError when the width differs from the data the trainer was made for, TrainingError for NaN.
        """
        if x.shape[1] != self.decoder.shape[1]:
            raise ShapeError(f"the batch has width {x.shape[1]}, the dictionary {self.decoder.shape[1]}: same site?")
        b, d = x.shape
        centred = torch.sub(
            torch.mul(x, 1.0 / self.rms, out=self.buffer("x", b, d)), self.decoder_bias, out=self.buffer("x", b, d)
        )
        pre, (ptr, index, value) = self._active(centred, guide)
        err = self.buffer("err", b, d)
        loss = float(self._gradients(centred, ptr, index, value, err).double().mean())
        if not math.isfinite(loss):
            raise TrainingError(
                f"the reconstruction error is {loss} after {self.steps_done} steps of training: expected a finite "
                "number. Look for NaN or infinity in the activations, or lower lr."
            )
        if self.log_threshold is not None and pre is not None:
            self._threshold_gradient(pre, err)
        if self.config.aux_k:
            self._revive_by_loss(pre, centred, err)
        self._update(index, b)
        return {"fvu": loss / d, "l0": len(value) / b}

    def _active(self, centred: Tensor, guide: Tensor | None) -> tuple[Tensor | None, tuple[Tensor, Tensor, Tensor]]:
        """All scores, or None where preselection found the active entries without them; those entries."""
        b, c = len(centred), self.config
        if self.preselection is not None:
            index, value = self.buffer("index", b, c.k, dtype=torch.long), self.buffer("value", b, c.k)
            if self.preselection.top(centred, self.encoder, self.encoder_bias, index, value):
                return None, (torch.arange(0, b * c.k + 1, c.k), index.view(-1), value.view(-1))
        pre = torch.addmm(self.encoder_bias, centred, self.encoder.T, out=self.buffer("pre", b, c.n_features))
        return pre, self.select(pre, centred, guide)

    def select(self, pre: Tensor, centred: Tensor, guide: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The active entries of the code in compressed rows: ptr, feature index, value."""
        c, b = self.config, pre.shape[0]
        if c.activation == "topk":
            return self.largest(pre, pre)
        if c.activation == "batchtopk":
            bits = self.selection.nth_largest(pre.view(torch.int32).view(-1).numpy(), b * c.k + 1)
            cut = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
            self.batch_threshold.lerp_(cut, 0.01 if bool(self.batch_threshold) else 1.0)
            return self.above(pre, cut.expand(c.n_features).contiguous())
        if self.log_threshold is not None:
            return self.above(pre, self.log_threshold.exp())
        return self.above(pre, torch.zeros(c.n_features))

    def largest(self, score: Tensor, pre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The k entries of largest score of each row, with their values max(pre, 0)."""
        b, k = pre.shape[0], self.config.k
        index, value = self.buffer("index", b, k, dtype=torch.long), self.buffer("value", b, k)
        self.selection.top_rows(score.numpy(), pre.numpy(), k, index.numpy(), value.numpy())
        return torch.arange(0, b * k + 1, k), index.view(-1), value.view(-1)

    def above(self, pre: Tensor, cut: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The entries above the threshold cut [F] of their feature."""
        ptr = torch.zeros(pre.shape[0] + 1, dtype=torch.long)
        self.selection.count_above(pre.numpy(), cut.numpy(), ptr[1:].numpy())
        ptr.cumsum_(0)
        n = int(ptr[-1])
        index, value = self.buffer("index", n, dtype=torch.long), self.buffer("value", n)
        self.selection.take_above(pre.numpy(), cut.numpy(), ptr.numpy(), index.numpy(), value.numpy())
        return ptr, index, value

    def penalise(self, grad: Tensor, ptr: Tensor, value: Tensor, centred: Tensor) -> None:
        """Add the gradient of the penalty with respect to the active values to grad, in place."""
        if self.config.l1:
            grad += self.penalty / (len(ptr) - 1)

    def _gradients(self, centred: Tensor, ptr: Tensor, index: Tensor, value: Tensor, err: Tensor) -> Tensor:
        """All gradients but the thresholds'; returns the squared error of each row."""
        k, b, n = self.kernels, centred.shape[0], len(value)
        scale = np.float32(2.0 / b)
        grad, loss = self.buffer("grad", n), self.buffer("loss", b)
        x, error, values = centred.numpy(), err.numpy(), value.numpy()
        rows, columns = ptr.numpy(), index.numpy()
        k.residual_and_gradient(
            rows, columns, values, self.decoder.numpy(), x, scale, error, grad.numpy(), loss.numpy()
        )
        self.penalise(grad, ptr, value, centred)
        grad.masked_fill_(value <= 0, 0.0)
        row, place = (self.buffer(name, n, dtype=torch.long).numpy() for name in ("row", "place"))
        column_ptr = self.buffer("column_ptr", self.config.n_features + 1, dtype=torch.long).numpy()
        k.transpose(rows, columns, column_ptr, row, place)
        into_encoder, into_bias, into_decoder, into_origin = (_grad(p) for p in self.parameters[:4])
        k.weight_gradient(
            column_ptr, row, place, values, grad.numpy(), x, error, scale,
            into_decoder.numpy(), into_encoder.numpy(), into_bias.numpy(),
        )  # fmt: skip
        torch.sub(err.sum(0) * (2.0 / b), self.encoder.T @ into_bias, out=into_origin)
        return loss

    def _threshold_gradient(self, pre: Tensor, err: Tensor) -> None:
        """Straight-through gradient of the thresholds: -(theta dL/df + l0) K((h - theta)/eps) / eps, times theta."""
        assert self.log_threshold is not None and self.log_threshold.grad is not None
        theta, eps, b = self.log_threshold.exp(), self.config.bandwidth, pre.shape[0]
        rows, columns = ((pre - theta).abs() < eps / 2).nonzero(as_tuple=True)
        d_value = (err[rows] * self.decoder[columns]).sum(1) * (2.0 / b)
        slope = -(theta[columns] * d_value + self.penalty / b) / eps * theta[columns]
        self.log_threshold.grad.zero_().index_add_(0, columns, slope)

    def _revive_by_loss(self, pre: Tensor | None, centred: Tensor, err: Tensor) -> None:
        """Add the gradients of aux * mean |dead reconstruction - (x - y)|^2, with x - y held fixed."""
        c = self.config
        dead = (self.silent > c.dead_after).nonzero().flatten() if c.dead_after else self.silent[:0]
        if not len(dead):
            return
        h = torch.addmm(self.encoder_bias[dead], centred, self.encoder[dead].T) if pre is None else pre[:, dead]
        h.relu_()
        f = h
        if c.aux_k < len(dead):
            top = h.topk(c.aux_k, dim=1, sorted=False)
            f = torch.zeros_like(h).scatter_(1, top.indices, top.values)
        rows = self.decoder[dead]
        r = torch.addmm(err, f, rows) * (2 * c.aux / len(err))
        d_pre = (r @ rows.T).mul_(f > 0)
        into_encoder, into_bias, into_decoder, into_origin = (_grad(p) for p in self.parameters[:4])
        into_decoder[dead] += f.T @ r
        into_encoder[dead] += d_pre.T @ centred
        into_bias[dead] += d_pre.sum(0)
        into_origin -= self.encoder[dead].T @ d_pre.sum(0)

    def _update(self, index: Tensor, rows: int) -> None:
        self.steps_done += 1
        beta1, beta2 = 0.9, self.config.beta2
        unbias = [np.float32(1 / (1 - beta**self.steps_done)) for beta in (beta1, beta2)]
        numbers = (np.float32(self.lr), np.float32(beta1), np.float32(beta2), *unbias, np.float32(1e-8))
        for p, moments in zip(self.parameters, self.moments, strict=True):
            if p is self.encoder_bias and not self.config.bias:
                continue
            arrays = [t.view(-1, t.shape[-1]).numpy() for t in (p, _grad(p), *moments)]
            self.kernels.adam(*arrays, *numbers, p is self.decoder)
        self.silent += rows
        self.silent[index] = 0

    @torch.no_grad()
    def revive(self, x: Float[Tensor, "B D"]) -> int:
        """Draw dead features anew, towards inputs chosen with probability proportional to their squared loss."""
        c = self.config
        dead = (self.silent > c.dead_after).nonzero().flatten() if c.dead_after and not c.aux_k else []
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
        for moments in self.moments[:3]:
            for moment in moments:
                moment[dead] = 0
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
    data: Float[Tensor, "N D"] | Iterable[Any],
    config: SparseCoding,
    guide: Tensor | None = None,
    trainer: Callable[[SparseCoding, Tensor, float], SparseTrainer] = SparseTrainer,
    **facts: Any,
) -> Dictionary:
    """Train a dictionary on rows of activations, or on batches of them (a Store's `batches`, say).

    guide    rows that belong to those of a tensor of data, for trainers that need them; an iterable yields pairs
    trainer  makes the trainer from config, mean and rms: SparseTrainer, or a class derived from it
    facts    fields of the artifact, such as site= and fingerprint=
    The dictionary's `fitted` holds `fvu` and `l0` over the last steps, and their `curve` at a hundred steps or so.
    Raises InputError when there are no rows, or the batches end before `config.steps`.
    """
    from interneuron.core.progress import track

    batches = _batches(data, guide, config) if isinstance(data, Tensor) else map(_pair, data)
    x, beside = next(batches, (None, None))
    if x is None:
        raise InputError("train_dictionary was given no rows: pass a tensor [N D] or an iterator of batches.")
    mean = x.float().mean(0)
    rms = float((x.float() - mean).square().mean().sqrt())
    if not rms > 0 or not math.isfinite(rms):
        raise InputError(
            f"the first {len(x)} rows of activations have the root mean square {rms} about their mean: expected a "
            "positive number. Pass finite rows that differ."
        )
    run = trainer(config, mean, rms)
    log: list[dict[str, float]] = []
    for step in track(range(config.steps), label="dictionary", unit="step"):
        left = (config.steps - step) / max(1, config.steps // 5)
        run.lr = config.lr * min(1.0, left, (step + 1) / 50)
        run.penalty = (config.l1 + config.l0) * min(1.0, (step + 1) / max(1, config.steps // 10))
        log.append(run.step(x.float(), beside))
        if step % 250 == 249 and step < config.steps * 0.7:
            run.revive(x.float())
        if step + 1 < config.steps:
            x, beside = next(batches, (None, None))
            if x is None:
                raise InputError(f"the data ended after {step + 1} batches of {config.steps} steps: repeat it.")
    last = log[-max(1, config.steps // 20) :]
    fitted = {
        "config": dataclasses.asdict(config),
        **{name: _mean(last, name) for name in ("fvu", "l0")},
        "curve": log[:: max(1, len(log) // 100)],
    }
    return run.dictionary(fitted={**fitted, **facts.pop("fitted", {})}, **facts)


def _mean(log: list[dict[str, float]], name: str) -> float:
    return sum(row[name] for row in log) / len(log)


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _pair(batch: Any) -> tuple[Tensor, Tensor | None]:
    return batch if isinstance(batch, tuple) else (batch, None)


def _batches(x: Tensor, guide: Tensor | None, config: SparseCoding) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Shuffled batches without end."""
    rng = generator(config.seed, "batches of a dictionary")
    size = min(config.batch_size, len(x))
    while len(x):
        order = torch.randperm(len(x), generator=rng)
        for start in range(0, len(x) - size + 1, size):
            rows = order[start : start + size]
            yield x[rows], None if guide is None else guide[rows]
