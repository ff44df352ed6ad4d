"""Dictionary: an overcomplete set of feature directions with an encoder; sparse autoencoders and transcoders alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.artifacts.base import Artifact
from interneuron.artifacts.direction import Direction
from interneuron.artifacts.pursuit import matching_pursuit
from interneuron.core.errors import InputError, ShapeError

if TYPE_CHECKING:
    from interneuron.model.edits import Edit

Activation = Literal["relu", "topk", "jumprelu", "gated", "abstopk", "groupmax", "topafa", "pursuit"]
Normalize = Literal["none", "layer_norm", "constant_norm"]


def top_afa(f: Float[Tensor, "*batch F"], norm: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch F"]:
    """Keep the k* largest entries of each row of f >= 0, k* = argmin_k | |the k largest| - norm |, at least one.

    >>> top_afa(torch.tensor([[3.0, 4.0, 1.0]]), torch.tensor([4.9])).tolist()
    [[3.0, 4.0, 0.0]]
    """
    ordered = f.sort(dim=-1, descending=True, stable=True)
    gap = (ordered.values.double().square().cumsum(-1).sqrt() - norm[..., None].double()).abs()
    k = gap.argmin(-1, keepdim=True)
    kept = torch.arange(f.shape[-1], device=f.device) <= k
    return torch.zeros_like(f).scatter(-1, ordered.indices, ordered.values * kept)


class Dictionary(Artifact):
    """Features f of activations x at a site, and the reconstruction they give.

        x' = scale * norm(x) - center * decoder_bias
        h  = x' encoder + encoder_bias
        f  = max(h, 0)                                    relu
             the k largest of max(h, 0)                   topk
             h where h > threshold, else 0                jumprelu (also batch top-k once its threshold is known)
             max(x' encoder exp(gate_scale) + encoder_bias, 0) where x' encoder + gate_bias > 0, else 0       gated
             the k of largest |h|, with their signs       abstopk
             the largest of max(h, 0) in each of k equal groups of neighbours                                 groupmax
             the largest of max(h, 0), as many as bring |f| nearest to |x'|                       topafa
             found one by one, each for what the others left of x' (`matching_pursuit`)          pursuit
        y  = norm^-1((f decoder + decoder_bias + x' skip) / scale)

    encoder       [D F]       decoder        [F O], O = D unless the target is another site (transcoder)
    encoder_bias  [F]         decoder_bias   [O]
    threshold     [F], for jumprelu          gate_bias, gate_scale   [F], for gated
    skip          [D O], for skip transcoders
    residual, settles   when pursuit ends, see there; its most steps are k, 0 for D; it uses no encoder but decoder.T
    heads         heads of the site, whose vectors lie side by side in D (attn.z); 0 when it has no head axis
    target        site whose activations are reconstructed; "" for `site` itself
    normalize     norm, taken from each vector itself: "none"; "layer_norm" (x - mean) / (std + 1e-5), undone with
                  the same mean and std; "constant_norm" x sqrt(D) / |x|. Other than "none", decoding needs x as well

    Raises ShapeError when the tensors do not fit together, InputError for an unknown activation or a missing k.

    >>> d = Dictionary(
    ...     encoder=torch.eye(2),
    ...     decoder=torch.eye(2),
    ...     encoder_bias=torch.zeros(2),
    ...     decoder_bias=torch.zeros(2),
    ...     activation="topk",
    ...     k=1,
    ... )
    >>> d.encode(torch.tensor([[1.0, 3.0]])).tolist()
    [[0.0, 3.0]]
    """

    encoder: Tensor
    decoder: Tensor
    encoder_bias: Tensor
    decoder_bias: Tensor
    activation: str = "relu"
    k: int = 0
    threshold: Tensor | None = None
    gate_bias: Tensor | None = None
    gate_scale: Tensor | None = None
    skip: Tensor | None = None
    center: bool = False
    scale: float = 1.0
    target: str = ""
    normalize: str = "none"
    heads: int = 0
    residual: float = 0.0
    settles: bool = True

    def validate(self) -> None:
        """Shapes that fit together, and the parts each activation needs."""
        if self.activation not in get_args(Activation):
            raise InputError(f"activation={self.activation!r} is unknown: expected one of {get_args(Activation)}.")
        if self.encoder.ndim != 2 or self.decoder.ndim != 2:
            raise ShapeError(
                f"encoder {list(self.encoder.shape)} and decoder {list(self.decoder.shape)} must be [D F] and [F O]."
            )
        (d, f), o = self.encoder.shape, self.decoder.shape[1]
        wanted = {
            "decoder": (self.decoder, (f, o)),
            "encoder_bias": (self.encoder_bias, (f,)),
            "decoder_bias": (self.decoder_bias, (o,)),
            "threshold": (self.threshold, (f,)),
            "gate_bias": (self.gate_bias, (f,)),
            "gate_scale": (self.gate_scale, (f,)),
            "skip": (self.skip, (d, o)),
        }
        for name, (tensor, shape) in wanted.items():
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ShapeError(
                    f"Dictionary.{name} has shape {list(tensor.shape)}, expected {list(shape)} beside an encoder of "
                    f"{[d, f]} ([D F]). A transposed weight is the usual cause."
                )
        needs = {"jumprelu": ("threshold",), "gated": ("gate_bias", "gate_scale")}.get(self.activation, ())
        for name in needs:
            if getattr(self, name) is None:
                raise InputError(f"a {self.activation} dictionary needs {name}: pass a tensor [F].")
        if self.activation in ("topk", "abstopk", "groupmax") and not 0 < self.k <= f:
            raise InputError(f"a {self.activation} dictionary needs 0 < k <= {f}, got k={self.k}.")
        if self.activation == "groupmax" and f % self.k:
            raise InputError(f"groupmax needs {f} features to fall into k={self.k} equal groups. Choose a divisor.")
        if self.activation == "pursuit" and (o != d or not 0 <= self.residual < float("inf") or self.k < 0):
            raise InputError(f"pursuit needs O = D, k >= 0, residual >= 0; got {o}, {d}, {self.k}, {self.residual}.")
        if self.normalize not in get_args(Normalize):
            raise InputError(f"normalize={self.normalize!r} is unknown: expected one of {get_args(Normalize)}.")
        if self.normalize != "none" and (o != d or self.target):
            raise InputError(
                "normalize is undone with the norm of the input, which a transcoder's target does not share."
            )
        if self.heads and (d % self.heads or o != d):
            raise ShapeError(f"heads={self.heads} does not divide the width {d} of a dictionary [{d} {f}] -> {o}.")
        if self.center and o != d:
            raise InputError("center=True subtracts the decoder bias from the input, which has another width here.")

    def plot(self) -> dict[str, Any]:
        """How alike features are: the cosine of each one's decoder row with its nearest neighbour's, from high to low.

        A dictionary whose features came apart lies low; copies of one feature stand at 1 on the left.
        """
        from interneuron.artifacts import plots

        rows = torch.nn.functional.normalize(self.decoder.float(), dim=1)
        nearest = []
        for at in range(0, len(rows), 1024):
            cosine = rows[at : at + 1024] @ rows.T
            cosine[range(len(cosine)), range(at, at + len(cosine))] = -1.0  # a feature is no neighbour of itself
            nearest.append(cosine.amax(1))
        shares = torch.linspace(0, 1, 101)
        levels = torch.cat(nearest).sort(descending=True).values[(shares * (len(rows) - 1)).long()]
        x = [round(100 * float(share)) for share in shares]
        series = {"nearest neighbour": levels.tolist()}
        return plots.lines(
            "How alike the features are", x, series, x_label="features, from the most alike, %", y_label="cosine"
        )

    @property
    def n_features(self) -> int:
        """Number of features F."""
        return self.encoder.shape[1]

    @property
    def d_in(self) -> int:
        """Width D of the activations it reads."""
        return self.encoder.shape[0]

    def _centred(self, x: Tensor) -> Float[Tensor, "*batch D"]:
        if self.heads and x.shape[-2:] == (self.heads, self.d_in // self.heads):
            x = x.flatten(-2)
        if x.shape[-1] != self.d_in:
            raise ShapeError(
                f"activations of shape {list(x.shape)}, expected [..., {self.d_in}]: read {self.site or 'its site'}."
            )
        x = x.to(self.encoder.dtype)
        if self.normalize != "none":
            shift, factor, _ = self._frame(x)
            x = (x - shift) * factor
        x = x * self.scale if self.scale != 1 else x
        return x - self.decoder_bias if self.center else x

    def _frame(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What norm(x) subtracts, what it multiplies by, and what its inverse multiplies by: [*batch 1] each."""
        if self.normalize == "constant_norm":
            norm = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
            return torch.zeros_like(norm), 1 / norm, norm
        mean = x.mean(dim=-1, keepdim=True)
        std = (x - mean).std(dim=-1, keepdim=True)
        return mean, 1 / (std + 1e-5), std

    def encode(self, x: Tensor) -> Float[Tensor, "*batch F"]:
        """Feature activations of x [*batch D] (or [*batch H K] with heads), in the dtype of the dictionary."""
        x = self._centred(x)
        if self.activation == "pursuit":
            return matching_pursuit(x, self.decoder, self.k, self.residual, self.settles)
        h = x @ self.encoder
        if self.gate_bias is not None and self.gate_scale is not None:
            magnitude = torch.relu(h * torch.exp(self.gate_scale) + self.encoder_bias)
            return torch.where(h + self.gate_bias > 0, magnitude, torch.zeros_like(magnitude))
        h = h + self.encoder_bias
        if self.threshold is not None:
            return torch.where(h > self.threshold, h, torch.zeros_like(h))
        if self.activation == "abstopk":
            chosen = h.abs().topk(self.k, dim=-1).indices
            return torch.zeros_like(h).scatter(-1, chosen, h.gather(-1, chosen))
        f = torch.relu(h)
        if self.activation == "relu":
            return f
        if self.activation == "topafa":
            return top_afa(f, x.norm(dim=-1))
        if self.activation == "groupmax":
            best = f.unflatten(-1, (self.k, -1)).max(dim=-1, keepdim=True)
            grouped = torch.zeros_like(f).unflatten(-1, (self.k, -1))
            return grouped.scatter(-1, best.indices, best.values).flatten(-2)
        top = f.topk(self.k, dim=-1)
        return torch.zeros_like(f).scatter(-1, top.indices, top.values)

    def decode(self, f: Float[Tensor, "*batch F"], x: Tensor | None = None) -> Tensor:
        """The reconstruction [*batch O] from features; a skip transcoder also needs x [*batch D], or [*batch H K]."""
        y = f @ self.decoder + self.decoder_bias
        if self.skip is not None:
            if x is None:
                raise InputError("this transcoder has a skip connection: call decode(f, x) or reconstruct(x).")
            y = y + self._centred(x) @ self.skip
        y = y / self.scale if self.scale != 1 else y
        if self.normalize == "none":
            return y
        if x is None:
            raise InputError(f"this dictionary normalises each vector ({self.normalize}): call decode(f, x).")
        if self.heads and x.shape[-2:] == (self.heads, self.d_in // self.heads):
            x = x.flatten(-2)
        shift, _, factor = self._frame(x.to(self.encoder.dtype))
        return y * factor + shift

    def reconstruct(self, x: Tensor) -> Tensor:
        """decode(encode(x)) [*batch O], of x [*batch D], or [*batch H K] with heads."""
        return self.decode(self.encode(x), x)

    def quality(self, x: Float[Tensor, "N D"], target: Float[Tensor, "N O"] | None = None) -> dict[str, float]:
        """Fraction of variance unexplained, mean number of active features, and the share that never fires on x."""
        f = self.encode(x)
        wanted = (x if target is None else target).to(f.dtype).float()  # sums of squares overflow half precision
        left = (wanted - self.decode(f, x).float()).square().sum()
        total = (wanted - wanted.mean(0)).square().sum()
        return {
            "fvu": float(left / total),
            "l0": float((f != 0).sum(-1).float().mean()),
            "dead": float((f == 0).all(0).float().mean()),
        }

    def feature(self, index: int) -> Direction:
        """The direction a feature writes along: its decoder row, in the units of the site."""
        return Direction(
            self.decoder[index] / self.scale,
            site=self.target or self.site,
            slug=self.slug,
            fingerprint=self.fingerprint,
            fitted={"feature": index},
        )

    def edit(self, features: Sequence[int] | int = 0, alpha: float = 1.0) -> Edit:
        """Steering along features: add alpha times the sum of their decoder rows."""
        from interneuron.model.edits import Add

        chosen = [features] if isinstance(features, int) else list(features)
        vector = self.decoder[chosen].sum(0) / self.scale
        return Add(self._where(), vector.unflatten(0, (self.heads, -1)) if self.heads else vector, alpha=alpha)

    def ablation(self, features: Sequence[int] | int) -> Edit:
        """Remove what features contribute, f_i decoder_i, and keep everything else, the error term included."""
        from interneuron.model.edits import Apply

        if self.target:
            raise InputError("a transcoder's features act at another site than they are read from: edit that site.")
        chosen = [features] if isinstance(features, int) else list(features)

        def remove(x: Tensor) -> Tensor:
            part = self.encode(x)[..., chosen] @ self.decoder[chosen] / self.scale
            if self.normalize != "none":
                part = part * self._frame(x.to(part.dtype))[2]
            return x - part.reshape(x.shape).to(x.dtype)

        return Apply(self._where(), remove)

    def _where(self) -> str:
        if self.target:
            return self.target
        if not isinstance(self.site, str) or not self.site:
            raise InputError("this dictionary names no site: make a copy with dictionary.replace(site=...).")
        return self.site
