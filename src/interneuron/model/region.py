"""From a selection by axis name to the part of a tensor it means, for reads (`take`) and edits (`mask`, `align`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interneuron.core.errors import AxisError, PositionError, ShapeError
from interneuron.model.positions import Stream, plain_stream
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
                part = self._stream(axis).select(choice, phase, self.x.shape[i], self.x.device, whole=axis == "key")
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

    def _stream(self, axis: str) -> Stream:
        """The stream that numbers an axis; the keys of cross-attention are plain columns of the other sequence."""
        if axis == "key" and ".xattn." in f".{self.name}":
            return plain_stream(self.x.shape[self.axes.index(axis)], self.stream.batch)
        return self.stream

    def real(self) -> Bool[Tensor, "..."] | None:
        """A mask that broadcasts against x, false at padding; None when no axis counts positions."""
        for i, axis in enumerate(self.axes):
            if axis in ("pos", "query"):
                part = self.stream.select(slice(None), "all", self.x.shape[i], self.x.device)
                return self._spread(part, i) if isinstance(part, Tensor) else None
        return None

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
                mask = self._stream(axis).select(choice, phase, x.shape[i], x.device, whole=axis == "key")
                if mask is False:
                    return None
                if mask is not True:
                    x = self._gather(x, i, mask)
                if isinstance(choice, int):
                    drop.append(i)
            elif choice is not None:
                size = x.shape[i]
                group = self._rows_per_prompt(size) if axis == "batch" else 1
                chosen = [k * group + j for k in indices(choice, size // group, axis, self.name) for j in range(group)]
                x = x.index_select(i, torch.tensor(chosen, device=x.device))
                if isinstance(choice, int) and group == 1:
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

        Axes are matched from the last one backwards, as in NumPy, after the axes that an int dropped are put back.
        Raises ShapeError when the value fits neither, or when it would fit both as one entry a row and as one entry
        along another axis.
        """
        value = value.to(x.device)
        if value.ndim == 1 and value.shape[0] not in (1, x.shape[-1]):
            raise ShapeError(
                f"{self.name}: the vector has width {value.shape[0]}, the site {x.shape[-1]} (its shape is "
                f"{tuple(x.shape)}): use one made for this site."
            )
        if value.ndim <= 1:
            return value
        self._refuse_two_readings(value)
        for shaped in self._layouts(value):
            laid: Tensor | None = shaped
            for i in range(x.ndim):
                laid = None if laid is None else self._along(i, laid)
            if laid is not None:
                return laid
        raise ShapeError(
            f"{self.name}: a value of shape {tuple(value.shape)} fits neither the site {tuple(x.shape)} nor the "
            f"part selected by ({self.selection.describe() or 'everything'}). During generation a value for the "
            "prompt needs .at(phase='prompt')."
        )

    def _refuse_two_readings(self, value: Tensor) -> None:
        """A value without all axes whose first axis is as long as the batch and as the axis it would be laid along."""
        missing, n, size = self.x.ndim - value.ndim, value.shape[0], self.x.shape[0]
        if missing <= 0 or n == 1 or isinstance(self.selection.get(self.axes[0]), int):
            return  # no axis is missing, or the missing one is the row that was selected
        drops = [i for i, axis in enumerate(self.axes) if isinstance(self.selection.get(axis), int)]
        if len(drops) == missing:
            return  # the missing axes are those that the selection dropped
        if self.x.shape[missing] == n and n in (size, size // self._rows_per_prompt(size)):
            axis = self.axes[missing]
            raise ShapeError(
                f"{self.name}: a value of shape {tuple(value.shape)} fits the site {tuple(self.x.shape)} in two ways, "
                f"as one entry per row or one per {axis}: give it all axes, value[None] for one per {axis} or "
                "value[:, None] for one per row."
            )

    def _layouts(self, value: Tensor) -> Iterator[Tensor]:
        """The value with as many axes as the site: first as the selected part, whose ints dropped their axes."""
        missing = self.x.ndim - value.ndim
        drops = [i for i, axis in enumerate(self.axes) if isinstance(self.selection.get(axis), int)]
        if missing and missing == len(drops):
            part = value
            for i in drops:
                part = part.unsqueeze(i)
            yield part
        if missing >= 0:
            yield value.reshape((1,) * missing + tuple(value.shape))

    def _along(self, i: int, value: Tensor) -> Tensor | None:
        """The value laid out along axis i of the site, for the whole axis or for its selected part; None if neither."""
        axis, n, size = self.axes[i], value.shape[i], self.x.shape[i]
        choice = self.selection.get(axis)
        if n == 1:
            return value
        if axis in POSITION_AXES:
            return self._along_positions(i, value, choice)
        group = self._rows_per_prompt(size) if axis == "batch" else 1
        if choice is not None:
            chosen = indices(choice, size // group, axis, self.name)
            if n == len(chosen):
                table = torch.zeros(size // group, dtype=torch.long)
                table[chosen] = torch.arange(n)
                return value.index_select(i, table.repeat_interleave(group).to(value.device))
        if n * group == size:
            return value if group == 1 else value.repeat_interleave(group, i)
        return value if n == size else None

    def _along_positions(self, i: int, value: Tensor, choice: Any) -> Tensor | None:
        stream, n, size, whole = self._stream(self.axes[i]), value.shape[i], self.x.shape[i], self.axes[i] == "key"
        past, prompt = 0 if whole else stream.past, stream.prompt_columns
        own = size == stream.length + (stream.past if whole else 0)
        partial = own and (stream.past > 0 or stream.length != prompt)  # this pass holds a part of the sequence
        if n == size and not (partial and choice is not None):
            return value
        if own and n == prompt and past < prompt:  # a value for the prompt, of which this pass holds some columns
            part = value.narrow(i, past, min(size, prompt - past))
            rest = list(part.shape)
            rest[i] = size - part.shape[i]
            return torch.cat([part, part.new_zeros(rest)], dim=i)
        phase = "all" if whole else self.selection.phase
        if choice is None and phase == "all":
            return None
        ranks = stream.ranks(choice, phase, size, value.device, whole)
        counts = ranks.max(1).values + 1
        if bool((counts > n).any()) or (not partial and stream.rows is None and bool((counts != n).any())):
            return None
        shape = [1] * self.x.ndim
        shape[0], shape[i] = ranks.shape
        return value.take_along_dim(ranks.clamp(min=0).reshape(shape), dim=i)


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
