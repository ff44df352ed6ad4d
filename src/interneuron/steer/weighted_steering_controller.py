"""Weighted steering controller: a small network reads a prompt and decides how strongly and where to steer.

Paper: Hegazy, Elhoushi, Alanwar: Guiding Giants: Lightweight Controllers for Weighted Activation Steering in LLMs
    (2025), https://arxiv.org/abs/2505.20309.

Idea: adding a refusal direction at all times makes a model refuse what is harmless too. A network of two layers reads
    the last position at a few early sites and gives one strength for the input and one weight per later layer, so that
    the same direction acts on harmful inputs and leaves others alone. The language model itself is not trained.

Equations:
    (1)  d = (mean h(harmful) - mean h(harmless)) / |...|        last token, one layer; or any direction given
    (2)  (s, w) = W_2 relu(W_1 x + b_1) + b_2                    x: last-position states of the read sites, joined
    (3)  loss = bce(s_harmful, 1) + bce(s_benign, 0) + 0.1 (mean |sigma(w) - 1/2| + 0.01 mean sigma(w))    w: harmful
    (4)  h_l <- h_l + s sigma(w_l) alpha d                       last position, every later layer l, every step

Shapes: x [B nD] of n read sites, W_1 [F nD] with F = 1024, W_2 [1+L F] for L sites written to, s [B], w [B L], d [D].

Cost: one forward pass per prompt up to the last read site, then seconds for the network; at use (n D + L) F
    multiplications per step.

Departures: the scale of s is the raw logit, as in the paper, so inputs that look harmless are pushed the other way
    (`edit(one_sided=True)` leaves them alone). A step takes one batch of each group [inferred]. Without `direction` it
    is fitted at the last read site. Unless named, the read sites are the outputs of the blocks at a third and at half
    of the depth [inferred].

Use:
    model = inn.load("lm")
    network = inn.steer.SteeringController(epochs=2).fit(model, ["she felt happy ."] * 4, ["the home was sad ."] * 4)
    with model.edit(network.edit(alpha=1.0)): model.generate("mia looked", max_new_tokens=8)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from interneuron.artifacts import Artifact, Direction, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError
from interneuron.core.progress import track
from interneuron.core.seeds import generator
from interneuron.model.edits import Edit, Edits, Place
from interneuron.model.model import Model
from interneuron.parts.contrast import last_token_activations

CARD = Card(
    id=46,
    slug="weighted_steering_controller",
    family="steer",
    kind="fitter",
    exports=("SteeringController", "ControllerNetwork"),
    paper="Guiding Giants: Lightweight Controllers for Weighted Activation Steering in LLMs",
    authors="Hegazy, Amr and Elhoushi, Mostafa and Alanwar, Amr",
    year=2025,
    link="https://arxiv.org/abs/2505.20309",
    purpose="Steering that acts only where it should: a small network sets its strength by input and by layer",
    claim="More refusals of jailbreak prompts than the base model and constant steering, benign prompts left alone",
)

GROUPS = ("hidden_weight", "hidden_bias", "out_weight", "out_bias")


class ControllerNetwork(Artifact):
    """The network, the direction it doses and where it reads; `site` are the sites it writes to, in order.

    direction  [D] of length 1                     reads       names of the sites read
    hidden_*   W_1 [F nD], b_1 [F]                 out_*       W_2 [1+L F], b_2 [1+L]
    positive, negative  [L] mean strengths s sigma(w) of the prompts it was trained on
    """

    direction: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    positive: Tensor
    negative: Tensor
    reads: tuple[str, ...] = ()

    def validate(self) -> None:
        """Shapes that fit together."""
        width, n, k = len(self.direction), len(self.reads), len(self.sites)
        f = len(self.hidden_bias)
        wanted = {"hidden_weight": [f, n * width], "out_weight": [1 + k, f], "out_bias": [1 + k]}
        for name, shape in wanted.items():
            if list(getattr(self, name).shape) != shape:
                raise ShapeError(
                    f"ControllerNetwork.{name} has shape {list(getattr(self, name).shape)}, expected {shape} for "
                    f"{n} sites read, {k} written and width {width}. Fit it again"
                )

    def decide(self, states: Float[Tensor, "B J"]) -> tuple[Float[Tensor, " B"], Float[Tensor, "B L"]]:
        """The strength s of each input and the weight sigma(w) of each layer (eq. 2)."""
        out = _network([getattr(self, name).to(states.device) for name in GROUPS], states)
        return out[:, 0], out[:, 1:].sigmoid()

    def strengths(self, model: Model, texts: Sequence[str]) -> Float[Tensor, "N L"]:
        """How strongly each text would be steered at each layer: s sigma(w)."""
        strength, weight = self.decide(_states(model, texts, self.reads, 32))
        return strength[:, None] * weight

    def edit(self, alpha: float = 1.0, one_sided: bool = False) -> Edits:
        """Eq. 4 at strength `alpha`; it cannot be saved as an edit, save the artifact instead.

        one_sided  max(s, 0) in place of s: what looks harmless is left alone instead of pushed the other way
        """
        board = _Board(self, one_sided)
        listen = [_Listen(name, board) for name in self.reads]
        push = [_Push(name, board, i, alpha).at(pos=-1) for i, name in enumerate(self.sites)]
        return Edits([*listen, *push])

    def plot(self) -> dict[str, Any]:
        """Mean strength by layer for both groups of training prompts."""
        series = {"positive": self.positive.tolist(), "negative": self.negative.tolist()}
        names = [name.removeprefix("layers.").removesuffix(".resid_post") for name in self.sites]
        plot = plots.lines(
            "Strength of steering by layer", list(range(len(names))), series, x_label="layer", y_label="s sigma(w)"
        )
        return plot | {"ticks": names}


@dataclass(frozen=True)
class SteeringController:
    """A network trained to tell when to steer.

    read_sites   sites whose last position it reads; () for two early blocks
    write_sites  sites it writes to; () for the outputs of all blocks behind the last one read
    hidden       width F of the network          epochs, lr, batch_size   of AdamW, gradients clipped to length 1
    """

    read_sites: Sequence[str] = ()
    write_sites: Sequence[str] = ()
    hidden: int = 1024
    epochs: int = 20
    lr: float = 5e-5
    batch_size: int = 4
    seed: int = 0

    def fit(
        self,
        model: Model,
        positive: Sequence[str],
        negative: Sequence[str],
        direction: Direction | None = None,
    ) -> ControllerNetwork:
        """Return the network that steers on prompts like `positive` and not on those like `negative`.

        direction  one vector at one site, used at length 1; None: the mean difference at the last read site

        Raises:
            InputError: fewer than two prompts in a group, a direction for several sites, or sites read behind those
                written to.
            SiteNotFound: a site the model does not have.
        """
        reads, writes = self._sites(model)
        for name, texts in (("positive", positive), ("negative", negative)):
            if isinstance(texts, str) or len(texts) < 2:
                raise InputError(f"{name}: expected a list of at least two prompts, got {texts!r}. Pass more")
        groups = [_states(model, texts, reads, 32) for texts in (positive, negative)]
        if direction is None:
            width = groups[0].shape[1] // len(reads)
            direction = Direction((groups[0].mean(0) - groups[1].mean(0))[-width:], site=reads[-1])  # eq. 1
        if direction.vector.dim() != 1:
            raise InputError(f"the direction has {len(direction.sites)} vectors, expected one. Pick one site's")
        parameters, loss = self._train(groups[0], groups[1], len(writes))
        fields: dict[str, Any] = dict(zip(GROUPS, parameters, strict=True))
        made = ControllerNetwork(
            direction=direction.unit.float().cpu(), **fields, positive=torch.zeros(len(writes)),
            negative=torch.zeros(len(writes)), reads=tuple(reads), site=tuple(writes), slug=CARD.slug,
            fitted={**asdict(self), "read_sites": reads, "write_sites": writes, "loss": loss},
            fingerprint=model.fingerprint,
        )  # fmt: skip
        means = [(s[:, None] * w).mean(0) for s, w in map(made.decide, groups)]
        return made.replace(positive=means[0], negative=means[1])

    def _sites(self, model: Model) -> tuple[list[str], list[str]]:
        n = model.n_layers
        places = self.read_sites or [f"layers.{i}.resid_post" for i in sorted({n // 3, n // 2})]
        reads = [model.site(name).name for name in places]
        last = max(_layer(name) for name in reads)
        blocks = self.write_sites or [f"layers.{i}.resid_post" for i in range(last + 1, n)]
        writes = [model.site(name).name for name in blocks]
        if not writes or min(map(_layer, writes)) <= last:
            raise InputError(
                f"sites written to {writes} must lie behind the last one read, {reads[-1]}: the decision is known only "
                "then. Read earlier or write later"
            )
        return reads, writes

    def _train(self, positive: Tensor, negative: Tensor, n_writes: int) -> tuple[list[Tensor], float]:
        """Eq. 3 on cached states; the parameters of the epoch with the lowest mean loss."""
        draw = generator(self.seed)
        shapes = [(self.hidden, positive.shape[1]), (self.hidden,), (1 + n_writes, self.hidden), (1 + n_writes,)]
        fan_in = [positive.shape[1]] * 2 + [self.hidden] * 2
        parameters = [
            ((2 * torch.rand(shape, generator=draw) - 1) / fan**0.5).requires_grad_()
            for shape, fan in zip(shapes, fan_in, strict=True)
        ]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr)
        best, lowest = parameters, float("inf")
        steps = max(len(positive), len(negative)) // self.batch_size or 1
        for _ in track(range(self.epochs), label="controller", unit="epoch"):
            orders = [torch.randperm(len(x), generator=draw) for x in (positive, negative)]
            total = 0.0
            for step in range(steps):
                picks = [_cycle(order, step, self.batch_size) for order in orders]
                with torch.enable_grad():
                    loss = controller_loss(parameters, positive[picks[0]], negative[picks[1]])
                slopes = torch.autograd.grad(loss, parameters)
                norm = torch.stack([slope.norm() for slope in slopes]).norm()
                for parameter, slope in zip(parameters, slopes, strict=True):
                    parameter.grad = slope * (1.0 / norm.clamp_min(1e-6)).clamp_max(1.0)
                optimizer.step()
                total += float(loss.detach()) / steps
            if total < lowest:
                best, lowest = [p.detach().clone() for p in parameters], total
        return [p.detach() for p in best], lowest


def controller_loss(
    parameters: Sequence[Tensor], positive: Float[Tensor, "B J"], negative: Float[Tensor, "C J"]
) -> Float[Tensor, ""]:
    """Eq. 3 for one batch of each group."""
    harmful, benign = _network(parameters, positive), _network(parameters, negative)
    weights = harmful[:, 1:].sigmoid()
    ones, zeros = torch.ones_like(harmful[:, 0]), torch.zeros_like(benign[:, 0])
    return (
        binary_cross_entropy_with_logits(harmful[:, 0], ones)
        + binary_cross_entropy_with_logits(benign[:, 0], zeros)
        + 0.1 * ((weights - 0.5).abs().mean() + 0.01 * weights.mean())
    )


class _Board:
    """What one forward pass has read so far, and the decision made of it."""

    def __init__(self, network: ControllerNetwork, one_sided: bool) -> None:
        self.network, self.one_sided = network, one_sided
        self.states: dict[str, Tensor] = {}
        self.decision: tuple[Tensor, Tensor] | None = None

    def hear(self, name: str, state: Tensor) -> None:
        self.states[name], self.decision = state, None

    def decide(self) -> tuple[Tensor, Tensor]:
        if self.decision is None:
            joined = torch.cat([self.states[name] for name in self.network.reads], dim=-1)
            strength, weights = self.network.decide(joined)
            self.decision = (strength.clamp_min(0) if self.one_sided else strength), weights
        return self.decision


@dataclasses.dataclass(frozen=True, eq=False)
class _Listen(Edit):
    """Leaves its site as it is and notes the last position."""

    board: _Board

    def transform(self, x: Tensor, place: Place) -> Tensor:
        real = place.real()
        if real is None:
            self.board.hear(str(self.site), x[:, -1].float())
            return x
        mask = real.expand(*x.shape[:2], 1)[..., 0]
        last = (mask * torch.arange(1, x.shape[1] + 1, device=x.device)).argmax(1)
        self.board.hear(str(self.site), x[torch.arange(len(x), device=x.device), last].float())
        return x


@dataclasses.dataclass(frozen=True, eq=False)
class _Push(Edit):
    """Adds the direction as strongly as the network has decided for this pass and layer."""

    board: _Board
    index: int
    alpha: float

    def transform(self, x: Tensor, place: Place) -> Tensor:
        if self.alpha == 0:
            return x
        strength, weights = self.board.decide()
        size = self.alpha * strength * weights[:, self.index]
        return (x + size[:, None, None] * self.board.network.direction.to(x.device)).to(x.dtype)


def _network(parameters: Sequence[Tensor], states: Tensor) -> Tensor:
    w_1, b_1, w_2, b_2 = parameters
    if states.shape[-1] != w_1.shape[1]:
        raise ShapeError(
            f"states of width {states.shape[-1]}, expected {w_1.shape[1]}: join the sites that were fitted on."
        )
    return linear(linear(states, w_1, b_1).relu(), w_2, b_2)


def _states(model: Model, texts: Sequence[str], sites: Sequence[str], batch_size: int) -> Float[Tensor, "N J"]:
    found = last_token_activations(model, list(texts), list(sites), batch_size)
    return torch.cat([found[name] for name in sites], dim=-1)


def _cycle(order: Tensor, step: int, size: int) -> Tensor:
    """The next `size` indices, from the beginning again when the smaller group runs out."""
    return order[torch.arange(step * size, (step + 1) * size) % len(order)]


def _layer(name: str) -> int:
    parts = name.split(".")
    if len(parts) < 2 or not parts[1].isdigit():
        raise InputError(
            f"{name!r} has no layer number: the controller needs sites such as 'layers.3.resid_post'. Name one"
        )
    return int(parts[1])
