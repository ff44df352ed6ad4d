"""`Scenes`: a batch of images together with everything that is true of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from interneuron.core.errors import InputError, did_you_mean

from .draw import Choice, draw, words_of
from .render import Rendering, render
from .vocabulary import HUES, RANGES, VALUES, index_of

_SCENE_LEVEL = ("background", "n_objects", "brightness", "level")


@dataclass(frozen=True)
class Scenes:
    """N scenes with K object slots. Pixels are drawn when first asked for, from the factors alone.

    factors    per object [N K] (`shape`, `color`, `texture`, `size`, `position` as labels, -1 = empty slot; `x`, `y`,
               `radius` in units of the image side, `rotation` in radians, `hue` in turns) and per scene [N]
    images     Float[N 3 H W] in [0, 1];   background: the same scene without objects
    masks      Bool[N K H W], amodal;      visible: what later objects leave of them
    boxes      Float[N K 4]: x0, y0, x1, y1 in pixels around the mask (zeros for an empty slot)
    """

    factors: dict[str, Tensor]
    size: int
    seed: int
    _cache: dict[str, Rendering] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return int(self.factors["shape"].shape[0])

    def __repr__(self) -> str:
        return (
            f"Scenes({len(self)} of {self.size}x{self.size}, slots={self.factors['shape'].shape[1]}, seed={self.seed})"
        )

    @property
    def _rendering(self) -> Rendering:
        if "r" not in self._cache:
            self._cache["r"] = render(self.factors, self.size)
        return self._cache["r"]

    @property
    def images(self) -> Tensor:
        """Float[N 3 H W] in [0, 1]."""
        return self._rendering.images

    @property
    def background(self) -> Tensor:
        """Float[N 3 H W]: the scene without its objects."""
        return self._rendering.background

    @property
    def masks(self) -> Tensor:
        """Bool[N K H W], amodal: the whole object, hidden parts too."""
        return self._rendering.masks

    @property
    def visible(self) -> Tensor:
        """Bool[N K H W]: the pixels where the object shows."""
        return self._rendering.visible

    @cached_property
    def boxes(self) -> Tensor:
        """Float[N K 4]: x0, y0, x1, y1 in pixels (x1, y1 exclusive)."""
        sides = []
        for axis in (2, 3):
            line = self.masks.any(dim=axis).int()
            length = line.shape[-1]
            first = line.argmax(dim=-1)
            last = length - line.flip(-1).argmax(dim=-1)
            sides.append((first, last))
        (x0, x1), (y0, y1) = sides
        boxes = torch.stack([x0, y0, x1, y1], dim=-1).float()
        return boxes * self.masks.flatten(2).any(dim=-1)[..., None]

    @property
    def present(self) -> Tensor:
        """Bool[N K]: which slots hold an object."""
        return self.factors["shape"] >= 0

    @property
    def clipped(self) -> Tensor:
        """Bool[N K]: the object touches the border of the image."""
        m = self.masks
        return m[:, :, 0].any(-1) | m[:, :, -1].any(-1) | m[..., 0].any(-1) | m[..., -1].any(-1)

    def labels(self, name: str) -> Tensor:
        """Labels of one named factor, or of a product such as `"shape*color"` (row-major code).

        Int[N] for scenes of one slot and for scene factors, else Int[N K] with -1 in empty slots.
        """
        known = {*VALUES, "n_objects"}
        code: Tensor | None = None
        for part in name.split("*"):
            if part not in known:
                raise InputError(
                    f"shapes has no labels {part!r}; expected {', '.join(sorted(known))}.{did_you_mean(part, known)}"
                )
            label = self.factors[part]
            label = label[:, None].expand_as(self.factors["shape"]) if part in _SCENE_LEVEL else label
            code = (
                label if code is None else torch.where((code < 0) | (label < 0), -1, code * len(VALUES[part]) + label)
            )
        assert code is not None
        return code[:, 0] if code.shape[1] == 1 or all(p in _SCENE_LEVEL for p in name.split("*")) else code

    @cached_property
    def captions(self) -> list[str]:
        """One sentence a scene; `sh.caption` has the dials (synonyms, over-mention, form)."""
        from .captions import caption

        return caption(self)

    @cached_property
    def relations(self) -> list[list[tuple[int, str, int]]]:
        """All true (slot, relation, slot) triples of each scene: left of, above, same color, same shape."""
        from .captions import relations

        return relations(self)

    def __getitem__(self, rows: slice | Tensor) -> Scenes:
        """A part of the batch, by slice, boolean mask or index tensor."""
        return Scenes({name: value[rows] for name, value in self.factors.items()}, self.size, self.seed)

    def change(self, **values: Choice) -> Scenes:
        """The same scenes with some factors set to other values, everything else equal down to the pixel noise.

        Named factors take a name or Int labels; continuous ones a number or a tensor [N] or [N K].

        >>> pair = sample(8, seed=0)
        ... bool((pair.change(color="blue").masks == pair.masks).all())
        True
        """
        new = dict(self.factors)
        present = self.present
        for name, value in values.items():
            if name in ("size", "position"):
                raise InputError(f"change(): {name!r} follows from radius, x and y; set those.")
            if name not in {*VALUES, *RANGES, "hue"}:
                raise InputError(
                    f"change() knows no factor {name!r}; expected {', '.join([*VALUES, *RANGES, 'hue'])}."
                    f"{did_you_mean(name, [*VALUES, *RANGES, 'hue'])}"
                )
            old = new[name]
            if name in VALUES:
                label = value if isinstance(value, Tensor) else torch.tensor(index_of(name, value))  # type: ignore[arg-type]
                label = _fit(label.long(), old)
                new[name] = label if old.dim() == 1 else torch.where(present, label, -1)
                if name == "color":
                    table = torch.tensor(HUES)
                    shift = new["hue"] - table[old.clamp_min(0)]  # keeps each object's own jitter
                    new["hue"] = torch.remainder(table[label.clamp_min(0)] + shift, 1.0)
            else:
                number = value if isinstance(value, Tensor) else torch.tensor(float(value))  # type: ignore[arg-type]
                new[name] = _fit(number.float(), old)
        words_of(new)
        return Scenes(new, self.size, self.seed)

    def resize(self, size: int) -> Scenes:
        """The same scenes drawn at another resolution."""
        return Scenes(self.factors, size, self.seed)


def _fit(value: Tensor, old: Tensor) -> Tensor:
    value = value[:, None] if value.dim() == 1 and old.dim() == 2 else value
    return value.expand_as(old).clone()


def sample(
    n: int,
    seed: int,
    *,
    size: int = 32,
    objects: int | tuple[int, int] = 1,
    factors: Mapping[str, Choice] | None = None,
    bias: Mapping[str, object] | None = None,
    background: Choice = "flat",
    split: str = "train",
    start: int = 0,
    inside: bool = False,
) -> Scenes:
    """Draw `n` scenes of coloured, textured shapes whose every factor is known.

    n, seed     scene i depends on (seed, split, start + i) only: any part of a data set can be re-created alone
    size        16, 32, 48 or 64 pixels
    objects     how many objects do not overlap in a scene, 1..5, or a range (2, 4)
    factors     pins factors: `{"shape": "circle", "color": ["red", "blue"], "texture": {"solid": 3, "noise": 1},
                "rotation": (0, 6.28), "x": tensor}`; `{"shape*color": [("star", "red"), ...]}` allows only those pairs
    bias        planted shortcuts: `{"texture": 0.9}` (also color, background) ties the value to the shape;
                `{"pair": ("circle", "square", 0.85)}` plants company; `split="conflict"` breaks them
    background  flat, gradient, stripes, blobs, noise, a list, weights, or "any"
    inside      moves lone objects so that none is cut by the border

    >>> scenes = sample(4, seed=0)
    ... scenes.images.shape, scenes.labels("shape").shape
    (torch.Size([4, 3, 32, 32]), torch.Size([4]))
    """
    if size not in (16, 32, 48, 64):
        raise InputError(f"shapes renders at 16, 32, 48 or 64 pixels, got size={size}.")
    if n < 0:
        raise InputError(f"sample() needs n >= 0 scenes, got {n}.")
    chosen = draw(
        n,
        seed,
        start=start,
        split=split,
        objects=objects,
        factors=factors,
        bias=bias,
        background=background,
        inside=inside,
    )
    return Scenes(chosen, size, seed)


def contrast(factor: str, a: str, b: str, n: int, seed: int, **options: object) -> tuple[Scenes, Scenes]:
    """Minimal pairs: the same n scenes once with `factor` = a and once with b, all else equal.

    >>> x, y = contrast("shape", "circle", "square", n=2, seed=0)
    ... bool((x.background == y.background).all())
    True
    """
    base = sample(n, seed, **options)  # type: ignore[arg-type]
    return base.change(**{factor: a}), base.change(**{factor: b})
