"""Controlled effects: what an intervention does, chosen, priced and controlled, the same way for every method.

    effect(a)  = mean_i [ m_i(edit of strength a) - m_i(no edit) ]            on items kept for the report
    cost(a)    = mean_j [ loss_j(edit of strength a) - loss_j(no edit) ]      on unrelated texts, nats per token
    chosen     = argmax of the effect over candidates and strengths with cost <= limit, on items kept for choosing

One call, `controlled_effect`, splits the items and the unrelated texts in two, chooses candidate (layer, site, variant)
and strength on one half, and measures the other half at every strength, for the chosen candidate and for its controls:
random directions of the same length for steering, other units of the same number for ablation. What the controls do as
well is no effect of the method.

    candidates = [steering(fitted(layer)) for layer in range(model.n_layers)]
    found = controlled_effect(model, candidates, [0.25, 0.5, 1.0], measure, prompts, unrelated_texts)
    found.effect, found.price, found.beyond_control, found.report()

    measure(edit, items) -> [N]    one number per item; edit is None for the model as it is
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interneuron.artifacts import Direction, Report, plots
from interneuron.core.errors import InputError
from interneuron.core.seeds import generator
from interneuron.parts.dose import DoseResponse, Trial, best_within, responses, try_doses
from interneuron.parts.likelihood import text_losses

if TYPE_CHECKING:
    from interneuron.model.model import Model

Make = Callable[[float], Any]
Measure = Callable[[Any, Sequence[Any]], Tensor]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An intervention of adjustable strength with its controls.

    name      what distinguishes it from the other candidates, e.g. its site
    make      strength -> edit; strength 0 must change nothing
    controls  the same for each control: as strong, at the same place, in an unrelated way; at least two
    """

    name: str
    make: Make
    controls: tuple[Make, ...]

    def edit(self, alpha: float = 1.0) -> Any:
        """The edit of strength `alpha`."""
        return self.make(alpha)

    def control(self, index: int) -> Candidate:
        """One control as a candidate of its own, e.g. to choose its strength in the same way."""
        return Candidate(f"{self.name}, control {index}", self.controls[index], self.controls)


def steering(direction: Direction, controls: int = 8, name: str = "", seed: int = 0) -> Candidate:
    """Adding a direction; controls are random directions of its norm at its sites."""
    randoms = [direction.random_like(seed + i) for i in range(controls)]
    return Candidate(name or ", ".join(direction.sites), direction.edit, tuple(r.edit for r in randoms))


def removing(direction: Direction, controls: int = 8, name: str = "", seed: int = 0) -> Candidate:
    """Projecting a direction out; controls project out random directions at its sites. Strength 1 removes all of it."""
    randoms = [direction.random_like(seed + i) for i in range(controls)]
    return ablating(direction.ablation(), [r.ablation() for r in randoms], name or ", ".join(direction.sites))


def ablating(edit: Any, controls: Sequence[Any], name: str = "ablation") -> Candidate:
    """Any edit, scaled between nothing (0) and itself (1); `controls` are edits of the same size elsewhere.

    For units, heads or latents take as controls the same number of them drawn at random, or matched in activity.
    """
    return Candidate(name, _scaled(edit), tuple(_scaled(control) for control in controls))


@dataclasses.dataclass(frozen=True)
class ControlledEffect:
    """What one intervention does, on items that did not choose it.

    candidate  the chosen one          alpha  the chosen strength
    effect     change of the measure, per strength and item, with the controls
    cost       change of the loss on unrelated texts, in the same form
    trials     everything tried while choosing (on the other half of the items)
    """

    candidate: Candidate
    alpha: float
    effects: DoseResponse
    costs: DoseResponse
    trials: tuple[Trial, ...]
    limit: float
    better: Literal["higher", "lower"]

    @property
    def at(self) -> int:
        """Index of the chosen strength."""
        return self.effects.doses.index(self.alpha)

    @property
    def effect(self) -> float:
        """Mean change of the measure at the chosen strength."""
        return self.effects.mean[self.at]

    @property
    def items(self) -> Tensor:
        """Change of the measure at the chosen strength, per item [N]."""
        return self.effects.effect[self.at]

    @property
    def control(self) -> float:
        """Mean change under the controls at the chosen strength."""
        return float(self.effects.control[:, self.at].mean())

    @property
    def price(self) -> float:
        """Mean change of the loss on unrelated texts at the chosen strength."""
        return self.costs.mean[self.at]

    @property
    def beyond_control(self) -> bool:
        """Whether the effect lies in the wanted direction beyond where 95 % of controls would fall."""
        low, high = self.effects.control_interval()[self.at]
        return self.effect > high if self.better == "higher" else self.effect < low

    def report(self, title: str = "Controlled effect", unit: str = "", slug: str = "") -> Report:
        """Numbers, the dose-response of effect and cost beside the controls, and what was tried, as a Report."""
        low, high = self.effects.interval()[self.at]
        control_low, control_high = self.effects.control_interval()[self.at]
        numbers: dict[str, Any] = {
            "chosen": self.candidate.name, "alpha": self.alpha, "base": float(self.effects.base.mean()),
            "effect": self.effect, "effect low": low, "effect high": high,
            "control": self.control, "control low": control_low, "control high": control_high,
            "beyond control": self.beyond_control, "cost": self.price,
            "control cost": float(self.costs.control[:, self.at].mean()),
            "cost limit": self.limit if math.isfinite(self.limit) else None,
            "n items": self.effects.effect.shape[1], "n unrelated": self.costs.effect.shape[1],
        }  # fmt: skip
        tried = [
            {"candidate": t.direction.name, "alpha": t.dose, "effect": t.effect, "cost": t.cost} for t in self.trials
        ]
        return Report(
            title=title,
            slug=slug,
            numbers=numbers,
            tables={"effect by strength": self.effects.rows(), "cost by strength": self.costs.rows(), "tried": tried},
            arrays={"effect": self.effects.effect, "control": self.effects.control, "cost": self.costs.effect},
            plots={
                "effect": _dose_plot("Effect by strength", self.effects, self.alpha, unit),
                "cost": _dose_plot("Cost on unrelated text", self.costs, self.alpha, "nats per token"),
            },
        )


def controlled_effect(
    model: Model,
    candidates: Candidate | Sequence[Candidate],
    alphas: Sequence[float],
    measure: Measure,
    items: Sequence[Any],
    cost_items: Sequence[Any],
    *,
    cost: Measure | None = None,
    limit: float = 0.1,
    better: Literal["higher", "lower"] = "higher",
    select: float = 0.5,
    seed: int = 0,
) -> ControlledEffect:
    """Choose candidate and strength on one part of the items, report the other part with controls and cost.

    measure     (edit or None, items) -> one number per item      items       what it is measured on, at least four
    cost_items  unrelated texts, at least four; with `cost=` anything that function takes as its items
    limit       largest rise of the cost allowed when choosing; math.inf for none
    better      whether the measure is to rise or to fall         select      share of items used for choosing

    Raises:
        InputError: no candidates or strengths, fewer than two controls, too few items, or a measure that does not
            return one number per item.
    """
    several = [candidates] if isinstance(candidates, Candidate) else list(candidates)
    if not several or not alphas:
        raise InputError(
            f"{len(several)} candidates at {len(alphas)} strengths: expected at least one of each. Add some."
        )
    if better not in ("higher", "lower"):
        raise InputError(f"better={better!r}: expected 'higher' or 'lower'. Say which way the measure is to go.")
    price = cost or (lambda edit, texts: text_losses(model, texts, edit))
    choosing, reported = split("items", items, select, seed)
    cheap, unrelated = split("cost_items", cost_items, select, seed)
    sign = 1.0 if better == "higher" else -1.0
    trials = try_doses(
        several,
        [alpha for alpha in alphas if alpha],
        lambda edit: sign * checked(measure, edit, choosing),
        lambda edit: checked(price, edit, cheap),
    )
    best = best_within(trials, limit)
    chosen: Candidate = best.direction
    controls = [Candidate(f"control {i}", make, ()) for i, make in enumerate(chosen.controls)]
    return ControlledEffect(
        candidate=chosen,
        alpha=best.dose,
        effects=responses(chosen, controls, alphas, lambda edit: checked(measure, edit, reported), "effect"),
        costs=responses(chosen, controls, alphas, lambda edit: checked(price, edit, unrelated), "cost"),
        trials=tuple(dataclasses.replace(trial, effect=sign * trial.effect) for trial in trials),
        limit=limit,
        better=better,
    )


def split(what: str, items: Sequence[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Two parts of the items with none in common, drawn by `seed`: one for choosing, one for reporting.

    Raises InputError when a part would have fewer than two.
    """
    n = round(share * len(items))
    if n < 2 or len(items) - n < 2:
        raise InputError(
            f"{what}: {len(items)} of them, split {n} to {len(items) - n} to choose and report; expected at least 2 "
            "in each part. Give more, or another share in select="
        )
    order = torch.randperm(len(items), generator=generator(seed)).tolist()
    return [items[i] for i in sorted(order[:n])], [items[i] for i in sorted(order[n:])]


def checked(measure: Measure, edit: Any, items: Sequence[Any]) -> Tensor:
    """What the measure says of each item, refused with InputError unless it is one finite number per item."""
    values = measure(edit, items)
    if not isinstance(values, Tensor) or values.shape != (len(items),):
        got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"measure() returned {got} for {len(items)} items: expected a tensor of one number per item.")
    if not bool(torch.isfinite(values).all()):
        raise InputError("measure() returned NaN or infinity: the edit breaks the model. Use smaller strengths.")
    return values.detach().float().cpu()


def _scaled(edit: Any) -> Make:
    return lambda alpha: alpha * edit


def _dose_plot(title: str, response: DoseResponse, alpha: float, unit: str) -> plots.Plot:
    rows = response.rows()
    ours, control = "method", "controls"
    plot = plots.lines(
        title,
        [row["dose"] for row in rows],
        {ours: [row["effect"] for row in rows], control: [row["random"] for row in rows]},
        x_label="strength",
        y_label=unit,
    )
    plot["bands"] = {
        ours: [[row["effect_low"] for row in rows], [row["effect_high"] for row in rows]],
        control: [[row["random_low"] for row in rows], [row["random_high"] for row in rows]],
    }
    return plot | {"controls": [control], "marks": [[alpha, "chosen"]]}
