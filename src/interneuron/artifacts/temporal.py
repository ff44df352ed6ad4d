"""TemporalDictionary: sparse features of what an activation adds to what the tokens before it foretell."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.artifacts.base import Artifact
from interneuron.artifacts.dictionary import Dictionary
from interneuron.core.errors import InputError, ShapeError

PARTS = ("query", "key", "value", "out")
EPSILON = 1e-6


class TemporalDictionary(Artifact):
    """Features of a sequence x_1 .. x_T: p, foretold from the tokens before, and the sparse f of the rest.

        r = scale * norm(x) - center * decoder_bias                               the part not yet explained
        for each layer of attention over the context:
            z   = max(r encoder / 4D, 0),   c_t = z_(t-1), c_1 = 0
            q   = max(attention(queries of z; keys and values of c, causal), 0)
            s   = <q decoder, r> / (|q decoder| + 1e-6)^2
            p  += s q,   r -= s q decoder
        f = max(r encoder / 4D, 0), of which topk keeps the k largest
        y = norm^-1(((f + p) decoder + decoder_bias) / scale)

    encoder       [D F]        decoder   [F D]        decoder_bias   [D]
    attention     "LAYER.PART.weight" and ".bias" with PART one of query, key [E F], value, out [F F]
    n_heads       heads of that attention          activation   "relu" or "topk", with k
    normalize, scale, center, heads   as in a Dictionary

    Source: E. S. Lubana and others, "Priors in time: missing inductive biases for language model interpretability"
    (arXiv:2511.01836), in the form SAELens gives it.

    Raises ShapeError when the tensors do not fit together, InputError for an unknown activation.
    """

    encoder: Tensor
    decoder: Tensor
    decoder_bias: Tensor
    attention: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    n_heads: int = 1
    activation: str = "topk"
    k: int = 0
    center: bool = False
    scale: float = 1.0
    normalize: str = "none"
    heads: int = 0
    target: str = ""

    def validate(self) -> None:
        """What a Dictionary of the same tensors must satisfy, and attention of matching shapes."""
        if self.activation not in ("relu", "topk"):
            raise InputError(f"activation={self.activation!r} of a temporal dictionary, expected relu or topk.")
        if self.target:
            raise InputError("a temporal dictionary reconstructs its own site. Leave target out.")
        self._frame()
        f = self.n_features
        for layer in range(self.n_layers):
            width = self._part(layer, "query", "weight").shape[0]
            for name in PARTS:
                rows = width if name in ("query", "key") else f
                for part, shape in (("weight", (rows, f)), ("bias", (rows,))):
                    found = self._part(layer, name, part)
                    if tuple(found.shape) != shape:
                        raise ShapeError(
                            f"TemporalDictionary.attention['{layer}.{name}.{part}'] has shape {list(found.shape)}, "
                            f"expected {list(shape)} beside {f} features."
                        )
            if self.n_heads < 1 or width % self.n_heads or f % self.n_heads:
                raise ShapeError(f"n_heads={self.n_heads} does not divide {width} and {f}, the widths of attention.")

    def _part(self, layer: int, name: str, part: str) -> Tensor:
        key = f"{layer}.{name}.{part}"
        if key not in self.attention:
            raise ShapeError(f"TemporalDictionary.attention has no {key!r}, it has {sorted(self.attention)[:8]}.")
        return self.attention[key]

    def _frame(self) -> Dictionary:
        """The Dictionary that does norm, scale and centre, and undoes them."""
        return Dictionary(
            encoder=self.encoder, decoder=self.decoder, decoder_bias=self.decoder_bias,
            encoder_bias=self.decoder_bias.new_zeros(self.encoder.shape[-1]), activation=self.activation, k=self.k,
            center=self.center, scale=self.scale, normalize=self.normalize, heads=self.heads,
            site=self.site,
        )  # fmt: skip

    @property
    def n_features(self) -> int:
        """Number of features F."""
        return self.encoder.shape[1]

    @property
    def d_in(self) -> int:
        """Width D of the activations it reads."""
        return self.encoder.shape[0]

    @property
    def n_layers(self) -> int:
        """Number of layers of attention."""
        return len(self.attention) // (2 * len(PARTS))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The features f [*batch T F] of what is new at each token, and those p [*batch T F] that were foretold.

        x  [*batch T D], or [*batch T H K] with heads: whole texts, their tokens in order
        """
        rest = self._frame()._centred(x)
        if rest.ndim < 2:
            raise ShapeError(
                f"activations of shape {list(x.shape)}, expected [..., T, {self.d_in}]: the tokens of a text in order, "
                f"read at {self.site or 'its site'}."
            )
        foretold = rest.new_zeros(*rest.shape[:-1], self.n_features)
        small = 1 / (4 * self.d_in)
        for layer in range(self.n_layers):
            z = torch.relu((rest * small) @ self.encoder)
            before = torch.cat([torch.zeros_like(z[..., :1, :]), z[..., :-1, :]], -2)
            q = torch.relu(self._attend(layer, z, before))
            y = q @ self.decoder
            s = (y * rest).sum(-1, keepdim=True) / (y.norm(dim=-1, keepdim=True) + EPSILON).square()
            foretold, rest = foretold + s * q, rest - s * y
        f = torch.relu((rest * small) @ self.encoder)
        if self.activation == "topk":
            top = f.topk(self.k, dim=-1)
            f = torch.zeros_like(f).scatter(-1, top.indices, top.values)
        return f, foretold

    def _attend(self, layer: int, z: Tensor, context: Tensor) -> Tensor:
        def project(name: str, value: Tensor) -> Tensor:
            out = value @ self._part(layer, name, "weight").T + self._part(layer, name, "bias")
            return out.unflatten(-1, (self.n_heads, -1)).transpose(-2, -3)

        mixed = torch.nn.functional.scaled_dot_product_attention(
            project("query", z), project("key", context), project("value", context), is_causal=True
        )
        joined = mixed.transpose(-2, -3).flatten(-2)
        return joined @ self._part(layer, "out", "weight").T + self._part(layer, "out", "bias")

    def encode(self, x: Tensor) -> Float[Tensor, "*batch T F"]:
        """The features of what is new at each token; `split` has the foretold ones too."""
        return self.split(x)[0]

    def decode(self, f: Float[Tensor, "*batch T F"], x: Tensor | None = None) -> Tensor:
        """The activations [*batch T D] of all features together, f + p of `split`; x as for a Dictionary."""
        return self._frame().decode(f, x)

    def reconstruct(self, x: Tensor) -> Float[Tensor, "*batch T D"]:
        """What the new and the foretold features make together."""
        f, foretold = self.split(x)
        return self.decode(f + foretold, x)

    def quality(self, x: Float[Tensor, "*batch T D"]) -> dict[str, float]:
        """Fraction of variance unexplained, by new features alone too, and the mean number of active new ones."""
        f, foretold = self.split(x)
        wanted = x.to(f.dtype).float()
        total = (wanted - wanted.mean(tuple(range(wanted.ndim - 1)))).square().sum()
        return {
            "fvu": float((wanted - self.decode(f + foretold, x).float()).square().sum() / total),
            "fvu_new_alone": float((wanted - self.decode(f, x).float()).square().sum() / total),
            "l0": float((f != 0).sum(-1).float().mean()),
        }
