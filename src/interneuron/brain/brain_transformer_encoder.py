"""Transformer brain encoder: areas of the brain that attend to the places of an image where they find what they need.

Paper: Adeli, Sun, Kriegeskorte: Transformer brain encoders explain human high-level visual responses (2025),
    https://arxiv.org/abs/2505.17329

Idea: a linear encoding model reads every channel at every place of a feature map. Here each area of the brain has a
    query that attends to the map, gathers one vector from the places that matter in this image, and its voxels are
    linear in that vector. Where an area looks is then read from its attention, with no further method.

Equations:
    (1)  Q <- Q + SelfAttention(norm(Q))                              Q: one learned vector an area
    (2)  T = Q + Attention(query = norm(Q), key = F + pos, value = F)  F: feature map, pos: sine code of the place
    (3)  T <- T + W_2 relu(W_1 norm(T))
    (4)  y_v = w_v . sum_r m_vr T_r + b_v                             m_vr = 1 if voxel v lies in area r
    (5)  loss = mean (y - z)^2                                        z: responses, mean 0 and variance 1 per voxel
    (6)  factorised:  y_v = w_v . sum_p softmax(s_r)_p F_p + b_v      s_r: one static map an area
    (7)  linear:      y_v = sum_p w_vp . F_p + b_v

Shapes: F [N P D], P places of a square grid; responses [N V]; areas [V] or memberships [V R]; attention [N R P].

Cost: O(P D^2 + P D R) per image and step; R and not V attention maps, about 4 (2 D^2) + 2048 D + D V parameters
    against P D V of the linear model.

Departures: channels of F are standardised on the training images. Attention is averaged over heads where it is shown.
    One query an area (a group of voxels of any kind: a hemisphere, a stream, a single voxel); there is no norm after
    the last layer, so that sizes of responses survive [inferred]. The ensemble over layers of the backbone is left to
    the caller, who may join maps along D.

Use:
    model = inn.load("vit")
    images = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = inn.brain.feature_maps(model, images, "layers.1.resid_post")
    print(inn.brain.BrainEncoder(epochs=2).fit(maps, maps[:, 3, :4], torch.tensor([0, 0, 1, 1])).attention(maps).shape)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interneuron.artifacts import Artifact, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError
from interneuron.core.progress import track
from interneuron.core.seeds import generator
from interneuron.model.model import Model

CARD = Card(
    id=158,
    slug="brain_transformer_encoder",
    family="brain",
    kind="fitter",
    exports=(
        "BrainEncoder",
        "VoxelEncoding",
        "RoiAttentionEncoder",
        "SpatialFeatureReadout",
        "LinearMapReadout",
        "feature_maps",
        "sine_code",
    ),
    paper="Transformer brain encoders explain human high-level visual responses",
    authors="Adeli, Hossein and Sun, Minni and Kriegeskorte, Nikolaus",
    year=2025,
    link="https://arxiv.org/abs/2505.17329",
    purpose="Predicts brain responses from feature maps; each area attends to the places it needs, which explains it",
    claim="Attention predicts responses to natural scenes better than linear and factorised read-outs of the same maps",
)

Readout = Literal["attention", "factorised", "linear"]


class RoiAttentionEncoder(nn.Module):
    """Eqs. 1-4: features [B P D] and the code of places [P D] -> predictions [B V] and attention [B R P].

    d              width of the features
    membership     [V R], which areas a voxel belongs to
    n_heads, depth heads and decoder layers
    """

    def __init__(
        self, d: int, membership: Float[Tensor, "V R"], n_heads: int = 16, depth: int = 1, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if d % n_heads:
            raise ShapeError(f"{n_heads} heads do not divide the width {d} of the features. Choose a divisor of {d}")
        self.register_buffer("membership", membership.float())
        self.query = nn.Parameter(torch.randn(membership.shape[1], d))
        self.layers = nn.ModuleList(_DecoderLayer(d, n_heads, dropout) for _ in range(depth))
        self.readout = nn.Linear(d, len(membership))

    def forward(self, features: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and the attention of the last layer, averaged over heads."""
        tokens = self.query.expand(len(features), -1, -1)
        attention = features.new_zeros(len(features), len(self.query), features.shape[1])
        for layer in self.layers:
            tokens, attention = layer(tokens, features, pos)
        return _read(tokens, self.membership, self.readout), attention


class SpatialFeatureReadout(nn.Module):
    """Eq. 6, the factorised baseline: a static map of places an area, then one linear read-out a voxel."""

    def __init__(self, d: int, membership: Float[Tensor, "V R"], n_places: int) -> None:
        super().__init__()
        self.register_buffer("membership", membership.float())
        self.places = nn.Parameter(torch.zeros(membership.shape[1], n_places))
        self.readout = nn.Linear(d, len(membership))

    def forward(self, features: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and the map of each area, the same for every image; `pos` is not used."""
        weights = self.places.softmax(-1)
        tokens = torch.einsum("rp,bpd->brd", weights, features)
        return _read(tokens, self.membership, self.readout), weights.expand(len(features), -1, -1)


class LinearMapReadout(nn.Module):
    """Eq. 7: every voxel reads every channel at every place. Its map is |feature| times the size of the weights."""

    def __init__(self, d: int, membership: Float[Tensor, "V R"], n_places: int) -> None:
        super().__init__()
        self.register_buffer("membership", membership.float())
        self.readout = nn.Linear(n_places * d, len(membership))

    def forward(self, features: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions, and |feature| times the root mean square weight over the voxels of each area; no `pos`."""
        weight = self.readout.weight.unflatten(1, features.shape[1:]).square()
        area = self.membership.T / self.membership.sum(0).clamp_min(1)[:, None]
        reach = torch.einsum("rv,vpd->rpd", area, weight).sqrt()
        maps = torch.einsum("rpd,bpd->brp", reach, features.abs())
        return self.readout(features.flatten(1)), maps / maps.sum(-1, keepdim=True).clamp_min(1e-12)


class _DecoderLayer(nn.Module):
    """Eqs. 1-3."""

    def __init__(self, d: int, n_heads: int, dropout: float, hidden: int = 1024) -> None:
        super().__init__()
        self.among = nn.MultiheadAttention(d, n_heads, dropout, batch_first=True)
        self.look = nn.MultiheadAttention(d, n_heads, dropout, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(3))
        self.feed = nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, d))
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, features: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        q = self.norms[0](tokens)
        tokens = tokens + self.drop(self.among(q, q, q, need_weights=False)[0])  # eq. 1
        gathered, attention = self.look(self.norms[1](tokens), features + pos, features)
        tokens = tokens + self.drop(gathered)  # eq. 2
        return tokens + self.drop(self.feed(self.norms[2](tokens))), attention  # eq. 3


class VoxelEncoding(Artifact):
    """A fitted encoding model of voxels.

    weights     parameters of the module          membership   [V R]
    mean, std   of the features, [D]              offset, size of the responses, [V]
    shown       [R P], where each area looks in the first training image
    """

    weights: dict[str, Tensor]
    membership: Tensor
    mean: Tensor
    std: Tensor
    offset: Tensor
    size: Tensor
    shown: Tensor
    readout: str = "attention"
    n_heads: int = 16
    depth: int = 1

    @property
    def n_parameters(self) -> int:
        """Number of fitted weights."""
        return sum(tensor.numel() for tensor in self.weights.values())

    def predict(self, features: Float[Tensor, "N P D"]) -> Float[Tensor, "N V"]:
        """Responses to feature maps, in the units of the responses that were fitted."""
        return self._run(features)[0] * self.size + self.offset

    def attention(self, features: Float[Tensor, "N P D"]) -> Float[Tensor, "N R P"]:
        """Where each area looks in each image; sums to 1 over places."""
        return self._run(features)[1]

    def _run(self, features: Tensor) -> tuple[Tensor, Tensor]:
        _check_maps(features)
        if features.shape[1:] != (self.shown.shape[1], len(self.mean)):
            raise ShapeError(
                f"feature maps {list(features.shape)}, expected [N, {self.shown.shape[1]}, {len(self.mean)}]: use the "
                "site and image size they were fitted on."
            )
        places = self.shown.shape[1]
        with torch.random.fork_rng(devices=[]):  # the first values of a module are drawn, though not used here
            module = _module(self.readout, len(self.mean), self.membership, places, self.n_heads, self.depth)
        module.load_state_dict({**self.weights, "membership": self.membership.float()})
        module.eval()
        pos = sine_code(features.shape[1], len(self.mean))
        with torch.no_grad():
            parts = [module((part.float() - self.mean) / self.std, pos) for part in features.split(64)]
        return torch.cat([p for p, _ in parts]), torch.cat([a for _, a in parts])

    def plot(self) -> dict[str, Any]:
        """Where the first two areas look in the first training image, side by side."""
        side = math.isqrt(self.shown.shape[1])
        maps = self.shown[:2].unflatten(1, (side, side))
        table = torch.cat(list(maps), dim=1)
        columns = [f"area {r}" if c == side // 2 else "" for r in range(len(maps)) for c in range(side)]
        return plots.heatmap("Where areas look", table, [str(i) for i in range(side)], columns, y_label="row")


@dataclass(frozen=True)
class BrainEncoder:
    """Encoding models trained on responses.

    readout   "attention" (the paper's), or the baselines "factorised" and "linear" under the same training
    n_heads, depth, dropout   of the decoder              clip   largest length of a gradient; 0 for none
    epochs, batch_size, lr, weight_decay, seed   of AdamW
    """

    readout: Readout = "attention"
    n_heads: int = 16
    depth: int = 1
    dropout: float = 0.1
    epochs: int = 15
    batch_size: int = 16
    lr: float = 5e-4
    weight_decay: float = 1e-4
    clip: float = 0.1
    seed: int = 0

    def fit(self, features: Float[Tensor, "N P D"], responses: Float[Tensor, "N V"], areas: Tensor) -> VoxelEncoding:
        """Return the encoding model of responses to images whose feature maps are given.

        areas  Int[V], the area of each voxel from 0; or memberships [V R], where voxels may lie in several areas

        Raises:
            ShapeError: maps that are no square grid, other numbers of rows or voxels, or heads that do not divide D.
            InputError: fewer than two images, or NaN or infinity.
        """
        _check_maps(features)
        membership = _membership(areas, responses)
        if responses.ndim != 2 or len(responses) != len(features) or len(features) < 2:
            raise ShapeError(
                f"{len(features)} feature maps and responses {list(responses.shape)}: expected [N V], one row a map, "
                "two at least. Align them"
            )
        if not bool(torch.isfinite(features).all() and torch.isfinite(responses).all()):
            raise InputError("features or responses hold NaN or infinity: expected finite numbers. Drop those rows")
        flat = features.float().flatten(0, 1)
        mean, std = flat.mean(0), flat.std(0).clamp_min(1e-6)
        offset, size = responses.float().mean(0), responses.float().std(0).clamp_min(1e-6)
        x, z = (features.float() - mean) / std, (responses.float() - offset) / size
        pos = sine_code(x.shape[1], x.shape[2])
        with torch.random.fork_rng(devices=[]), torch.enable_grad():  # dropout draws from the global generator only
            torch.manual_seed(self.seed)
            module = _module(self.readout, x.shape[2], membership, x.shape[1], self.n_heads, self.depth, self.dropout)
            losses = self._train(module, x, z, pos)
        module.eval()
        with torch.no_grad():
            shown = module(x[:1], pos)[1][0]
        return VoxelEncoding(
            weights={name: p.detach().clone() for name, p in module.named_parameters()},
            membership=membership, mean=mean, std=std, offset=offset, size=size, shown=shown.clone(),
            readout=self.readout, n_heads=self.n_heads, depth=self.depth, slug=CARD.slug,
            fitted={**asdict(self), "images": len(x), "losses": losses},
        )  # fmt: skip

    def _train(self, module: nn.Module, x: Tensor, z: Tensor, pos: Tensor) -> list[float]:
        """AdamW on eq. 5; the mean loss of every epoch."""
        optimizer = torch.optim.AdamW(module.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True)
        rng, losses = generator(self.seed), []
        module.train()
        for _ in track(range(self.epochs), label="brain encoder", unit="epoch"):
            total = 0.0
            for rows in _shuffled(len(x), self.batch_size, rng):
                loss = (module(x[rows], pos)[0] - z[rows]).square().mean()  # eq. 5
                optimizer.zero_grad()
                loss.backward()
                if self.clip:
                    nn.utils.clip_grad_norm_(module.parameters(), self.clip)
                optimizer.step()
                total += float(loss.detach()) * len(rows)
            losses.append(total / len(x))
        return losses


def feature_maps(
    model: Model, images: Tensor, sites: str | Sequence[str], batch_size: int = 64
) -> Float[Tensor, "N P D"]:
    """Feature maps of images at a site of a vision model, one vector a place; class and register tokens are left out.

    Maps of several sites are joined along D; smaller ones are enlarged to the grid of the largest, bilinearly.

    Raises:
        ShapeError: a site's tensor is no square map.
        SiteNotFound: the model has no such site.
    """
    names = [model.site(name).name for name in ([sites] if isinstance(sites, str) else sites)]
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            acts = model.run(images[start : start + batch_size], read=names).acts
            grids = [_grid(acts[name].float().cpu(), name) for name in names]
            side = max(grid.shape[-1] for grid in grids)
            joined = torch.cat([_enlarged(grid, side) for grid in grids], dim=1)
            parts.append(joined.flatten(2).transpose(1, 2))
    return torch.cat(parts).contiguous()


def _grid(x: Tensor, name: str) -> Float[Tensor, "B D side side"]:
    """A site's tensor as a map: [B D H W] as it is, [B T D] without its first tokens."""
    if x.ndim == 3:
        side = math.isqrt(x.shape[1])
        x = x[:, x.shape[1] - side**2 :].transpose(1, 2).unflatten(2, (side, side))
    if x.ndim != 4 or x.shape[2] != x.shape[3]:
        raise ShapeError(
            f"{name} has shape {list(x.shape)}, expected tokens [B T D] or a square map [B D H W]. Choose one"
        )
    return x


def _enlarged(grid: Tensor, side: int) -> Tensor:
    if grid.shape[-1] == side:
        return grid
    return nn.functional.interpolate(grid, (side, side), mode="bilinear", align_corners=False)


def sine_code(n_places: int, d: int) -> Float[Tensor, "P D"]:
    """Sines and cosines of the row (first half of D) and the column of each place of a square grid.

    >>> sine_code(4, 4).shape
    torch.Size([4, 4])
    """
    side, half = math.isqrt(n_places), (d + 1) // 2
    at = (torch.arange(side) + 1.0) / side * 2 * math.pi
    index = torch.arange(half)
    angle = at[:, None] / 10_000 ** (2 * (index // 2) / half)
    code = torch.where(index % 2 == 0, angle.sin(), angle.cos())
    rows, columns = code[:, None].expand(side, side, half), code[None].expand(side, side, half)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)[:, :d]


def _module(
    readout: str, d: int, membership: Tensor, n_places: int, n_heads: int, depth: int, dropout: float = 0.0
) -> nn.Module:
    if readout == "attention":
        return RoiAttentionEncoder(d, membership, n_heads, depth, dropout)
    if readout == "factorised":
        return SpatialFeatureReadout(d, membership, n_places)
    if readout == "linear":
        return LinearMapReadout(d, membership, n_places)
    raise InputError(f"readout={readout!r} is unknown: expected 'attention', 'factorised' or 'linear'. Choose one")


def _read(tokens: Tensor, membership: Tensor, readout: nn.Linear) -> Tensor:
    """Eq. 4: [B R D] -> [B V]."""
    gathered = torch.einsum("vr,brd->bvd", membership, tokens)
    return torch.einsum("bvd,vd->bv", gathered, readout.weight) + readout.bias


def _membership(areas: Tensor, responses: Tensor) -> Float[Tensor, "V R"]:
    if areas.ndim == 1 and not areas.is_floating_point() and len(areas) and int(areas.min()) >= 0:
        areas = nn.functional.one_hot(areas.long())
    if areas.ndim != 2 or responses.ndim != 2 or len(areas) != responses.shape[1] or not areas.numel():
        raise ShapeError(
            f"areas {list(areas.shape)} of responses {list(responses.shape)}: expected Int[V] from 0, or memberships "
            "[V R], with V the voxels of [N V]. Give one entry a voxel"
        )
    return areas.float()


def _check_maps(features: Tensor) -> None:
    if features.ndim != 3 or math.isqrt(features.shape[1]) ** 2 != features.shape[1] or not features.numel():
        raise ShapeError(
            f"feature maps {list(features.shape)}: expected [N P D], P the places of a square grid. Leave class tokens "
            "out, or use feature_maps()"
        )


def _shuffled(n: int, batch_size: int, rng: torch.Generator) -> Iterator[Tensor]:
    yield from torch.randperm(n, generator=rng).split(batch_size)
