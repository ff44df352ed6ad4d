"""CrossLayerTranscoder: features read at each layer that write into that layer and all later ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from interneuron.artifacts.base import Artifact
from interneuron.core.errors import InputError, ShapeError


class CrossLayerTranscoder(Artifact):
    """Features f_i of the input x_i of layer i, and what all of them together write.

        h_i = x_i encoder_i + encoder_bias_i
        f_i = max(h_i, 0), or h_i where h_i > threshold_i, else 0
        y_j = sum over i <= j of f_i decoder_i[:, j - i] + decoder_bias_j

    encoders         "i" -> [D F]          encoder_biases  "i" -> [F]
    decoders         "i" -> [F L-i D]      decoder_biases  "i" -> [D]
    thresholds       "i" -> [F], or empty for ReLU
    site, targets    where layer i reads and where its output belongs, L names each

    >>> t = CrossLayerTranscoder(
    ...     encoders={"0": torch.eye(2), "1": torch.eye(2)},
    ...     encoder_biases={"0": torch.zeros(2), "1": torch.zeros(2)},
    ...     decoders={"0": torch.eye(2)[:, None].repeat(1, 2, 1), "1": torch.eye(2)[:, None]},
    ...     decoder_biases={"0": torch.zeros(2), "1": torch.zeros(2)},
    ... )
    >>> [y.tolist() for y in t.reconstruct([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])])]
    [[1.0, 0.0], [1.0, 2.0]]
    """

    encoders: dict[str, Tensor]
    encoder_biases: dict[str, Tensor]
    decoders: dict[str, Tensor]
    decoder_biases: dict[str, Tensor]
    thresholds: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    targets: tuple[str, ...] = ()

    def validate(self) -> None:
        """One entry per layer in every part, and shapes that fit together."""
        layers = [str(i) for i in range(len(self.encoders))]
        for name in (
            "encoders",
            "encoder_biases",
            "decoders",
            "decoder_biases",
            *(["thresholds"] if self.thresholds else []),
        ):
            if sorted(getattr(self, name), key=lambda key: (len(key), key)) != layers or not layers:
                raise ShapeError(
                    f"CrossLayerTranscoder.{name} has layers {list(getattr(self, name))}, expected {layers or ['0']}."
                )
        if self.encoders["0"].ndim != 2:
            raise ShapeError(
                f"CrossLayerTranscoder.encoders['0'] has shape {list(self.encoders['0'].shape)}, expected [D F]."
            )
        d, f = self.encoders["0"].shape
        for i, key in enumerate(layers):
            wanted = {
                "encoders": (d, f), "encoder_biases": (f,), "decoders": (f, len(layers) - i, d), "decoder_biases": (d,),
                "thresholds": (f,),
            }  # fmt: skip
            for name, shape in wanted.items():
                tensor = getattr(self, name).get(key)
                if tensor is not None and tuple(tensor.shape) != shape:
                    raise ShapeError(
                        f"CrossLayerTranscoder.{name}[{key!r}] has shape {list(tensor.shape)}, expected {list(shape)}. "
                        "A transposed weight or a missing layer is the usual cause."
                    )

    @property
    def n_layers(self) -> int:
        """Number of layers L."""
        return len(self.encoders)

    def encode(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Feature activations per layer, [*batch F] each, of the inputs x_0 .. x_{L-1}, [*batch D] each."""
        self._count(x, "inputs")
        out = []
        for i, value in enumerate(x):
            key = str(i)
            h = value.to(self.encoders[key].dtype) @ self.encoders[key] + self.encoder_biases[key]
            floor = self.thresholds[key] if self.thresholds else torch.zeros_like(self.encoder_biases[key])
            out.append(torch.where(h > floor, h, torch.zeros_like(h)))
        return out

    def decode(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The outputs y_0 .. y_{L-1}, [*batch D] each."""
        self._count(features, "features")
        return [
            sum((features[i] @ self.decoders[str(i)][:, j - i] for i in range(j + 1)), self.decoder_biases[str(j)])
            for j in range(self.n_layers)
        ]

    def reconstruct(self, x: Sequence[Tensor]) -> list[Tensor]:
        """decode(encode(x))."""
        return self.decode(self.encode(x))

    def _count(self, values: Sequence[Tensor], what: str) -> None:
        if len(values) != self.n_layers:
            raise InputError(f"{len(values)} {what} for {self.n_layers} layers. Give one tensor per layer, in order.")
