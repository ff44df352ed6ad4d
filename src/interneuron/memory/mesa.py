"""Mesa: exact forward passes, and 8-bit copies of the activations for the backward pass.

Paper: Pan, Chen, He, Liu, Cai, Zhuang: Mesa: A Memory-saving Training Framework for Transformers (2021),
    https://arxiv.org/abs/2111.11124.

Idea: the backward pass needs activations only to form gradients, and these bear coarse rounding. So every operation is
    computed in full and what it saves is replaced by a few-bit copy. Heads and channels differ in scale, so each group
    of them has a range of its own, kept as a running mean, since ranges change slowly during training.

Equations:
    (1)  alpha <- alpha - (1 - m)(alpha - (max x - min x)),  beta <- beta - (1 - m)(beta - min x)   per group; m = 0.9
    (2)  q = clip(floor((x - beta) (2^b - 1) / alpha + u), 0, 2^b - 1),   u uniform in [0, 1), or 1/2 (nearest)
    (3)  x' = q alpha / (2^b - 1) + beta takes the place of x in the backward pass

Shapes: attention tensors [B H T K] or [B H T T] have H groups; [B T D] has H groups of D/H neighbours; blocks are runs
    of 256 numbers in memory. Copies are uint8, packed below 8 bits.

Cost: b/32 of the bytes of fp32 activations; with numba one pass over each distinct saved tensor ("heads": two) and one
    where it is used, however many operations in a row use it.

Departures: the copies are made where autograd saves a tensor (saved_tensors_hooks), so that every operation of any
    model is covered without replacing it: softmax keeps its output alone, GELU its input. A tensor that several
    operations save is copied once. Exact are parameters, whole numbers, tensors of fewer than `min_numel` numbers and
    statistics (means and scales of norms, log-sums of fused attention). `groups="blocks"` takes the range of every
    block from its own numbers: closer, and independent of earlier steps. u comes from a shuffled table of equally
    spaced numbers read at random places: each is uniform, neighbours are not independent [inferred].

Use:
    model = inn.load("vit")
    with inn.memory.Mesa(model) as mesa:
        loss = model(torch.rand(4, 3, 32, 32))[0].square().mean()
    print(torch.autograd.grad(loss, list(model.module.parameters()))[0].norm(), mesa.report().numbers)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interneuron.artifacts import Report, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, did_you_mean
from interneuron.core.seeds import check_seed
from interneuron.model.model import Model
from interneuron.parts.quantisers import (
    BITS,
    Dither,
    Quantised,
    all_finite,
    dequantise_groups,
    group_ranges,
    quantise_groups,
)
from interneuron.parts.saved_tensors import (
    Held,
    Ledger,
    Record,
    SavedHooks,
    View,
    is_plain,
    memory_order,
    run_of_memory,
)

CARD = Card(
    id=51,
    slug="mesa",
    family="memory",
    kind="aid",
    exports=("Mesa",),
    paper="Mesa: A Memory-saving Training Framework for Transformers",
    authors="Pan, Zizheng and Chen, Peng and He, Haoyu and Liu, Jing and Cai, Jianfei and Zhuang, Bohan",
    year=2021,
    link="https://arxiv.org/abs/2111.11124",
    purpose="Train in less memory: exact forward passes, 8-bit copies of the activations for the backward pass",
    claim="About 50% less training memory on ImageNet, CIFAR-100 and ADE20K at equal or better accuracy",
)

BLOCK = 256
_ATTENTION = ("softmax", "matmul", "scaled_dot_product_attention", "bmm", "baddbmm", "dropout")
Shape = tuple[int, int, int]


class Mesa(SavedHooks):
    """A context around forward (and backward) passes in which autograd keeps few-bit copies; the model is untouched.

    Around one step or around a whole training loop; entered again, it goes on with its ranges.

    model      a Model or an nn.Module
    bits       of a copy: 2, 4 or 8
    groups     "heads": running ranges of heads or of that many channel groups, the paper's; "blocks": own ranges of
               runs of 256 numbers
    policy     bits by operation ("gelu", "softmax", "linear", ...) or by module path ("*.mlp.*"), patterns allowed, the
               first that fits counts; None keeps the tensor exact, what no entry names gets `bits`
    rounding   "stochastic" or "nearest"
    momentum   m of the running ranges
    min_numel  smaller tensors stay exact
    seed       of the rounding

    >>> policy = {"gelu": 4, "encoder.layer.0.*": None}  # everything else: `bits`
    """

    def __init__(
        self,
        model: Model | nn.Module,
        bits: int = 8,
        groups: Literal["heads", "blocks"] = "heads",
        policy: Mapping[str, int | None] | None = None,
        rounding: Literal["stochastic", "nearest"] = "stochastic",
        momentum: float = 0.9,
        min_numel: int = 1024,
        seed: int = 0,
    ) -> None:
        # blocks that no policy names are treated alike wherever they come from
        super().__init__(model, paths=() if groups == "blocks" and not policy else None)
        self.bits, self.policy, self.groups, self.rounding = bits, dict(policy or {}), groups, rounding
        self.momentum, self.min_numel, self.seed = momentum, min_numel, check_seed(seed)
        self._check()
        self._heads = _n_heads(self._module)
        self._ranges: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self._dithers: dict[torch.device, Dither] = {}
        self._used: set[str] = set()
        self.saved, self.plain = Ledger(), Ledger()
        """Bytes that are kept, and bytes that plain training would keep; `live` and `peak` of each."""
        self.by_op: dict[str, list[int]] = {}
        """Operation -> [bytes of the tensors it was the first to save, bytes kept for them], over all passes."""

    def _check(self) -> None:
        wrong = [b for b in (self.bits, *self.policy.values()) if b is not None and b not in BITS]
        if wrong:
            raise InputError(f"Mesa: bits={wrong[0]!r}, expected one of {BITS}, or None in the policy to keep exact")
        for name, value, options in (
            ("groups", self.groups, ("heads", "blocks")),
            ("rounding", self.rounding, ("stochastic", "nearest")),
        ):
            if value not in options:
                raise InputError(
                    f"Mesa: {name}={value!r}, expected one of {options}.{did_you_mean(value, options)} Choose one"
                )
        if not 0 <= self.momentum < 1 or self.min_numel < 1:
            raise InputError(
                f"Mesa: momentum={self.momentum}, min_numel={self.min_numel}; expected 0 <= momentum < 1 and "
                "min_numel >= 1"
            )

    def start(self) -> None:
        """Slots are numbered anew in every context and pass."""
        self._slots: Counter[tuple[str, str]] = Counter()
        self._pass = 0

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        place = self.place
        super().__exit__(kind, error, trace)
        unused = [name for name in self.policy if name not in self._used]
        if kind is None and place.passes and unused:
            raise InputError(
                f"Mesa: the policy entry {unused[0]!r} fits no tensor that was saved, expected an operation "
                f"({', '.join(sorted(self.by_op))}) or a module path.{did_you_mean(unused[0], self.by_op)} Remove it"
            )

    def report(self) -> Report:
        """Bytes saved for the backward pass, in all (peaks) and by operation, beside those of plain training."""
        rows = sorted(self.by_op.items(), key=lambda row: -row[1][0])
        table = [{"operation": op, "plain": plain, "kept": kept} for op, (plain, kept) in rows]
        title = "Bytes saved for the backward pass"
        names = [f"{op}, {what}" for op, _ in rows[:6] for what in ("plain", "kept")]
        values = [float(value) for _, pair in rows[:6] for value in pair]
        return Report(
            slug=CARD.slug,
            title=title,
            numbers={
                "plain bytes": self.plain.peak,
                "kept bytes": self.saved.peak,
                "share": self.saved.peak / max(self.plain.peak, 1),
            },
            tables={"operations": table},
            plots={"operations": plots.bars(f"{title}, over all passes", names, values, y_label="bytes")},
        )

    # -- packing --------------------------------------------------------------------------------------------------

    def pack(self, tensor: Tensor) -> Held | View:
        """A few-bit copy, or the tensor itself where it has to stay exact."""
        op = self.place.op
        if not self._may_copy(tensor, op):
            return self._exact(tensor, op)
        copy = self.seen.find(tensor, lambda: self._copy(tensor, op))
        if copy is None:
            return self._exact(tensor, op)
        copy.packs += 1
        return View(copy, tensor)

    def unpack(self, packed: View) -> Tensor:
        """The tensor the backward pass gets (eq. 3)."""
        return packed.of(self.numbers(packed.record))

    def _exact(self, tensor: Tensor, op: str) -> Held:
        self._note(op, tensor.nbytes, tensor.nbytes)
        return Held(tensor, self.saved, self.plain)

    def _may_copy(self, tensor: Tensor, op: str) -> bool:
        if not is_plain(tensor) or not tensor.is_floating_point() or tensor.numel() < self.min_numel:
            return False
        # statistics decide the scale of whole gradients: means, norms, log-sums stay exact
        log_sums = op.startswith("scaled_dot_product") and tensor.ndim < 4
        return tensor.ndim > 1 and tensor.shape[-1] > 1 and not log_sums and (op != "group_norm" or tensor.ndim > 2)

    def _bits_of(self, op: str) -> int | None:
        for name, bits in self.policy.items():
            if fnmatchcase(op, name) or fnmatchcase(self.place.path, name):
                self._used.add(name)
                return bits
        return self.bits

    def _copy(self, tensor: Tensor, op: str) -> _Copy | None:
        """Its copy, or None where it stays as it is: by the policy, or since a number is not finite."""
        bits = self._bits_of(op)
        made = None if bits is None else self._quantised(tensor, op, bits)
        if made is None:
            return None
        self._note(op, tensor.nbytes, made.nbytes)
        return _Copy(made, tensor, self.saved, self.plain)

    def _quantised(self, tensor: Tensor, op: str, bits: int) -> Quantised | None:
        """Levels and ranges (eq. 2), or None where a number is not finite."""
        blocks = self.groups == "blocks"
        x = run_of_memory(tensor).view(_blocks(tensor.numel()) if blocks else _grouped(tensor, op, self._heads))
        alpha = beta = None  # blocks: each its own
        if not blocks:
            alpha, beta = group_ranges(x)
            if not all_finite(alpha):
                return None
            alpha, beta = self._running(op, alpha, beta)
        if self.rounding == "stochastic" and tensor.device not in self._dithers:
            self._dithers[tensor.device] = Dither(self.seed, tensor.device)
        try:
            return quantise_groups(x, alpha, beta, bits, self._dithers.get(tensor.device))
        except InputError:  # not finite
            return None

    def _running(self, op: str, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Range and offset after this pass (eq. 1); a tensor is known by its module, operation and turn in it."""
        place = self.place
        if place.passes != self._pass:
            self._slots.clear()
            self._pass = place.passes
        turn = self._slots[place.path, op]
        self._slots[place.path, op] += 1
        key = (place.path, op, turn, len(alpha), alpha.device)
        if key in self._ranges:
            old_alpha, old_beta = self._ranges[key]
            alpha, beta = torch.lerp(alpha, old_alpha, self.momentum), torch.lerp(beta, old_beta, self.momentum)
        self._ranges[key] = (alpha, beta)
        return alpha, beta

    def _note(self, op: str, plain: int, kept: int) -> None:
        row = self.by_op.setdefault(op or "other", [0, 0])
        row[0] += plain
        row[1] += kept


class _Copy(Record):
    """A few-bit copy of one distinct tensor, counted until autograd drops the last view of it."""

    def __init__(self, made: Quantised, tensor: Tensor, saved: Ledger, plain: Ledger) -> None:
        super().__init__()
        self.made, self.dtype = made, tensor.dtype
        self._saved, self._plain = saved, plain
        # a copy outlives the storage, whose address may then be another's: an object of our own is the key
        self._key = object()
        saved.hold(self._key, made.nbytes)
        plain.hold(self._key, tensor.nbytes)

    def make(self) -> Tensor:
        """What the copy stands for, flat."""
        return dequantise_groups(self.made, self.dtype).view(-1)

    def __del__(self) -> None:
        self._saved.release(self._key)
        self._plain.release(self._key)


def _blocks(n: int) -> Shape:
    """[1 G I] with blocks of BLOCK numbers, or of the largest size below that divides n."""
    size = next(size for size in range(min(BLOCK, n), 0, -1) if n % size == 0)
    return (1, n // size, size) if size >= BLOCK // 4 else (1, 1, n)


def _grouped(tensor: Tensor, op: str, heads: int) -> Shape:
    """[outer groups inner]: the heads of attention tensors, else `heads` parts of the channels."""
    order = memory_order(tensor) or list(range(tensor.ndim))
    shape = [tensor.shape[axis] for axis in order]
    by_head = tensor.ndim == 4 and op in _ATTENTION
    axis = 1 if by_head or (tensor.ndim == 4 and op.startswith("conv")) else tensor.ndim - 1
    at, size = order.index(axis), tensor.shape[axis]
    n = size if by_head else math.gcd(size, heads)
    return (math.prod(shape[:at]), n, size // n * math.prod(shape[at + 1 :]))


def _n_heads(module: nn.Module) -> int:
    """Attention heads by the config; 8 where it names none."""
    config = getattr(module, "config", None)
    for holder in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
        for name in ("num_attention_heads", "n_head", "num_heads"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return 8
