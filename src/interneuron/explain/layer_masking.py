"""Layer masking: take image regions away from a convolutional network without putting a colour in their place.

Paper: Balasubramanian, Feizi: Towards Improved Input Masking for Convolutional Neural Networks (ICCV 2023),
    https://arxiv.org/abs/2211.14646.

Idea: a region painted black or grey is not missing, it shows a black or grey thing with an outline. Here the mask
    travels with the activations through every layer. In front of each convolution the kept content is continued
    outward, so that no edge stands at the outline, and the average over positions counts the valid ones only.

Equations, for activations x and mask m (1 = keep), box = sum over a 3 x 3 window:
    (1)  x <- x m;  k times: x <- x + (1 - m') box(x) / (box(m') + 1e-5),  m' <- min(m' + box(m'), 1)    k: kernel width
    (2)  y = conv(x) m_out,  m_out = maxpool(m) of the convolution's kernel, stride, padding and dilation
    (3)  norm, activation: y = f(x) m;  max-pool: m_out = maxpool(m);  average-pool: m_out = [avgpool(m) > 0]
    (4)  average over all positions: mean(x m) / (mean(m) + 1e-8)
    (5)  LIME: min_beta sum_j pi_j (p_j - b - z_j beta)^2 + penalty |beta|^2,
         pi_j = exp(-(1 - cos(z_j, 1))^2 / width^2)

Shapes: x [B C H W], mask [B 1 H W] or [1 1 H W], segments Int[H W] with values 0..S-1, weights of LIME [S].

Cost: about k box sums for each convolution on top of the plain pass, while any of its mask is 0.

Departures: the context manager is called `masked_layers`, since the module has the method's own name. The mask of a sum
    of branches is their union, which is the main branch's [inferred]. Functions that are not modules cannot be edited:
    after one the mask is the union of all masks of that size in this pass, resampled when the size is new, and a
    functional average over all positions is corrected at the linear layer that follows (flattened maps are not). The
    fill carries no gradient. Segments are squares of a grid or the caller's own (of SLIC, for example), and the ridge
    regression is solved in closed form. Layers the equations do not name (layer norm, transposed convolution) run as
    they are, and the next convolution masks what they give.

Use:
    model, x = inn.load("cnn"), torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with inn.explain.masked_layers(model, (torch.arange(32) < 16).expand(1, 1, 32, 32)): model(x)
    weights = inn.explain.lime(model, x, inn.explain.grid_segments(32, 32, cell=8), masker="layer", n=40)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from interneuron.artifacts import Report, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError, UnsupportedModel, did_you_mean
from interneuron.core.seeds import generator
from interneuron.model.edits import Apply, Edit
from interneuron.model.model import Model

CARD = Card(
    id=60,
    slug="layer_masking",
    family="explain",
    kind="aid",
    exports=("masked_layers", "masked_logits", "lime", "lime_report", "grid_segments"),
    paper="Towards Improved Input Masking for Convolutional Neural Networks",
    authors="Balasubramanian, Sriram and Feizi, Soheil",
    year=2022,
    link="https://arxiv.org/abs/2211.14646",
    purpose="Remove image regions inside a convolutional network, so that no fill colour or outline becomes evidence",
    claim="Mask colour and shape sway predictions far less than with black or grey filling; LIME explains better",
)

MASKERS = ("layer", "black", "grey", "mean", "blur")
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_POINTWISE = (
    *_NORMS, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.PReLU,
)  # fmt: skip
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@contextmanager
def masked_layers(model: Model, mask: Tensor) -> Iterator[None]:
    """Inside this context `model(x)` sees only where `mask` is 1; the network's own modules run, edited at their sites.

    mask    [B 1 H W] of 0 and 1 (or booleans), 1 = keep; [1 1 H W] serves a batch of any size

    Raises:
        ShapeError: the mask does not fit the images.
        InputError: the mask holds other values than 0 and 1, or batch norm is in training mode.
        UnsupportedModel: the model has no convolution.
        SiteDidNotFire: a layer was never reached (the model was not run, or has an unused branch).
    """
    carried = _Carried(_checked(mask))
    with model.edit(*_edits(model, carried)):
        yield


def masked_logits(
    model: Model,
    x: Float[Tensor, "B channel height width"],
    mask: Tensor,
    masker: str | float | Tensor = "layer",
    batch_size: int = 128,
) -> Float[Tensor, "N C"]:
    """Logits of images whose masked-out part was removed; one image under many masks, or one mask per image.

    masker  "layer"; a fill for images in [0, 1]: "black", "grey", "mean" (the image's own colour), "blur"; or the fill
            itself, a number or [C] in the units of x
    """
    if isinstance(masker, str) and masker not in MASKERS:
        raise InputError(
            f"masker={masker!r} is unknown, expected one of {', '.join(MASKERS)}, or a colour."
            f"{did_you_mean(masker, MASKERS)} Name one of these"
        )
    mask = _checked(mask)
    n = max(len(x), len(mask))
    if x.ndim != 4 or not n or len(x) not in (1, n) or len(mask) not in (1, n) or x.shape[2:] != mask.shape[2:]:
        raise ShapeError(
            f"images of shape {tuple(x.shape)} and masks of shape {tuple(mask.shape)}: expected [B C H W] and "
            "[B 1 H W] of the same size. Give one mask per image, or one image for all masks"
        )
    x, mask = x.expand(n, *x.shape[1:]), mask.to(x.device).expand(n, *mask.shape[1:])
    found = []
    for start in range(0, n, batch_size):
        image, keep = x[start : start + batch_size], mask[start : start + batch_size]
        if masker == "layer":
            with masked_layers(model, keep):
                output = model(image)
        else:
            output = model(torch.where(keep > 0, image, _fill(image, masker)))
        found.append(output if isinstance(output, Tensor) else output.logits)
    return torch.cat(found)


def lime(
    model: Model,
    x: Float[Tensor, "1 channel height width"],
    segments: Int[Tensor, "height width"],
    masker: str | float | Tensor = "layer",
    n: int = 500,
    target: int | None = None,
    penalty: float = 1.0,
    width: float = 0.25,
    seed: int = 0,
    batch_size: int = 128,
) -> Float[Tensor, " S"]:
    """How much each segment raises the probability of `target` (by default the predicted class); weights of LIME [S].

    Raises:
        InputError: fewer than two masks, or segments that are not whole numbers from 0.
        ShapeError: not one image, or segments of another size.
    """
    if segments.is_floating_point() or not segments.numel() or int(segments.min()) < 0:
        raise InputError(f"segments are {segments.dtype}: expected whole numbers from 0 on. See grid_segments")
    if x.ndim != 4 or len(x) != 1 or segments.shape != x.shape[2:]:
        raise ShapeError(
            f"an image of shape {tuple(x.shape)} and segments of shape {tuple(segments.shape)}: expected [1 C H W] and "
            "[H W]. Explain one image at a time"
        )
    if n < 2 or penalty <= 0 or width <= 0:
        raise InputError(f"lime with n={n}, penalty={penalty}, width={width}: expected n >= 2 and the others > 0")
    z = torch.rand(n, int(segments.max()) + 1, generator=generator(seed)) < 0.5
    z[0] = True
    mask = z[:, segments.cpu()][:, None].to(x.device)
    with torch.no_grad():
        p = masked_logits(model, x, mask, masker, batch_size).double().softmax(-1).cpu()
    target = int(p[0].argmax()) if target is None else target
    return _weighted_ridge(z.double(), p[:, target], _nearness(z.double(), width), penalty).to(x)


def lime_report(
    model: Model,
    x: Float[Tensor, "1 channel height width"],
    segments: Int[Tensor, "height width"],
    masker: str | float | Tensor = "layer",
    **options: Any,
) -> Report:
    """The weights of `lime` (same options) with a picture of where they lie on the image."""
    weights = lime(model, x, segments, masker, **options)
    painted = weights[segments][None, None].float()
    sides = (min(segments.shape[0], 16), min(segments.shape[1], 16))
    picture = F.adaptive_avg_pool2d(painted, sides)[0, 0]
    title = "Weight of each image region (LIME, layer masking)" if masker == "layer" else "Weight of each image region"
    names = [[str(i * full // side) for i in range(side)] for side, full in zip(sides, segments.shape, strict=True)]
    return Report(
        title=title,
        slug=CARD.slug,
        fingerprint=model.fingerprint,
        numbers={"segments": len(weights), "largest weight": float(weights.max()), "segment": int(weights.argmax())},
        arrays={"weights": weights.cpu(), "segments": segments.cpu()},
        plots={"weights": plots.heatmap(title, picture, *names, x_label="pixel", y_label="pixel")},
    )


def grid_segments(height: int, width: int, cell: int) -> Int[Tensor, "height width"]:
    """Squares of `cell` pixels, numbered row by row; those at the right and lower border may be smaller."""
    if min(height, width, cell) < 1:
        raise InputError(f"grid_segments({height}, {width}, cell={cell}): expected numbers >= 1")
    row, column = torch.arange(height) // cell, torch.arange(width) // cell
    return row[:, None] * -(-width // cell) + column


class _Carried:
    """The masks of one pass: by tensor where a module made it, else the union of all masks of that height and width."""

    def __init__(self, mask: Tensor) -> None:
        self.start = mask
        self.first: str | None = None
        self.averaged = False
        self.channels = 0

    def arrive(self, name: str, x: Tensor) -> Tensor:
        """The mask of the input x of module `name`; the first module of a pass starts anew."""
        if self.first in (None, name):
            self._restart(name, x)
        known = self.known.get(x)
        if known is not None and known[1] == _version(x):
            return known[0].to(x.dtype)
        size = (x.shape[2], x.shape[3])
        if size not in self.seen:
            grown = size[0] <= self.latest.shape[2] and size[1] <= self.latest.shape[3]
            self.latest = F.adaptive_max_pool2d(self.latest, size) if grown else F.interpolate(self.latest, size)
            self.seen[size] = self.latest
        return self.seen[size].to(x.dtype)

    def leave(self, y: Tensor, mask: Tensor) -> None:
        """Note the mask of what a module gave."""
        size = (y.shape[2], y.shape[3])
        self.known[y] = (mask, _version(y))
        self.seen[size] = torch.maximum(self.seen[size], mask.float()) if size in self.seen else mask.float()
        self.latest, self.channels, self.averaged = self.seen[size], y.shape[1], False

    def _restart(self, name: str, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[2:] != self.start.shape[2:] or len(self.start) not in (1, len(x)):
            raise ShapeError(
                f"masked_layers: a mask of shape {tuple(self.start.shape)} and images of shape {tuple(x.shape)} at "
                f"{name!r}: expected [B 1 H W] of the same size. Resize the mask to what the network is given"
            )
        self.first = name
        self.latest = self.start.to(x.device).expand(len(x), *self.start.shape[1:])
        self.seen: dict[tuple[int, int], Tensor] = {(x.shape[2], x.shape[3]): self.latest}
        self.known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.averaged = False


def _edits(model: Model, carried: _Carried) -> list[Edit]:
    """An edit before and one behind every layer the equations name."""
    found: list[Edit] = []
    convolutions = 0
    for name, module in model.module.named_modules():
        if isinstance(module, _NORMS) and module.training:
            raise InputError(f"masked_layers: {name!r} is in training mode, expected eval. Call model.module.eval()")
        if isinstance(module, nn.Linear):
            found.append(Apply(f"{name}:in", _at_linear(module, carried)))
        elif isinstance(module, (nn.Conv2d, *_POINTWISE, *_POOLS)):
            convolutions += isinstance(module, nn.Conv2d)
            before, behind = _around(name, module, carried)
            found += [Apply(f"{name}:in", before), Apply(f"{name}:out", behind)]
    if not convolutions:
        raise UnsupportedModel(
            f"masked_layers: {type(model.module).__name__} has no nn.Conv2d, expected a convolutional network. "
            "Drop the tokens of masked patches of a transformer instead"
        )
    return found


def _around(name: str, module: nn.Module, carried: _Carried) -> tuple[Callable[[Tensor], Tensor], ...]:
    here: dict[str, Tensor] = {}

    def before(x: Tensor) -> Tensor:
        if x.ndim != 4:
            return x  # a layer behind the last map
        mask = here["mask"] = carried.arrive(name, x)
        if isinstance(module, _POINTWISE) or bool(mask.all()):
            return x
        return _continue(x, mask, max(module.kernel_size)) if isinstance(module, nn.Conv2d) else x * mask

    def behind(y: Tensor) -> Tensor:
        if y.ndim != 4 or "mask" not in here:
            return y
        mask = here.pop("mask")
        if _averages_all(module, mask, y):
            y = y / (mask.mean((2, 3), keepdim=True) + 1e-8)  # eq. 4
            carried.leave(y, torch.ones_like(mask[:, :, :1, :1]))
            carried.averaged = True
            return y
        mask = _next_mask(module, mask)
        if not bool(mask.all()):
            y = y * mask
        carried.leave(y, mask)
        return y

    return before, behind


def _at_linear(module: nn.Linear, carried: _Carried) -> Callable[[Tensor], Tensor]:
    def before(x: Tensor) -> Tensor:
        if x.ndim != 2 or carried.first is None or carried.averaged or module.in_features != carried.channels:
            return x
        carried.averaged = True
        return x / (carried.latest.mean((2, 3)) + 1e-8).to(x.dtype)  # eq. 4, where the average itself was no module

    return before


def _averages_all(module: nn.Module, mask: Tensor, y: Tensor) -> bool:
    return isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d) and y.shape[2:] == (1, 1) and mask[0].numel() > 1


def _continue(x: Tensor, mask: Tensor, k: int) -> Tensor:
    """Kept content continued outward by k pixels (eq. 1); no gradient flows through what is added."""
    kept = x * mask
    filled = kept.detach()
    for _ in range(k):
        if bool(mask.all()):
            break
        count = _box(mask)
        filled = filled + (1 - mask) * _box(filled) / (count + 1e-5)
        mask = (mask + count).clamp(0, 1)
    return kept + (filled - kept.detach())


def _box(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, divisor_override=1)


def _next_mask(module: nn.Module, mask: Tensor) -> Tensor:
    """The mask of a layer's output (eq. 2 and 3)."""
    if isinstance(module, nn.Conv2d):
        return F.max_pool2d(F.pad(mask, _padding(module)), module.kernel_size, module.stride, dilation=module.dilation)
    if isinstance(module, _POINTWISE):
        return mask
    pooled = module.forward(mask)  # called as a function: its own edits must not run on the mask
    return ((pooled[0] if isinstance(pooled, tuple) else pooled) > 0).to(mask.dtype)


def _padding(module: nn.Conv2d) -> Sequence[int]:
    """Left, right, top and bottom: what the convolution adds around its input."""
    if isinstance(module.padding, str):
        if module.padding == "valid":
            return (0, 0, 0, 0)
        spread = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return (spread[1] // 2, spread[1] - spread[1] // 2, spread[0] // 2, spread[0] - spread[0] // 2)
    high, wide = module.padding
    return (wide, wide, high, high)


def _fill(x: Tensor, masker: str | float | Tensor) -> Tensor:
    """What a colour baseline puts in place of the removed part."""
    if masker == "blur":
        soft = x
        for _ in range(3):  # three boxes are close to a Gaussian
            soft = F.avg_pool2d(F.pad(soft, (3, 3, 3, 3), mode="replicate"), 7, stride=1)
        return soft
    if masker == "mean":
        return x.mean((2, 3), keepdim=True)
    value = {"black": 0.0, "grey": 0.5}[masker] if isinstance(masker, str) else masker
    return torch.as_tensor(value, dtype=x.dtype, device=x.device).reshape(1, -1, 1, 1)


def _nearness(z: Tensor, width: float) -> Tensor:
    """Weight of each sample by its cosine distance to the whole image (eq. 5)."""
    return torch.exp(-((1 - z.mean(1).sqrt()) ** 2) / width**2)


def _weighted_ridge(z: Tensor, p: Tensor, weight: Tensor, penalty: float) -> Tensor:
    """beta of eq. 5; the intercept is not penalised."""
    share = weight / weight.sum()
    z, p = z - share @ z, p - share @ p
    gram = z.T @ (weight[:, None] * z) + penalty * torch.eye(z.shape[1], dtype=z.dtype)
    return torch.linalg.solve(gram, z.T @ (weight * p))


def _checked(mask: Tensor) -> Tensor:
    if mask.ndim != 4 or mask.shape[1] != 1 or not mask.numel():
        raise ShapeError(
            f"a mask of shape {tuple(mask.shape)}: expected [B 1 H W], 1 = keep. Add axes with mask[:, None]"
        )
    mask = mask.float()
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError("a mask with values other than 0 and 1: expected 1 = keep, 0 = remove. Threshold it first")
    return mask


def _version(x: Tensor) -> int:
    return -1 if x.is_inference() else x._version  # an in-place sum of branches is another tensor
