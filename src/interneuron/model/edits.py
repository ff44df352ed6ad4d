"""Edits: values that rewrite the tensor at a site. They compose, scale, restrict, save and load.

Every edit is a map x -> f(x) on the site's tensor, restricted by `.at(...)` to a part of it and by `.when(gate)` to
the positions the gate opens. Strength s interpolates: x + s * (f(x) - x); s = 0 leaves every bit as it was. In a list
of edits the first is applied first; outer contexts come before inner ones; all edits come before any read.

The vectors of an edit are moved to the device of the site they act on. Arithmetic runs in the wider of the two dtypes
and is rounded once to the dtype of the site.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from interneuron.core.errors import EditError, ShapeError
from interneuron.model.selection import Selection
from interneuron.model.sites import Site

Gate = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """Base of all edits: a site (name, alias, module path or glob), and what to do with the tensor there."""

    site: str | Site

    # Set by .at(), .when() and multiplication, not by constructors.
    selection: Selection = dataclasses.field(default=Selection(), kw_only=True)
    gate: Gate | None = dataclasses.field(default=None, kw_only=True)
    strength: float = dataclasses.field(default=1.0, kw_only=True)

    def transform(self, x: Tensor, place: Place) -> Tensor:
        """f(x): the rewritten tensor, shaped like x."""
        raise NotImplementedError

    def at(self, **spec: Any) -> Edit:
        """Restrict by axis name: `edit.at(pos=-1, head=[0, 3], row=1, phase="generated")`."""
        return dataclasses.replace(self, selection=self.selection.merge(spec))

    def when(self, gate: Gate) -> Edit:
        """Apply only where `gate(x)` is true; the gate returns booleans of shape [B], [B T] or x's own shape."""
        if not callable(gate):
            raise EditError(f"a gate must be callable, got {type(gate).__name__}: pass Above(direction, threshold).")
        if self.gate is not None:
            raise EditError(f"{self.kind} at {self.site!r} already has a gate: combine both conditions in one gate.")
        return dataclasses.replace(self, gate=gate)

    def __mul__(self, factor: float) -> Edit:
        return dataclasses.replace(self, strength=_number(self.strength * float(factor), "the strength"))

    __rmul__ = __mul__

    def __add__(self, other: Edit | Edits) -> Edits:
        return Edits((self,)) + other

    def __radd__(self, other: Any) -> Edits:  # sum() begins with 0
        return Edits((self,)) if isinstance(other, int) and other == 0 else Edits(as_edits(other)) + self

    @property
    def kind(self) -> str:
        """Name of the operation, as it is saved."""
        return type(self).__name__

    def save(self, path: Any) -> None:
        """Write the edit to a folder (safetensors + JSON); `inn.load_edit` reads it back."""
        Edits((self,)).save(path)


class Edits(tuple[Edit, ...]):
    """Several edits in order, made by `e1 + e2`; every edit acts in turn on what the former left."""

    def __add__(self, other: Any) -> Edits:  # ty: tuple.__add__ is wider
        return Edits((*self, *as_edits(other)))

    def __mul__(self, factor: Any) -> Edits:
        return Edits(edit * factor for edit in self)

    __rmul__ = __mul__

    def __radd__(self, other: Any) -> Edits:
        return Edits((*as_edits(None if isinstance(other, int) and other == 0 else other), *self))

    def at(self, **spec: Any) -> Edits:
        """Restrict every edit; see `Edit.at`."""
        return Edits(edit.at(**spec) for edit in self)

    def when(self, gate: Gate) -> Edits:
        """Gate every edit; see `Edit.when`."""
        return Edits(edit.when(gate) for edit in self)

    def save(self, path: Any) -> None:
        """Write the edits to a folder (safetensors + JSON)."""
        from interneuron.model.edit_files import save_edits

        save_edits(self, path)


def as_edits(value: Any) -> tuple[Edit, ...]:
    """Flatten an edit, a sum of edits or a list of them into a tuple, or raise EditError."""
    if value is None:
        return ()
    if isinstance(value, Edit):
        return (value,)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(edit for item in value for edit in as_edits(item))
    if hasattr(value, "edit"):
        raise EditError(f"expected an Edit, got {type(value).__name__}: call its .edit(...) to make one.")
    raise EditError(f"expected an Edit or a list of edits, got {type(value).__name__}: use e.g. inn.Add(site, v).")


class Place:
    """What an edit may need to know of the tensor it acts on: its name and axes, and how a value for a part is laid."""

    __slots__ = ()
    name: str

    @property
    def axes(self) -> tuple[str, ...]:
        """Axis names of the tensor."""
        raise NotImplementedError

    def align(self, x: Tensor, value: Tensor) -> Tensor:
        """A value given for the site or its selected part, laid out to broadcast against x. Raises ShapeError."""
        raise NotImplementedError

    def real(self) -> Tensor | None:
        """Booleans that broadcast against the tensor, false at padding; None when it has no positions."""
        raise NotImplementedError


def _vector(value: Any, what: str) -> Tensor:
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise EditError(f"{what} is a {type(value).__name__}: expected a tensor or numbers.") from None
    if not value.is_floating_point():
        value = value.float()
    if not bool(torch.isfinite(value).all()):
        raise EditError(f"{what} holds NaN or infinity: expected finite numbers. Check how it was computed.")
    return value


def _number(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise EditError(f"{what} is {value}: expected a finite number. Check how it was computed.")
    return value


@dataclasses.dataclass(frozen=True, eq=False)
class Add(Edit):
    """x + alpha * vector.

    vector: [D], or shaped like the selected part of the site (any leading axes broadcast).
    """

    vector: Tensor
    alpha: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector", _vector(self.vector, "the vector of Add"))
        _number(self.alpha, "the alpha of Add")

    def __mul__(self, factor: float) -> Edit:  # exact: scales alpha instead of interpolating
        return dataclasses.replace(self, alpha=self.alpha * float(factor))

    __rmul__ = __mul__

    def transform(self, x: Tensor, place: Place) -> Tensor:
        if self.alpha == 0:
            return x
        y = torch.add(x, place.align(x, self.vector), alpha=self.alpha)
        return y if y.dtype == x.dtype else y.to(x.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Scale(Edit):
    """factor * x; the factor is a number, or a tensor that broadcasts against the selected part."""

    factor: float | Tensor

    def __post_init__(self) -> None:
        if isinstance(self.factor, Tensor):
            _vector(self.factor, "the factor of Scale")
        else:
            _number(self.factor, "the factor of Scale")

    def transform(self, x: Tensor, place: Place) -> Tensor:
        factor = place.align(x, self.factor) if isinstance(self.factor, Tensor) else self.factor
        return (x * factor).to(x.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Replace(Edit):
    """value in place of x, where value is shaped like the whole site or like the selected part of it."""

    value: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.value, Tensor):
            object.__setattr__(self, "value", torch.as_tensor(self.value))

    def transform(self, x: Tensor, place: Place) -> Tensor:
        return place.align(x, self.value).expand_as(x).to(x.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Ablate(Edit):
    """Remove what a site says.

    how="zero"      0
    how="mean"      `value` (a mean taken over data), or, without one, the mean over batch and positions of this pass
    how="resample"  `value` (the site's tensor on other inputs), or, without one, the next row of this batch
    """

    how: str = "zero"
    value: Tensor | None = None

    def __post_init__(self) -> None:
        if self.how not in ("zero", "mean", "resample"):
            raise EditError(f"Ablate(how={self.how!r}) is unknown: expected 'zero', 'mean' or 'resample'.")
        if self.how == "zero" and self.value is not None:
            raise EditError("Ablate(how='zero') takes no value, it would be ignored: use how='mean' or Replace.")

    def transform(self, x: Tensor, place: Place) -> Tensor:
        if self.how == "zero":
            return torch.zeros_like(x)
        if self.value is not None:
            return place.align(x, self.value).expand_as(x).to(x.dtype)
        if self.how == "mean":
            return self._mean(x, place)
        if x.shape[0] < 2:
            raise EditError(
                f"Ablate(how='resample') at {place.name} has a batch of 1 and no value: "
                "give value= from other inputs, or run at least two rows."
            )
        return x.roll(1, dims=0)

    def _mean(self, x: Tensor, place: Place) -> Tensor:
        dims = [i for i, axis in enumerate(place.axes) if axis in ("batch", "pos", "query")] or [0]
        real = place.real()
        count = math.prod(x.shape[i] for i in dims) if real is None else int(real.expand(*x.shape).sum(dims).max())
        if count < 2:
            raise EditError(
                f"Ablate(how='mean') at {place.name} averages over one position of this pass, which is no change: "
                "give value= from other inputs (during generation a pass holds one new token)."
            )
        wide = torch.promote_types(x.dtype, torch.float32)
        total = (x if real is None else torch.where(real, x, 0)).sum(dims, keepdim=True, dtype=wide)
        return (total / count).to(x.dtype).expand_as(x)


@dataclasses.dataclass(frozen=True, eq=False)
class Project(Edit):
    """Remove (keep=False) or keep (keep=True) the span of `basis` along the last axis: x - xQQ' or xQQ'.

    basis: [D] or [k, D], any independent rows; Q is their orthonormal basis, computed in float64.
    """

    basis: Tensor
    keep: bool = False

    def __post_init__(self) -> None:
        basis = _vector(self.basis, "the basis of Project")
        basis = basis[None] if basis.ndim == 1 else basis
        if basis.ndim != 2:
            raise ShapeError(f"the basis of Project has shape {tuple(basis.shape)}: expected [D] or [k, D].")
        object.__setattr__(self, "basis", basis)
        if not basis.numel():
            raise ShapeError(f"the basis of Project has shape {tuple(basis.shape)}: expected at least one row.")
        left, values, right = torch.linalg.svd(basis.detach().double(), full_matrices=False)
        if len(basis) > basis.shape[1] or float(values[-1]) <= 1e-7 * float(values[0]):
            raise EditError(
                f"the {len(basis)} rows of the basis of Project are not independent (width {basis.shape[1]}): "
                "drop zero rows and those that repeat others."
            )
        object.__setattr__(self, "_q", (left @ right).to(torch.promote_types(basis.dtype, torch.float32)))

    def transform(self, x: Tensor, place: Place) -> Tensor:
        q = self._q.to(x.device)  # pyrefly: ignore[missing-attribute]
        check_width(x, q.shape[-1], place.name, "basis")
        wide = x.to(torch.promote_types(x.dtype, q.dtype))
        q = q.to(wide.dtype)
        inside = (wide @ q.T) @ q
        return (inside if self.keep else wide - inside).to(x.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Clamp(Edit):
    """Set the coordinate of x along the unit direction u to `value`: x + (value - x.u) u."""

    direction: Tensor
    value: float | Tensor

    def __post_init__(self) -> None:
        direction = _vector(self.direction, "the direction of Clamp")
        if direction.ndim != 1 or float(direction.norm()) == 0:
            raise ShapeError(f"the direction of Clamp has shape {tuple(direction.shape)}: expected a non-zero [D].")
        object.__setattr__(self, "direction", direction)
        if isinstance(self.value, Tensor):
            _vector(self.value, "the value of Clamp")
        else:
            _number(self.value, "the value of Clamp")

    def transform(self, x: Tensor, place: Place) -> Tensor:
        u = self.direction.to(x.device)
        check_width(x, u.shape[-1], place.name, "direction")
        wide = x.to(torch.promote_types(x.dtype, u.dtype))
        u = u.to(wide.dtype) / u.norm()
        target = self.value
        if isinstance(target, Tensor):  # one value for every vector of the site, or of its selected part
            target = target.to(wide) if target.ndim == 0 else place.align(x, target[..., None]).to(wide)[..., 0]
        return (wide + (target - wide @ u)[..., None] * u).to(x.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Transport(Edit):
    """An affine map of the last axis: x W' + b, with weight [D, D] (or [D], a diagonal) and bias [D] or None."""

    weight: Tensor
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        weight = _vector(self.weight, "the weight of Transport")
        if weight.ndim not in (1, 2) or weight.shape[0] != weight.shape[-1]:
            raise ShapeError(f"the weight of Transport has shape {tuple(weight.shape)}: expected [D, D] or [D].")
        object.__setattr__(self, "weight", weight)
        if self.bias is not None:
            bias = _vector(self.bias, "the bias of Transport")
            if bias.shape != weight.shape[:1]:
                raise ShapeError(f"the bias of Transport has shape {tuple(bias.shape)}: expected [{len(weight)}].")
            object.__setattr__(self, "bias", bias)

    def transform(self, x: Tensor, place: Place) -> Tensor:
        weight = self.weight.to(x.device)
        check_width(x, weight.shape[-1], place.name, "weight")
        wide = x.to(torch.promote_types(x.dtype, weight.dtype))
        y = wide * weight if weight.ndim == 1 else wide @ weight.to(wide.dtype).T
        return (y if self.bias is None else y + self.bias.to(y)).to(x.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Apply(Edit):
    """fn(x), any function of the site's tensor that returns a tensor of the same shape. It cannot be saved."""

    fn: Callable[[Tensor], Tensor]

    def transform(self, x: Tensor, place: Place) -> Tensor:
        before = None if x.is_inference() else x._version
        y = self.fn(x.clone() if before is None else x)  # without versions, a write in place could not be noticed
        if before is not None and x._version != before:
            raise EditError(
                f"the function of Apply at {place.name} wrote into its argument, which would also change what is not "
                "selected: return a new tensor (x * 2 instead of x.mul_(2))."
            )
        if not isinstance(y, Tensor):
            raise EditError(
                f"the function of Apply at {place.name} returned {type(y).__name__}: "
                f"expected a Tensor of shape {tuple(x.shape)}."
            )
        return y


@dataclasses.dataclass(frozen=True, eq=False)
class Above:
    """A gate that opens where the projection on a direction exceeds a threshold: x.u > threshold. It can be saved."""

    direction: Tensor
    threshold: float = 0.0

    def __post_init__(self) -> None:
        direction = _vector(self.direction, "the direction of Above")
        if direction.ndim != 1 or float(direction.norm()) == 0:
            raise ShapeError(f"the direction of Above has shape {tuple(direction.shape)}: expected a non-zero [D].")
        object.__setattr__(self, "direction", direction)
        _number(self.threshold, "the threshold of Above")

    def __call__(self, x: Tensor) -> Tensor:
        u = self.direction.to(x.device)
        check_width(x, u.shape[-1], "a gate", "direction")
        return (x.to(torch.promote_types(x.dtype, u.dtype)) @ (u / u.norm())) > self.threshold


def check_width(x: Tensor, width: int, site: str, what: str) -> None:
    """Raise ShapeError when the last axis of x is not `width` wide."""
    if x.shape[-1] != width:
        raise ShapeError(
            f"{site}: the {what} has width {width}, the site {x.shape[-1]} (its shape is {tuple(x.shape)}): "
            "use one made for this site."
        )
