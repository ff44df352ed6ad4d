"""`fmri`: visual areas that look at scenes of `shapes`, voxel by voxel, with a known noise ceiling.

Equations. F_n(p): feature maps of scene n at the cells p of a grid, each channel with unit variance.
    (1)  x_v(n) = sum_p w_v(n, p) F_n(p)         sum_p w_v(n, p) = 1, or 0 where there is nothing to look at
    (2)  signal_v(n) = z(t_v . x_v(n))           t_v: tuning, a random direction; z: mean 0, variance 1 over scenes
    (3)  response_v(n) = gain_v (signal_v(n) + sigma_v noise),  sigma_v^2 = (1 / ceiling_v^2 - 1) / repeats
A retinotopic area looks at one place: w_v is a Gaussian about it, with a centre of its own for each voxel. An
object-bound area looks at the object of one shape, wherever it is: w_v is the visible part of its mask.

Truth. `signal` Float[N V], `ceiling` Float[V] (correlation of signal and one measurement; no model can do better than
the signal does), `tuning` Float[V C], `gain` Float[V], `maps` Float[N P C], `centres` Float[V 2] (NaN where
object-bound), `object` Float[N A P] (where each object-bound area looks; zeros for the others).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.core.errors import InputError, ShapeError, did_you_mean
from interneuron.core.seeds import generator
from interneuron.organisms import shapes as sh

GRID = 8
CHANNELS = ("red-green", "blue-yellow", "luminance", "contrast", "horizontal edges", "vertical edges")


@dataclass(frozen=True)
class Area:
    """A region of voxels that look at the same thing.

    shape    the shape it is bound to, wherever the object is; "" for a retinotopic area
    place    (x, y) in units of the image side and from the top left, of a retinotopic area
    spread   width of a retinotopic voxel's Gaussian; half of it is the scatter of their centres
    """

    name: str
    voxels: int = 40
    shape: str = ""
    place: tuple[float, float] | None = None
    spread: float = 0.08

    def __post_init__(self) -> None:
        if bool(self.shape) == (self.place is not None) or self.voxels < 1:
            raise InputError(
                f"area {self.name!r}: shape={self.shape!r}, place={self.place}, {self.voxels} voxels; expected either "
                "a shape or a place, and at least one voxel. Choose one"
            )
        if self.shape and self.shape not in sh.SHAPES:
            raise InputError(
                f"area {self.name!r}: no shape {self.shape!r}.{did_you_mean(self.shape, sh.SHAPES)} "
                f"There are {', '.join(sh.SHAPES)}"
            )


AREAS = (
    Area("square area", shape="square"),
    Area("circle area", shape="circle"),
    Area("left place", place=(0.3, 0.4)),
    Area("right place", place=(0.7, 0.6)),
)


@dataclass(frozen=True)
class Recording:
    """What the simulated scanner saw: responses Float[N V] to `scenes`; area and subject of each voxel, Int[V]."""

    scenes: sh.Scenes
    responses: Tensor
    area_of_voxel: Tensor
    subject_of_voxel: Tensor
    areas: tuple[Area, ...]
    truth: dict[str, Tensor]

    def voxels(self, name: str) -> Tensor:
        """Bool[V]: the voxels of one area, over all subjects. Raises InputError for an unknown name."""
        names = [area.name for area in self.areas]
        if name not in names:
            raise InputError(f"no area {name!r} in this recording.{did_you_mean(name, names)} It has {names}")
        return self.area_of_voxel == names.index(name)


def make(
    seed: int,
    *,
    n: int = 400,
    areas: Sequence[Area] = AREAS,
    ceiling: float = 0.7,
    subjects: int = 1,
    repeats: int = 1,
    objects: tuple[int, int] = (2, 3),
) -> Recording:
    """A recording of `n` scenes, each with the shapes that areas are bound to, once."""
    bound = list(dict.fromkeys(area.shape for area in areas if area.shape))
    scenes = scenes_with(bound, n, seed, objects=objects)
    return visual(scenes, areas, seed, ceiling=ceiling, subjects=subjects, repeats=repeats)


def scenes_with(shapes: Sequence[str], n: int, seed: int, *, objects: tuple[int, int] = (2, 3), **options: Any) -> Any:
    """`n` scenes of several objects in which each of the named shapes occurs once; other options go to `sh.sample`.

    Raises InputError when more shapes are wanted than a scene has objects.
    """
    if len(set(shapes)) > objects[0]:
        raise InputError(
            f"{len(set(shapes))} shapes in scenes of {objects[0]} objects: expected as many objects at least. "
            "Raise objects="
        )
    wanted = [sh.SHAPES.index(shape) for shape in dict.fromkeys(shapes)]
    weights = {s: 6.0 if s in shapes else 1.0 for s in sh.SHAPES}
    parts: list[dict[str, Tensor]] = []
    start, found, size = 0, 0, 32
    while found < n:
        scenes = sh.sample(4 * n, seed, objects=objects, factors={"shape": weights}, start=start, **options)
        labels = scenes.labels("shape")
        fits = torch.stack([(labels == w).sum(1) == 1 for w in wanted]).all(0) if wanted else labels[:, 0] >= 0
        chosen = scenes[fits]
        parts.append(chosen.factors)
        start, found, size = start + 4 * n, found + len(chosen), scenes.size
    factors = {name: torch.cat([part[name] for part in parts])[:n] for name in parts[0]}
    return sh.Scenes(factors, size, seed)


def visual(
    scenes: sh.Scenes,
    areas: Sequence[Area],
    seed: int,
    *,
    maps: Tensor | None = None,
    ceiling: float = 0.7,
    subjects: int = 1,
    repeats: int = 1,
) -> Recording:
    """Responses of areas to scenes.

    maps      feature maps Float[N P C] over the cells of a square grid, of any network; None: `pixel_maps`
    ceiling   mean noise ceiling; voxels spread by a tenth about it
    subjects  each has all areas, with voxels tuned in their own way

    Raises:
        InputError: no areas, or a ceiling outside (0, 1].
        ShapeError: maps of other scenes, or not of a square grid.
    """
    if not areas or not 0 < ceiling <= 1 or subjects < 1 or repeats < 1 or len(scenes) < 2:
        raise InputError(
            f"{len(areas)} areas, ceiling={ceiling}, {subjects} subjects, {repeats} repeats, {len(scenes)} scenes: "
            "expected at least one area, subject and repeat, two scenes and a ceiling in (0, 1]. Change them"
        )
    maps = pixel_maps(scenes.images) if maps is None else maps.float()
    side = math.isqrt(maps.shape[1]) if maps.ndim == 3 else 0
    if maps.ndim != 3 or len(maps) != len(scenes) or side**2 != maps.shape[1]:
        raise ShapeError(
            f"maps {list(maps.shape)} for {len(scenes)} scenes: expected [N P C], P a square. Reshape them"
        )
    maps = maps / maps.flatten(0, 1).std(0).clamp_min(1e-6)
    rng = generator(seed)
    looks = torch.stack([_object(scenes, area, side) for area in areas], dim=1)
    area_of, subject_of, tuning, centres, signal = [], [], [], [], []
    for subject in range(subjects):
        for index, area in enumerate(areas):
            t = F.normalize(torch.randn(area.voxels, maps.shape[2], generator=rng), dim=1)
            centre = _centres(area, rng)
            pooled = _pooled(maps, looks[:, index], centre, area.spread, side)  # eq. 1
            signal.append(torch.einsum("nvc,vc->nv", pooled, t))
            area_of.append(torch.full((area.voxels,), index))
            subject_of.append(torch.full((area.voxels,), subject))
            tuning.append(t)
            centres.append(centre)
    clean = torch.cat(signal, dim=1)
    clean = (clean - clean.mean(0)) / clean.std(0, correction=0).clamp_min(1e-6)  # eq. 2
    v = clean.shape[1]
    ceilings = (ceiling * (1 + 0.1 * torch.randn(v, generator=rng))).clamp(0.05, 1.0)
    gain = torch.exp(0.3 * torch.randn(v, generator=rng))
    sigma = ((1 / ceilings**2 - 1) / repeats).sqrt()
    responses = gain * (clean + sigma * torch.randn(len(scenes), v, generator=rng))  # eq. 3
    return Recording(
        scenes, responses, torch.cat(area_of), torch.cat(subject_of), tuple(areas),
        {
            "signal": clean, "ceiling": 1 / (1 + sigma**2).sqrt(), "tuning": torch.cat(tuning), "gain": gain,
            "maps": maps, "centres": torch.cat(centres), "object": looks,
        },
    )  # fmt: skip


def pixel_maps(images: Tensor, side: int = GRID) -> Tensor:
    """Colour and texture of each cell of a `side` x `side` grid, from the pixels alone: Float[N P C], C = CHANNELS."""
    r, g, b = images.unbind(1)
    light = images.mean(1)
    across = F.pad((light[:, :, 1:] - light[:, :, :-1]).abs(), (0, 1))
    down = F.pad((light[:, 1:] - light[:, :-1]).abs(), (0, 0, 0, 1))
    level = F.interpolate(F.adaptive_avg_pool2d(light[:, None], side), light.shape[1:])[:, 0]
    planes = torch.stack([r - g, b - (r + g) / 2, light, (light - level) ** 2, down, across], dim=1)
    cells = F.adaptive_avg_pool2d(planes, side)
    cells[:, 3] = cells[:, 3].sqrt()
    return cells.flatten(2).transpose(1, 2)


def object_cells(scenes: sh.Scenes, shape: str, side: int = GRID) -> Tensor:
    """Share of each cell that the object of a shape covers visibly: Float[N P], zeros where there is none."""
    wanted = scenes.factors["shape"] == sh.SHAPES.index(shape)
    mask = (scenes.visible & wanted[..., None, None]).any(1).float()
    return F.adaptive_avg_pool2d(mask[:, None], side).flatten(1)


def _object(scenes: sh.Scenes, area: Area, side: int) -> Tensor:
    """Where an object-bound area looks in each scene, [N P]; zeros for a retinotopic one."""
    if not area.shape:
        return torch.zeros(len(scenes), side * side)
    cells = object_cells(scenes, area.shape, side)
    total = cells.sum(1, keepdim=True)
    return torch.where(total > 0, cells / total.clamp_min(1e-6), 0.0)


def _centres(area: Area, rng: torch.Generator) -> Tensor:
    """Where each voxel looks, [V 2]; NaN in an object-bound area."""
    if area.place is None:
        return torch.full((area.voxels, 2), math.nan)
    scatter = torch.randn(area.voxels, 2, generator=rng) * area.spread / 2
    return (torch.tensor(area.place) + scatter).clamp(0.0, 1.0)


def _pooled(maps: Tensor, look: Tensor, centre: Tensor, spread: float, side: int) -> Tensor:
    """Eq. 1 for the voxels of one area: [N V C]."""
    if bool(centre.isnan().any()):
        return torch.einsum("np,npc->nc", look, maps)[:, None].expand(-1, len(centre), -1)
    at = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(at, at, indexing="ij")
    cells = torch.stack([x, y], dim=-1).flatten(0, 1)
    weights = torch.exp(-(torch.cdist(centre, cells) ** 2) / (2 * spread**2))
    return torch.einsum("vp,npc->nvc", weights / weights.sum(1, keepdim=True), maps)
