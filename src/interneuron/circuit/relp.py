"""RelP: which sites matter for an answer, estimated with relevance rules in place of gradients, in one backward pass.

Paper: Rezaei Jafari, Eberle, Khakzar, Nanda: RelP: Faithful and Efficient Circuit Discovery via Relevance Patching
    (2025), https://arxiv.org/abs/2508.21258.

Idea: attribution patching estimates activation patching by gradients, which norms and saturating activations make
    noisy. RelP keeps its two forward passes and one backward pass, and lets the backward pass go through rules of
    layer-wise relevance propagation instead, which treat local scales as constants.

Equations:
    (1)  score(s, t) = sum_d (a_clean - a_corrupt)[s, t, d] * coef[s, t, d]         coef: gradient under the rules
    (2)  ln         norm(x) = (x - mean) g / s + b with s constant (RMSNorm: no mean, no b)
    (3)  identity   f(x) = x * c with c = f(x) / x constant; for ReLU that is its own gradient
    (4)  half       a product act(gate) * up passes half of the gradient to each factor
    (5)  attention  the pattern is constant: relevance flows through the values alone

Shapes: scores [S T], averaged over pairs; activations [B T D].

Cost: two forward passes and one backward pass; memory of the activations of one backward pass.

Departures: scores are divided by the metric's difference between the clean and the corrupt run, so that they estimate
    recovery. The gain of a norm and its scale are found from what the norm returns, so that its formula need not be
    known [inferred]. Rules apply to every norm and activation module of the model; functions that are no modules keep
    their gradient. The half rule halves the gradient at the input of the down projection.

Use:
    model = inn.load("lm")
    clean, corrupt = model.tokenizer(["she felt happy", "he felt happy"], return_tensors="pt")["input_ids"][:, None]
    report = inn.circuit.relp_scores(model, clean, corrupt, lambda logits: logits[:, -1, 3], "layers.*.mlp.out")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interneuron.artifacts import Report, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, SiteNotFound, UnsupportedModel, did_you_mean
from interneuron.model.edits import Apply, Edits
from interneuron.model.engine import Session
from interneuron.model.model import Model
from interneuron.parts.patching import attribution_patching

CARD = Card(
    id=134,
    slug="relp",
    family="circuit",
    kind="metric",
    exports=("relp_scores", "lrp_rules", "lrp_edits"),
    paper="RelP: Faithful and Efficient Circuit Discovery via Relevance Patching",
    authors="Rezaei Jafari, Farnoush and Eberle, Oliver and Khakzar, Ashkan and Nanda, Neel",
    year=2025,
    link="https://arxiv.org/abs/2508.21258",
    purpose="Circuit discovery: estimate activation patching of every site by relevance rules in one backward pass",
    claim="Pearson correlation with activation patching on IOI, MLP outputs of GPT-2 Large: 0.956, gradients 0.006",
)

Rule = Literal["ln", "identity", "half", "attention"]
RULES = ("ln", "identity", "half", "attention")
DEFAULT = ("ln", "identity", "half")
EPSILON = 1e-6


def relp_scores(
    model: Model,
    clean: Any,
    corrupt: Any,
    metric: Callable[[Any], Tensor],
    sites: str | Sequence[str],
    rules: Sequence[str] = DEFAULT,
) -> Report:
    """Estimate for every site and position how much of the clean answer it would bring back (eq. 1).

    clean, corrupt  token ids [B T], row by row the two versions of a prompt
    metric          logits -> one number per row, larger for the clean answer
    sites           names or globs, such as "layers.*.mlp.out"
    rules           of "ln", "identity", "half", "attention"; () gives attribution patching

    The report holds `arrays["scores"]` [S T], and the largest scores as a table.

    Raises:
        InputError: an unknown rule, or a metric that does not tell the prompts apart.
        ShapeError: prompts of different shape.
    """
    names = [s.name for glob in ([sites] if isinstance(sites, str) else sites) for s in model.sites(glob)]
    edit = lrp_edits(model, rules) if rules else None
    scores = attribution_patching(model, clean, corrupt, metric, names, edit=edit)
    top = scores.flatten().abs().topk(min(10, scores.numel())).indices.tolist()
    width = scores.shape[1]
    rows = [
        {"site": names[i // width], "position": i % width, "score": float(scores.flatten()[i])} for i in top
    ]  # fmt: skip
    plot = plots.heatmap(
        "Estimated recovery", scores, names, [str(t) for t in range(width)], x_label="position", y_label="site"
    )
    return Report(
        title="Relevance patching", site=tuple(names), slug=CARD.slug, arrays={"scores": scores},
        numbers={"largest": rows[0]["score"]}, tables={"largest": rows}, plots={"scores": plot},
        fingerprint=model.fingerprint, fitted={"rules": list(rules), "pairs": len(clean)},
    )  # fmt: skip


def lrp_rules(model: Model, rules: Sequence[str] = DEFAULT) -> Session:
    """A context in which backward passes of the model follow the rules; forward values keep every bit."""
    return model.edit(*lrp_edits(model, rules))


def lrp_edits(model: Model, rules: Sequence[str] = DEFAULT) -> Edits:
    """The edits behind `lrp_rules`. They serve one forward pass at a time.

    Raises:
        InputError: an unknown rule.
        UnsupportedModel: no module that any of the rules speaks of.
    """
    for rule in rules:
        if rule not in RULES:
            raise InputError(
                f"rule {rule!r} is unknown, expected some of {', '.join(RULES)}.{did_you_mean(rule, RULES)}"
            )
    edits: list[Any] = []
    for path, module in model.module.named_modules():
        if "ln" in rules and _is_norm(module):
            edits += _around(path, _NormRule(module))
        elif "identity" in rules and _is_activation(module):
            edits += _around(path, _IdentityRule())
    for layer in range(_n_layers(model)):
        if "half" in rules and _has(model, f"layers.{layer}.mlp.gate"):
            edits.append(Apply(f"layers.{layer}.mlp.hidden", _half))
        if "attention" in rules:
            edits += [Apply(f"layers.{layer}.attn.{part}", _constant) for part in ("q", "k")]
    if not edits and not any(isinstance(module, nn.ReLU) for module in model.module.modules()):
        raise UnsupportedModel(
            f"{type(model.module).__name__} has no norm, activation or gate module that the rules {list(rules)} speak "
            "of. Functions cannot be seen from outside; use modules, or rules=() for plain gradients"
        )
    return Edits(edits)


class _Carry(torch.autograd.Function):
    """The bits of `value` with the gradient of `path`."""

    @staticmethod
    def forward(ctx: Any, path: Tensor, value: Tensor) -> Tensor:  # pyrefly: ignore[bad-override]
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # pyrefly: ignore[bad-override]
        return g, None


class _Around:
    """A rule of one module: it sees what enters, and gives what leaves another gradient."""

    def __init__(self) -> None:
        self.x: Tensor | None = None

    def enter(self, x: Tensor) -> Tensor:
        self.x = x
        return x

    def leave(self, y: Tensor) -> Tensor:
        x, self.x = self.x, None
        if x is None or not (torch.is_grad_enabled() and x.requires_grad):
            return y
        return _Carry.apply(self.linear(x, y.detach()), y.detach())

    def linear(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError


class _NormRule(_Around):
    """eq. 2; 1 / s is read off as the factor between the gained input and the output of the norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.centred = isinstance(norm, nn.LayerNorm) or "LayerNorm" in type(norm).__name__
        self.bias: Any = getattr(norm, "bias", None)
        with torch.no_grad():
            self.gain = _gain(norm)

    def linear(self, x: Tensor, y: Tensor) -> Tensor:
        gained = (x - x.mean(-1, keepdim=True) if self.centred else x) * self.gain.to(x)
        plain = y if self.bias is None else y - self.bias.detach()
        fixed = gained.detach()
        scale = (plain * fixed).sum(-1, keepdim=True) / fixed.square().sum(-1, keepdim=True).clamp_min(1e-30)
        return gained * scale


class _IdentityRule(_Around):
    """eq. 3, with x kept away from 0."""

    def linear(self, x: Tensor, y: Tensor) -> Tensor:
        shifted = x.detach() + torch.where(x.detach() < 0, -EPSILON, EPSILON)
        return x * (y / shifted)


def _around(path: str, rule: _Around) -> list[Apply]:
    return [Apply(f"{path}:in", rule.enter), Apply(f"{path}:out", rule.leave)]


def _half(x: Tensor) -> Tensor:
    return _Carry.apply(x / 2, x.detach()) if x.requires_grad else x  # eq. 4


def _constant(x: Tensor) -> Tensor:
    return x.detach()  # eq. 5


def _gain(norm: nn.Module) -> Tensor:
    """g: the weight as the norm uses it, which for RMSNorm shows on an input whose length is its root mean square."""
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor):
        return torch.ones(())
    if isinstance(norm, nn.LayerNorm) or "LayerNorm" in type(norm).__name__:
        return weight.detach()
    return norm.forward(torch.full_like(weight, 1e3)[None])[0].detach()


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) or type(module).__name__.endswith(("RMSNorm", "LayerNorm"))


def _is_activation(module: nn.Module) -> bool:
    home = type(module).__module__
    if isinstance(module, nn.ReLU | nn.Softmax | nn.LogSoftmax | nn.MultiheadAttention):
        return False
    return home in ("transformers.activations", "torch.nn.modules.activation")


def _n_layers(model: Model) -> int:
    try:
        return model.n_layers
    except InputError:
        return 0


def _has(model: Model, name: str) -> bool:
    try:
        return bool(model.sites(name))
    except SiteNotFound:
        return False
