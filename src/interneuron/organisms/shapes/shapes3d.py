"""Four solids in any pose: occupancy, silhouettes, depth and shaded views from any side, by ray marching.

Idea. A solid is a signed-distance field; a view follows each pixel's ray until the field is zero. All four have the
volume of the unit sphere, so neither size nor kind can be read off the other by counting voxels.

Equations. field(p) = s f_shape(R^T (p - c) / s) for pose R, scale s and centre c;
t <- t + field(o + t d) until the field is below eps; light = 0.35 + 0.65 max(0, n . l), n the gradient of the field.

Shapes. Everything lives in the cube [-1, 1]^3. A camera is a rotation Float[3 3] whose rows are right, down, forward;
the projection is orthographic. -> images Float[N 3 H W], silhouettes Bool[N H W], depth Float[N H W] (inf outside).
Cost. About 0.5 ms for a 32x32 view on one core.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError

from . import randoms
from .render import hsv_to_rgb
from .vocabulary import COLORS, HUES

SOLIDS = ("cube", "sphere", "cone", "cross")
VOLUME = 4.0 * math.pi / 3.0
_CUBE = 0.5 * VOLUME ** (1 / 3)  # half side
_CONE = (VOLUME * 3 / (1.6 * math.pi)) ** (1 / 3)  # base radius; the height is 1.6 of it
_HEIGHT = 1.6 * _CONE
_ARM = (VOLUME / (24 / 9 - 16 / 27)) ** (1 / 3)  # half length of the cross; its arms are a third as wide
_STEPS, _EPS = 40, 2e-3
_CHUNK = 64


def _box(p: Tensor, half: Tensor) -> Tensor:
    q = p.abs() - half
    return q.clamp_min(0).norm(dim=-1) + q.amax(-1).clamp_max(0)


def _cube(p: Tensor) -> Tensor:
    return _box(p, torch.full((3,), _CUBE))


def _sphere(p: Tensor) -> Tensor:
    return p.norm(dim=-1) - 1.0


def _cone(p: Tensor) -> Tensor:
    # apex at +y; the centroid, a quarter of the height above the base, is the origin
    side = torch.hypot(p[..., 0], p[..., 2]) * _HEIGHT + (p[..., 1] - 0.75 * _HEIGHT) * _CONE
    return torch.maximum(side / math.hypot(_HEIGHT, _CONE), -p[..., 1] - 0.25 * _HEIGHT)


def _cross(p: Tensor) -> Tensor:
    arm = _ARM / 3
    bars = [_box(p, torch.tensor([_ARM if i == axis else arm for i in range(3)])) for axis in range(3)]
    return torch.minimum(torch.minimum(bars[0], bars[1]), bars[2])


FIELDS: tuple[Callable[[Tensor], Tensor], ...] = (_cube, _sphere, _cone, _cross)
"""One field per name in SOLIDS: Float[... 3] -> Float[...], negative inside."""

EXTENTS = (_CUBE * math.sqrt(3), 1.0, max(0.75 * _HEIGHT, math.hypot(_CONE, 0.25 * _HEIGHT)), _ARM * math.sqrt(11) / 3)
"""Radius of a ball around the centroid that holds the solid, same order."""


@dataclass(frozen=True)
class Views:
    """images Float[N 3 H W] on black, silhouettes Bool[N H W], depth Float[N H W] along the camera's forward axis."""

    images: Tensor
    silhouettes: Tensor
    depth: Tensor


@dataclass(frozen=True)
class Solids:
    """N solids. shape Int[N], color Int[N], hue Float[N], scale Float[N], rotation Float[N 3 3], center Float[N 3]."""

    shape: Tensor
    color: Tensor
    hue: Tensor
    scale: Tensor
    rotation: Tensor
    center: Tensor

    def __len__(self) -> int:
        return len(self.shape)

    @property
    def rgb(self) -> Tensor:
        """Float[N 3]."""
        return hsv_to_rgb(self.hue, torch.full_like(self.hue, 0.85), torch.ones_like(self.hue))

    def field(self, points: Tensor) -> Tensor:
        """Signed distance of every solid at its points: Float[N ... 3] -> Float[N ...], a lower bound outside."""
        out = torch.empty(points.shape[:-1])
        for kind in self.shape.unique().tolist():
            rows = (self.shape == kind).nonzero()[:, 0]
            out[rows] = _field(kind, points[rows], self.rotation[rows], self.center[rows], self.scale[rows])
        return out

    def occupancy(self, resolution: int = 16) -> Tensor:
        """Bool[N R R R], index order x y z: is the voxel's centre inside?"""
        line = (torch.arange(resolution, dtype=torch.float32) + 0.5) * (2.0 / resolution) - 1.0
        grid = torch.cartesian_prod(line, line, line)
        parts = [
            self._rows(part).field(grid.expand(len(part), -1, 3)) for part in torch.arange(len(self)).split(_CHUNK)
        ]
        inside = torch.cat(parts) <= 0 if parts else torch.zeros(0, resolution**3, dtype=torch.bool)
        return inside.reshape(-1, resolution, resolution, resolution)

    def colored(self, resolution: int = 16) -> Tensor:
        """Float[N 4 R R R]: occupancy, then the colour of the occupied voxels."""
        filled = self.occupancy(resolution).float()[:, None]
        return torch.cat([filled, filled * self.rgb[:, :, None, None, None]], 1)

    def views(self, camera: Tensor | None = None, size: int = 32) -> Views:
        """Every solid from one camera Float[3 3] or its own Float[N 3 3] (default: along the z axis)."""
        camera = cameras("z")[0] if camera is None else camera
        if camera.shape not in ((3, 3), (len(self), 3, 3)):
            raise InputError(
                f"views(): camera has shape {tuple(camera.shape)}, expected [3, 3] or [{len(self)}, 3, 3]."
            )
        camera = camera.expand(len(self), 3, 3)
        parts = [_render(self._rows(rows), camera[rows], size) for rows in torch.arange(len(self)).split(_CHUNK)]
        empty = Views(
            torch.zeros(0, 3, size, size), torch.zeros(0, size, size, dtype=torch.bool), torch.zeros(0, size, size)
        )
        parts = parts or [empty]
        return Views(*(torch.cat([getattr(p, k) for p in parts]) for k in ("images", "silhouettes", "depth")))

    def _rows(self, rows: Tensor) -> Solids:
        return Solids(*(getattr(self, k)[rows] for k in ("shape", "color", "hue", "scale", "rotation", "center")))


def _field(kind: int, points: Tensor, rotation: Tensor, center: Tensor, scale: Tensor) -> Tensor:
    many = points.reshape(len(points), -1, 3)
    local = (many - center[:, None]) @ rotation / scale[:, None, None]  # R^T p, as rows
    return (FIELDS[kind](local) * scale[:, None]).reshape(points.shape[:-1])


def _rays(kind: int, p: Tensor, solids: Solids, owner: Tensor) -> Tensor:
    """The field at points Float[M 3] that belong to different solids of one kind."""
    local = torch.einsum("mi,mij->mj", p - solids.center[owner], solids.rotation[owner]) / solids.scale[owner, None]
    return FIELDS[kind](local) * solids.scale[owner]


def _render(solids: Solids, camera: Tensor, size: int) -> Views:
    n = len(solids)
    line = (torch.arange(size, dtype=torch.float32) + 0.5) * (2.0 / size) - 1.0
    y, x = torch.meshgrid(line, line, indexing="ij")
    depth = torch.full((n, size * size), torch.inf)
    light = torch.zeros(n, size * size)
    reach = solids.scale * torch.tensor(EXTENTS)[solids.shape]
    middle = torch.einsum("nij,nj->ni", camera, solids.center)  # the centres in camera coordinates
    off = torch.stack([x.flatten() - middle[:, :1], y.flatten() - middle[:, 1:2]], -1).square().sum(-1)
    near = off < reach[:, None].square()
    for kind in solids.shape.unique().tolist():
        owner, pixel = (near & (solids.shape == kind)[:, None]).nonzero(as_tuple=True)
        forward = camera[owner, 2]
        base = x.flatten()[pixel, None] * camera[owner, 0] + y.flatten()[pixel, None] * camera[owner, 1]
        half = (reach[owner].square() - off[owner, pixel]).clamp_min(0).sqrt()
        t, end = middle[owner, 2] - half, middle[owner, 2] + half
        gap, live = torch.full_like(t, torch.inf), torch.arange(len(t))
        for _ in range(_STEPS):
            gap[live] = _rays(kind, base[live] + t[live, None] * forward[live], solids, owner[live])
            live = live[(gap[live] >= _EPS) & (t[live] + gap[live] <= end[live])]
            if not len(live):
                break
            t[live] = t[live] + gap[live]
        hit = gap < _EPS
        where = base[hit] + t[hit, None] * forward[hit]
        depth[owner[hit], pixel[hit]] = t[hit]
        light[owner[hit], pixel[hit]] = _lambert(kind, where, solids, owner[hit], camera)
    images = (light[:, None] * solids.rgb[:, :, None]).reshape(n, 3, size, size)
    return Views(images, depth.isfinite().reshape(n, size, size), depth.reshape(n, size, size))


def _lambert(kind: int, p: Tensor, solids: Solids, owner: Tensor, camera: Tensor) -> Tensor:
    """Brightness at surface points: the light shines over the camera's left shoulder."""
    step = 1e-2
    slope = torch.stack(
        [_rays(kind, p + step * e, solids, owner) - _rays(kind, p - step * e, solids, owner) for e in torch.eye(3)], -1
    )
    normal = torch.nn.functional.normalize(slope, dim=-1)
    source = torch.nn.functional.normalize(torch.tensor([-0.4, -0.6, -1.0]), dim=0)
    toward = torch.einsum("i,nij->nj", source, camera)[owner]
    return 0.35 + 0.65 * (normal * toward).sum(-1).clamp_min(0)


def cameras(kind: str = "axes", n: int = 3, seed: int = 0) -> Tensor:
    """Cameras Float[V 3 3]: "axes" looks along x, y and z; "x", "y" or "z" along one; "random" is `n` uniform ones."""
    eye = torch.eye(3)
    along = {"x": eye[[2, 1, 0]] * torch.tensor([[-1.0], [1.0], [1.0]]), "y": eye[[0, 2, 1]], "z": eye}
    along["y"] = along["y"] * torch.tensor([[1.0], [-1.0], [1.0]])  # right, down, forward stay right-handed
    if kind == "axes":
        return torch.stack([along[k] for k in "xyz"])
    if kind == "random":
        return rotations(torch.arange(n), randoms.key(seed, "cameras"))
    if kind not in along:
        raise InputError(f"cameras(): {kind!r} is unknown; expected axes, x, y, z or random.")
    return along[kind][None]


def rotations(index: Tensor, key: int) -> Tensor:
    """Uniform rotation matrices, one for each address: Int[N] -> Float[N 3 3] (random unit quaternions)."""
    u, a, b = (randoms.uniform(randoms.key(key, i), index) for i in range(3))
    a, b = 2 * math.pi * a, 2 * math.pi * b
    low, high = (1 - u).sqrt(), u.sqrt()
    w, x, y, z = low * torch.sin(a), low * torch.cos(a), high * torch.sin(b), high * torch.cos(b)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def shapes3d(n: int, seed: int, *, split: str = "train", scale: tuple[float, float] = (0.3, 0.5)) -> Solids:
    """`n` solids: kind, colour, scale, pose and centre independent and uniform; solid i depends on (seed, split, i).

    >>> solids = shapes3d(4, seed=0)
    ... solids.occupancy(16).shape, solids.views(cameras("x")[0]).images.shape
    (torch.Size([4, 16, 16, 16]), torch.Size([4, 3, 32, 32]))
    """
    if n < 0 or not 0.0 < scale[0] <= scale[1] <= 0.55:
        raise InputError(f"shapes3d() needs n >= 0 and 0 < scale <= 0.55 (it must fit the cube), got {n} and {scale}.")
    index = torch.arange(n)
    u = [randoms.uniform(randoms.key(seed, split, "solid", i), index) for i in range(7)]
    color = (u[1] * len(COLORS)).long().clamp_(max=len(COLORS) - 1)
    center = (torch.stack(u[4:7], 1) - 0.5) * 0.16
    return Solids(
        (u[0] * len(SOLIDS)).long().clamp_(max=len(SOLIDS) - 1),
        color,
        torch.remainder(torch.tensor(HUES)[color] + 0.036 * (u[2] - 0.5), 1.0),
        scale[0] + (scale[1] - scale[0]) * u[3],
        rotations(index, randoms.key(seed, split, "pose")),
        center,
    )
