"""Inputs of linear layers with few channels kept, and the edit that makes them and skips the work of the others.

    s_j = |x_j| c_j        y = W (g * x),  g_j = 1 where s_j is among the k largest of its token, or above a threshold

`Sparsify` is an ordinary edit of a site at the input of a linear layer, so it composes, reads see the masked input, and
any layer may follow. When one token is decoded, the tensor it hands on is a `SparseInput`: it holds the masked values
like any tensor, and the linear layer that receives it reads only the weights of the channels that were kept. That needs
numba, float32 weights on the CPU and no gradients; in every other case the product is the dense one of the masked
input. The weights are kept a second time, transposed, as long as the edit lives.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import weakref
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from interneuron.core.errors import EditError, InputError, need
from interneuron.model.edits import Edit, Place, check_width

Kernel = Literal["auto", "numba", "dense"]

# Below this many weights the matrix sits in the cache and the calls cost more than reading it.
SMALLEST = 1 << 19
# With more channels kept than this the kernel is not measurably faster than the dense product.
DENSEST = 0.85


def keep_largest(scores: Float[Tensor, "*N D"], k: int) -> Bool[Tensor, "*N D"]:
    """True at the k largest scores of each row; of equal scores, only as many as make k.

    >>> keep_largest(torch.tensor([3.0, 1.0, 2.0, 0.0]), 2).tolist()
    [True, False, True, False]
    """
    if not 0 <= k <= scores.shape[-1]:
        raise InputError(f"keep_largest: k={k} of {scores.shape[-1]} channels. Choose k from 0 to {scores.shape[-1]}.")
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(-1, scores.topk(k, dim=-1, sorted=False).indices, True)


@dataclasses.dataclass(frozen=True, eq=False)
class Sparsify(Edit):
    """Keep the channels of large |x_j| c_j and set the others to zero, token by token.

    norm          c, [D], or None for c = 1
    k             channels kept per token: the k of largest score; or
    threshold     scores up to this one are dropped
    dense_share   share of the positions, from the first on, that stay whole in passes of several tokens (the prompt)
    kernel        "auto": skip the dropped weights where that is faster; "numba": the same, and an error without numba;
                  "dense": never

    Raises EditError unless exactly one of k and threshold is given.
    """

    norm: Tensor | None = None
    k: int | None = None
    threshold: float | None = None
    dense_share: float = 0.0
    kernel: Kernel = "auto"

    def __post_init__(self) -> None:
        if (self.k is None) == (self.threshold is None):
            raise EditError(f"Sparsify at {self.site!r}: k={self.k}, threshold={self.threshold}. Give exactly one.")
        if (self.k is not None and self.k < 0) or not 0 <= self.dense_share <= 1:
            raise EditError(
                f"Sparsify at {self.site!r}: k={self.k}, dense_share={self.dense_share}; expected k >= 0 and a share "
                "from 0 to 1. Change them."
            )
        if self.kernel == "numba":
            need("numba", "fast")
        skips = self.kernel == "numba" or (self.kernel == "auto" and importlib.util.find_spec("numba") is not None)
        object.__setattr__(self, "_columns", Columns() if skips else None)

    def transform(self, x: Tensor, place: Place) -> Tensor:
        """The masked tensor; for a single token one that lets the next linear layer skip what was dropped."""
        if self.norm is not None:
            check_width(x, self.norm.shape[-1], place.name, "norm")
        if self.k is not None and self.k >= x.shape[-1]:
            return x
        masked = x * self.mask(x)
        if x.ndim == 3 and x.shape[1] > 1 and self.dense_share > 0:
            whole = math.ceil(self.dense_share * x.shape[1])
            return torch.cat([x[:, :whole], masked[:, whole:]], dim=1)
        columns: Columns | None = self._columns  # pyrefly: ignore[missing-attribute]
        if columns is None or x.numel() != x.shape[-1] or not columns.serve(x):
            return masked
        return SparseInput.make(masked, columns)

    def mask(self, x: Float[Tensor, "*N D"]) -> Bool[Tensor, "*N D"]:
        """Which channels of each token are kept."""
        size = x.detach().abs()
        scores = size if self.norm is None else size * self.norm.to(x)
        if self.k is None:
            assert self.threshold is not None
            return ~(scores <= self.threshold)  # NaN is kept, so that it is not hidden
        if self.k >= x.shape[-1]:
            return torch.ones_like(x, dtype=torch.bool)
        if x.numel() == x.shape[-1] and self.k:  # one token: a comparison is cheaper than scattering indices
            edge = scores.reshape(-1).kthvalue(x.shape[-1] - self.k).values
            mask = ~(scores <= edge)
            if int(mask.sum()) == self.k:
                return mask
        return keep_largest(scores, self.k)


class Columns:
    """Transposed copies of the weights that a sparse input meets, made at first use and dropped with their owner."""

    def __init__(self) -> None:
        self._held: tuple[Any, int, Any] | None = None
        self._index: Any = None

    def serve(self, x: Tensor) -> bool:
        """Whether a product with this input may be computed by the kernel."""
        return x.dtype == torch.float32 and x.device.type == "cpu" and not (torch.is_grad_enabled() and x.requires_grad)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool = False) -> Tensor | None:
        """W x + b from the columns where x is not zero, or None where the dense product is right or faster.

        transposed  the weight is [in, out] already, as in the projections of GPT-2
        """
        learning = torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad))
        plain = weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.numel() >= SMALLEST
        if learning or not plain or x.numel() != x.shape[-1]:
            return None
        import numpy as np

        from interneuron.parts import matvec_kernels as kernels

        values = x.detach().reshape(-1).numpy()
        if self._index is None or len(self._index) != len(values):
            self._index = np.empty(len(values), dtype=np.int64)
        n = kernels.kept(values, self._index)
        if n > DENSEST * len(values):
            return None
        columns = weight.detach().contiguous().numpy() if transposed else self._transposed(weight)
        y = torch.empty(columns.shape[1])
        threads = torch.get_num_threads()
        if threads == 1:
            kernels.block(columns, values, self._index, n, y.numpy(), 0, len(y))
        else:
            from interneuron.parts.sparse_kernels import use_threads

            use_threads(threads)
            kernels.blocks(columns, values, self._index, n, y.numpy(), threads)
        return (y if bias is None else y.add_(bias.detach())).reshape(*x.shape[:-1], len(y))

    def _transposed(self, weight: Tensor) -> Any:
        """[in, out] as NumPy sees it; made anew when the weight is another one or was written to."""
        version = 0 if weight.is_inference() else weight._version
        if self._held is None or self._held[0]() is not weight or self._held[1] != version:
            self._held = (weakref.ref(weight), version, weight.detach().t().contiguous().numpy())
        return self._held[2]


class SparseInput(Tensor):
    """A tensor of masked values whose product with a weight matrix skips the zeros; anything else sees plain values."""

    _columns: Columns

    @staticmethod
    def make(values: Tensor, columns: Columns) -> SparseInput:
        """The values, marked."""
        marked = values.as_subclass(SparseInput)
        marked._columns = columns
        return marked

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Products with a weight matrix go to the kernel where it serves; every other function gives plain tensors."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            y = None
            if func is functional.linear and type(args[0]) is cls:
                weight, bias = (*args[1:], *(kwargs[name] for name in ("weight", "bias") if name in kwargs), None)[:2]
                y = args[0]._columns.product(args[0], weight, bias)
            elif func is torch.addmm and not kwargs and type(args[1]) is cls:  # the projections of GPT-2
                y = args[1]._columns.product(args[1], args[2], args[0], transposed=True)
            elif func is Tensor.view and type(args[0]) is cls:
                return cls.make(func(*args, **kwargs).as_subclass(Tensor), args[0]._columns)
            return func(*args, **kwargs) if y is None else y
