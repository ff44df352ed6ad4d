"""From a selection by axis name to the part of a tensor it means, for reads (`take`) and for edits (`mask`, `align`)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interneuron.core.errors import AxisError, PositionError, ShapeError
from interneuron.model.positions import Stream
from interneuron.model.selection import Selection
from interneuron.model.sites import POSITION_AXES, check_axes, guess_axes


class Region:
    """The selected part of one tensor during one pass.

    x          the site's tensor; its axes are named by `axes` (guessed from its rank when empty)
    stream     the token stream that gives positions their meaning
    """

    def __init__(self, name: str, x: Tensor, axes: tuple[str, ...], selection: Selection, stream: Stream) -> None:
        self.name, self.x, self.selection, self.stream = name, x, selection, stream
        self.axes = axes if len(axes) == x.ndim else guess_axes(x.ndim)
        check_axes(selection, self.axes, name)

    def mask(self) -> Bool[Tensor, "..."] | bool:
        """True (everything), False (nothing in this pass), or a boolean mask that broadcasts against x."""
        total: Any = True
        phase_used = self.selection.phase == "all"
        for i, axis in enumerate(self.axes):
            choice = self.selection.get(axis)
            if axis in POSITION_AXES:
                phase = self.selection.phase if axis != "key" else "all"
                phase_used |= axis != "key"
                part = self.stream.select(choice, phase, self.x.shape[i], self.x.device, whole=axis == "key")
                part = part if isinstance(part, bool) else self._spread(part, i)
            elif choice is None:
                continue
            else:
                part = self._spread(self._index_mask(axis, choice, self.x.shape[i]), i)
            if part is False:
                return False
            if part is not True:
                total = part if total is True else total & part
        if not phase_used:
            raise AxisError(f"{self.name} has no position axis, so phase={self.selection.phase!r} means nothing there.")
        return total

    def _spread(self, part: Tensor, i: int) -> Tensor:
        shape = [1] * self.x.ndim
        if part.ndim == 2:
            if part.shape[0] not in (1, self.x.shape[0]):
                raise ShapeError(f"{self.name}: positions cover {part.shape[0]} rows, the site has {self.x.shape[0]}.")
            shape[0] = part.shape[0]
        shape[i] = part.shape[-1]
        return part.reshape(shape)

    def _index_mask(self, axis: str, choice: Any, size: int) -> Bool[Tensor, " n"]:
        mask = torch.zeros(size, dtype=torch.bool, device=self.x.device)
        if axis == "batch":
            group = self._rows_per_prompt(size)
            for k in indices(choice, size // group, axis, self.name):
                mask[k * group : (k + 1) * group] = True
        else:
            mask[indices(choice, size, axis, self.name)] = True
        return mask

    def _rows_per_prompt(self, size: int) -> int:
        rows = self.stream.rows
        return size // rows if rows and size % rows == 0 else 1

    def take(self) -> Tensor | None:
        """The selected part, as NumPy would index it: ints drop their axis. None when this pass holds none of it."""
        x, drop = self.x, []
        for i, axis in enumerate(self.axes):
            choice = self.selection.get(axis)
            if axis in POSITION_AXES:
                phase = self.selection.phase if axis != "key" else "all"
                if choice is None and phase == "all":
                    continue
                columns = x.shape[i]
                mask = self.stream.select(choice, phase, columns, x.device, whole=axis == "key")
                if mask is False:
                    return None
                if mask is not True:
                    x = self._gather(x, i, mask)  # pyrefly: ignore[bad-argument-type]
                if isinstance(choice, int):
                    drop.append(i)
            elif choice is not None:
                size = x.shape[i]
                chosen = indices(choice, size, axis, self.name)
                x = x.index_select(i, torch.tensor(chosen, device=x.device))
                if isinstance(choice, int):
                    drop.append(i)
        for i in reversed(drop):
            x = x.squeeze(i)
        return x

    def _gather(self, x: Tensor, i: int, mask: Tensor) -> Tensor:
        counts = mask.sum(1)
        if int(counts.min()) != int(counts.max()):
            raise PositionError(
                f"{self.name}: the selection holds {counts.tolist()} positions in the rows of this batch, which do not "
                "stack: read the whole site, or choose as many positions in every row."
            )
        where = mask.nonzero()[:, 1].reshape(mask.shape[0], -1)
        if mask.shape[0] == 1 or bool((where == where[:1]).all()):
            return x.index_select(i, where[0])
        shape = [1] * x.ndim
        shape[0], shape[i] = where.shape
        return x.take_along_dim(where.reshape(shape), dim=i)

    def align(self, x: Tensor, value: Tensor) -> Tensor:
        """A value given for the whole site or for the selected part, laid out so that it broadcasts against x.

        Raises ShapeError when it fits neither.
        """
        value = value.to(x.device)
        if value.ndim == 1 and value.shape[0] not in (1, x.shape[-1]):
            raise ShapeError(
                f"{self.name}: the vector has width {value.shape[0]}, the site {x.shape[-1]} (its shape is "
                f"{tuple(x.shape)}): use one made for this site."
            )
        if value.ndim <= 1 or self._fits(value, x):
            return value
        drops = [i for i, axis in enumerate(self.axes) if isinstance(self.selection.get(axis), int)]
        for i in drops:
            value = value.unsqueeze(i) if i <= value.ndim else value
        if self._fits(value, x):
            return value
        value = self._this_pass(value, x)
        if self._fits(value, x):
            return value
        placed = self._place(x, value)
        if placed is None:
            raise ShapeError(
                f"{self.name}: a value of shape {tuple(value.shape)} fits neither the site {tuple(x.shape)} nor the "
                f"part selected by ({self.selection.describe() or 'everything'}). During generation a value for the "
                "prompt needs .at(phase='prompt')."
            )
        return placed

    @staticmethod
    def _fits(value: Tensor, x: Tensor) -> bool:
        return value.ndim <= x.ndim and all(
            n in (1, m) for n, m in zip(reversed(value.shape), reversed(x.shape), strict=False)
        )

    def _this_pass(self, value: Tensor, x: Tensor) -> Tensor:
        """The columns of a value for the whole prompt that belong to this pass (chunked prefill)."""
        if value.ndim != x.ndim:
            return value
        for i, axis in enumerate(self.axes):
            wanted = self.stream.prompt_columns
            if axis in POSITION_AXES and value.shape[i] == wanted and x.shape[i] < wanted:
                start = 0 if axis == "key" else self.stream.past
                part = value.narrow(i, start, min(x.shape[i], wanted - start))
                if part.shape[i] < x.shape[i]:
                    pad = torch.zeros_like(part.narrow(i, 0, 1)).expand(
                        *part.shape[:i], x.shape[i] - part.shape[i], *part.shape[i + 1 :]
                    )
                    part = torch.cat([part, pad], dim=i)
                value = part
        return value

    def _place(self, x: Tensor, value: Tensor) -> Tensor | None:
        """Scatter a value shaped like the selected part into a tensor shaped like x."""
        if value.ndim != x.ndim:
            return None
        for i, axis in enumerate(self.axes):
            if value.shape[i] in (1, x.shape[i]):
                continue
            choice = self.selection.get(axis)
            if choice is None:
                return None
            if axis in POSITION_AXES:
                mask = self.stream.select(choice, self.selection.phase, x.shape[i], x.device, whole=axis == "key")
                if not isinstance(mask, Tensor) or bool((mask.sum(1) != value.shape[i]).any()):
                    return None
                where = mask.nonzero()[:, 1].reshape(mask.shape[0], -1)
            else:
                where = torch.tensor([indices(choice, x.shape[i], axis, self.name)], device=x.device)
                if where.shape[1] != value.shape[i]:
                    return None
            rows = max(where.shape[0], value.shape[0])
            full = [rows if j == 0 else n for j, n in enumerate(value.shape)]
            index_shape = [1] * x.ndim
            index_shape[0], index_shape[i] = where.shape
            index = where.reshape(index_shape).expand(full)
            full_out = list(full)
            full_out[i] = x.shape[i]
            out = torch.zeros(full_out, dtype=value.dtype, device=x.device)
            value = out.scatter(i, index, value.expand(full))
        return value if self._fits(value, x) else None


def indices(choice: Any, size: int, axis: str, name: str) -> list[int]:
    """Non-negative indices along an ordinary axis. Raises AxisError for one outside it."""
    if isinstance(choice, slice):
        return list(range(*choice.indices(size)))
    if isinstance(choice, Tensor):
        choice = choice.tolist()
    items = [choice] if isinstance(choice, int) else list(choice)
    for item in items:
        if not isinstance(item, int):
            raise AxisError(f"{name}: {axis}={item!r} is not an index: expected ints or a slice.")
        if not -size <= item < size:
            raise AxisError(f"{name}: {axis}={item} is outside 0..{size - 1} ({size} entries): choose one inside.")
    return [item % size for item in items]
