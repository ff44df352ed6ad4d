"""Steps 4 and 5 of a tour: find a direction, choose layer and strength, steer, and compare with chance."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from interneuron.artifacts import plots
from interneuron.cli.report_page import Sample, Section
from interneuron.cli.report_svg import number
from interneuron.cli.tour_steps import Budget, spread

if TYPE_CHECKING:
    from torch import Tensor

    from interneuron.artifacts import Direction
    from interneuron.cli.tour_material import Judged, Material, Pairs
    from interneuron.model.model import Model
    from interneuron.parts.dose import Trial

COST_LIMIT = 0.1  # nats per token on unrelated text: about 10 % more perplexity
AUC_TOLERANCE = 0.05
# The doses reported, as shares of those chosen: down, the way up, and beyond.
DOWN, UP = (1.0, 0.5), (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)


@dataclasses.dataclass(frozen=True)
class Found:
    """The direction chosen, as long as an activation there typically is, its doses, and the section that tells of it.

    dose  of a push along the direction        down  of a push against it (both positive numbers)
    """

    direction: Direction
    dose: float
    down: float
    section: Section


def find_direction(model: Model, material: Material, budget: Budget) -> Found:
    """Step 4: a mean difference per layer, its separation, and the choice of layer and strength on held-out data."""
    from interneuron.parts.contrast import separation
    from interneuron.parts.dose import best_within, try_doses
    from interneuron.parts.likelihood import preference, window_losses
    from interneuron.steer import MeanDifference

    pairs = material.pairs
    names = [f"layers.{i}.resid_post" for i in spread(model.n_layers, budget.layers)]
    fitting, held = _activations(model, pairs.fit, names), _activations(model, pairs.test, names)
    measured = [separation(name, fitting[name], held[name], seeds=1) for name in names]
    chance = [_chance(fitting[name], held[name]) for name in names]
    choosing = _activations(model, pairs.choose, names)
    scores = {name: separation(name, fitting[name], choosing[name], seeds=1).auc for name in names}
    directions = []
    for name, result in zip(names, measured, strict=True):
        direction = MeanDifference().fit_activations(*fitting[name], site=name)
        directions.append(direction.replace(vector=direction.unit * result.norm, fingerprint=model.fingerprint))
    good, bad = columns(pairs.choose_endings)
    trials = try_doses(
        directions,
        budget.doses,
        lambda edit: preference(model, good, bad, edit),
        lambda edit: window_losses(model, material.select, edit),
    )
    # Separation is the steadier measure, so it decides which layers are candidates; their reach decides among them.
    # What is added after the last layer goes straight to the logits: no layer is left that could make use of it.
    inner = names[:-1] or names
    top = max(scores[name] for name in inner)
    good_layers = {name for name in inner if scores[name] >= top - AUC_TOLERANCE}
    best = best_within([trial for trial in trials if trial.direction.site in good_layers], COST_LIMIT)
    opposite = best.direction.replace(vector=-best.direction.vector)
    against = try_doses(
        [opposite],
        budget.doses,
        lambda edit: preference(model, bad, good, edit),
        lambda edit: window_losses(model, material.select, edit),
    )
    down = best_within(against, COST_LIMIT).dose
    return Found(best.direction, best.dose, down, _direction_section(pairs, names, measured, chance, trials, best))


def _chance(fitting: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], seeds: int = 20) -> list[float]:
    """AUC of the fitted direction on unseen pairs whose two labels are swapped in a random half: what chance gives."""
    import torch

    from interneuron.core.seeds import generator
    from interneuron.parts.contrast import auc

    vector = (fitting[0] - fitting[1]).mean(0)
    good, bad = held[0] @ vector, held[1] @ vector
    found = []
    for seed in range(seeds):
        swap = torch.rand(len(good), generator=generator(seed)) < 0.5
        found.append(auc(torch.where(swap, bad, good), torch.where(swap, good, bad)))
    return found


def columns(pairs: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """The positive and the negative texts of pairs."""
    return [good for good, _ in pairs], [bad for _, bad in pairs]


def _activations(model: Model, pairs: list[tuple[str, str]], names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    from interneuron.parts.contrast import last_token_activations

    good, bad = (last_token_activations(model, texts, names) for texts in columns(pairs))
    return {name: (good[name], bad[name]) for name in names}


def _direction_section(
    pairs: Pairs,
    names: list[str],
    measured: list[Any],
    chance: list[list[float]],
    trials: list[Trial],
    best: Trial,
) -> Section:
    sizes = len(pairs.fit), len(pairs.choose), len(pairs.test)
    layers = [int(name.split(".")[1]) for name in names]
    shuffled = [sum(row) / len(row) for row in chance]
    real, control = "mean difference", "shuffled labels"
    auc = plots.lines(
        "Separation of unseen pairs", layers, {real: [m.auc for m in measured], control: shuffled},
        x_label="layer", y_label="AUC",
    )  # fmt: skip
    auc |= {"ticks": [str(i) for i in layers], "controls": [control], "low": 0.0, "high": 1.0}
    auc["bands"] = {control: [[min(row) for row in chance], [max(row) for row in chance]]}
    reach = []
    for name in names:
        allowed = [t.effect for t in trials if t.direction.site == name and t.cost <= COST_LIMIT]
        reach.append(max(allowed, default=0.0))
    gain = plots.bars(
        "Strongest steering within the cost limit",
        [str(i) for i in layers],
        reach,
        x_label="layer",
        y_label="nats per text",
    )
    layer = str(best.direction.site)
    at = names.index(layer)
    chosen = measured[at]
    rows = [
        {"used to": use, "positive": good, "negative": bad}
        for use, group in (("fit", pairs.fit), ("choose", pairs.choose), ("report", pairs.test))
        for good, bad in (group[0], group[len(group) // 2])
    ]
    return Section(
        title="Find a direction",
        shows=f"Pairs of texts that differ in one thing, {pairs.topic} ({pairs.source}). At each layer the direction "
        "is the "
        f"difference of the mean activations at the last token. {sizes[0]} pairs fit it, {sizes[1]} choose layer and "
        f"strength, {sizes[2]} are kept for the numbers reported.",
        reading="Left: the chance that a positive text scores above a negative one, on pairs never used before; 0.5 is "
        "guessing. The grey band is what chance gives: the same scores with the labels of those pairs shuffled. "
        "Right: how far each layer can be steered "
        f"before the loss on unrelated text rises by {COST_LIMIT} nats per token. Among the layers that separate the "
        f"choosing pairs best (within {AUC_TOLERANCE} AUC), the one that reaches furthest is taken. The last layer is "
        "no candidate: what is added there goes straight to the scores of the words.",
        finding=f"Layer **{layer.split('.')[1]}** is chosen, at a strength of **{number(best.dose, True)}** of the "
        "length of "
        f"the stream. There the direction separates unseen pairs with **AUC {chosen.auc:.2f}** "
        f"(shuffled labels: {shuffled[at]:.2f}, at most {max(chance[at]):.2f} in {len(chance[at])} draws).",
        numbers={
            "site": layer, "dose": best.dose, "auc": chosen.auc,
            "auc_shuffled_mean": shuffled[at], "auc_shuffled_max": max(chance[at]),
            "pairs_fit": sizes[0], "pairs_choose": sizes[1], "pairs_test": sizes[2], "cost_limit": COST_LIMIT,
        },
        plots=[[auc, gain]],
        tables={"Some of the pairs": rows},
    )  # fmt: skip


def steering(model: Model, material: Material, found: Found, budget: Budget) -> Section:
    """Step 5: effect and cost by dose, against random directions of the same length, and samples."""
    from interneuron.parts.dose import dose_response
    from interneuron.parts.likelihood import preference, window_losses

    good, bad = columns(material.pairs.test_endings)
    doses = [-share * found.down for share in DOWN] + [share * found.dose for share in UP]
    effect = dose_response(
        found.direction, doses, lambda edit: preference(model, good, bad, edit), budget.controls, "steering"
    )
    cost = dose_response(
        found.direction, doses, lambda edit: window_losses(model, material.test, edit), budget.controls, "cost"
    )
    at = effect.doses.index(found.dose)
    rows, prices = effect.rows(), cost.rows()
    here, price = rows[at], prices[at]
    outside = not here["random_low"] <= here["effect"] <= here["random_high"]
    finding = _steered(found.dose, here, outside) + (
        f" The loss on {material.text_source} changes by **{price['effect']:+.3f}** nats per token, from "
        f"{float(cost.base.mean()):.2f}."
    )
    numbers: dict[str, Any] = {k: v for k, v in here.items() if k != "dose"}
    numbers |= {f"cost_{k}".replace("cost_effect", "cost"): v for k, v in price.items() if k != "dose"}
    figures = [
        [
            _dose_plot("Effect on unseen pairs", rows, found.dose, "nats per text"),
            _dose_plot("Cost on unrelated text", prices, found.dose, "nats per token"),
        ]
    ]
    if material.judged is not None:
        plot, shares = judged(model, material.judged, found, budget.controls)
        figures.append([plot])
        numbers |= {f"judged {name}": share for name, share in shares.items()}
        finding += (
            f" A judge that knows the world calls **{number(shares['pushed up'], True)}** of the continuations "
            f"written under the push {material.judged.wanted}, {number(shares['no edit'], True)} of those without it, "
            "and "
            f"{number(shares['pushed down'], True)} under the opposite push (random: {number(shares['random'], True)})."
        )
    return Section(
        title="Steer, and compare with chance",
        shows=f"The direction is added to the stream at `{found.direction.site}` on every token, on {len(good)} "
        f"unseen pairs ({material.pairs.measured_on}). "
        "Left: how much the model's preference for the positive text of a pair moves. Right: what that costs on "
        f"unrelated text ({material.text_source}).",
        reading="The dose is the length of the push as a share of the stream's own length; it was chosen each way on "
        f"other data, as far as the loss there rises by no more than {COST_LIMIT}. **Grey is the control**: "
        f"{budget.controls} random directions of exactly the same length; the band holds 95 % of such directions. "
        "The blue band is a 95 % interval over pairs (right: over windows of text). An effect inside grey would mean "
        "nothing.",
        finding=finding,
        numbers={**numbers, "beyond_random": outside, "down": found.down, "base_loss": float(cost.base.mean())},
        plots=figures,
        samples=samples(model, found, material.prompts),
        tables={"Effect by dose": rows, "Cost by dose": prices},
        fold=6,
    )


def _steered(dose: float, here: dict[str, float], outside: bool) -> str:
    """What the chosen dose does, and whether chance does it as well."""
    times = float(f"{math.exp(min(abs(here['effect']), 50)):.2g}")
    return (
        f"At **{number(dose, True)}** the positive text becomes **{times:,g} times** "
        f"{'likelier' if here['effect'] > 0 else 'less likely'} against the negative one "
        f"({here['effect']:+.2f} nats, 95 % interval {here['effect_low']:+.2f} to {here['effect_high']:+.2f}). "
        f"Random directions: {here['random']:+.2f}, 95 % between {here['random_low']:+.2f} and "
        f"{here['random_high']:+.2f}, so the effect is **{'beyond' if outside else 'not beyond'}** what any push of "
        "that size does."
    )


def judged(model: Model, task: Judged, found: Found, controls: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Share of continuations the judge calls `wanted`, of those it has a verdict on, by edit: a plot and numbers."""
    import torch

    def share(edit: Any) -> float:
        with torch.random.fork_rng(), model.edit(*([] if edit is None else [edit])):
            torch.manual_seed(0)  # generate() draws from the global state, which is put back afterwards
            texts = model.generate(task.openings, max_new_tokens=16, do_sample=True, top_k=0)
        added = [text.removeprefix(opening) for text, opening in zip(texts, task.openings, strict=True)]
        verdicts = [task.judge(text) for text in added]
        known = [verdict == task.wanted for verdict in verdicts if verdict is not None]
        return sum(known) / len(known) if known else float("nan")

    direction, dose = found.direction, found.dose
    randoms = [share(direction.random_like(seed).edit(alpha=dose)) for seed in range(controls)]
    shares = {
        "pushed down": share(direction.edit(alpha=-found.down)),
        "no edit": share(None),
        "random": sum(randoms) / len(randoms),
        "pushed up": share(direction.edit(alpha=dose)),
    }
    names = [
        f"pushed by −{number(found.down, True)}",
        "no edit",
        f"random (mean of {controls})",
        f"pushed by +{number(dose, True)}",
    ]
    title = f"Continuations that the judge calls {task.wanted}, of {len(task.openings)} unseen openings"
    plot = plots.bars(title, names, list(shares.values()), y_label="share of continuations")
    return plot | {"percent": True, "high": 1.0, "controls": [names[1], names[2]]}, shares


def _dose_plot(title: str, rows: list[dict[str, float]], chosen: float, unit: str) -> dict[str, Any]:
    ours, control = "direction", "random, same length"
    plot = plots.lines(
        title, [row["dose"] for row in rows],
        {ours: [row["effect"] for row in rows], control: [row["random"] for row in rows]},
        x_label="dose (share of the stream's length)", y_label=unit,
    )  # fmt: skip
    plot["bands"] = {
        ours: [[row["effect_low"] for row in rows], [row["effect_high"] for row in rows]],
        control: [[row["random_low"] for row in rows], [row["random_high"] for row in rows]],
    }
    return plot | {"controls": [control], "x_percent": True, "marks": [[chosen, "chosen"]]}


def continuation(model: Model, prompt: str, edit: Any, n: int) -> str:
    """What the model writes after a prompt, greedily, under an edit (or none)."""
    from interneuron.core.errors import InputError

    if not callable(getattr(model.module, "generate", None)):
        raise InputError(f"{type(model.module).__name__} cannot generate: give a causal language model.")
    _, named = model.prepare(prompt)
    length = named["input_ids"].shape[1]
    with model.edit(*([] if edit is None else [edit])):
        whole = model.generate(prompt, max_new_tokens=n, do_sample=False)
    # Cut at the prompt's tokens as decoded, since decoding may change spaces.
    head = model.tokenizer.decode(named["input_ids"][0, :length], skip_special_tokens=True)
    return " ".join((whole[len(head) :] if whole.startswith(head) else whole).split())


def samples(model: Model, found: Found, prompts: list[str], n: int = 32) -> list[Sample]:
    """Greedy continuations without an edit, pushed both ways, and pushed in a random direction as far."""
    direction, dose = found.direction, found.dose
    edits = [
        ("no edit", None, ""),
        (f"pushed by +{number(dose, True)}", direction.edit(alpha=dose), "plus"),
        (f"pushed by −{number(found.down, True)}", direction.edit(alpha=-found.down), "minus"),
        ("random direction", direction.random_like(0).edit(alpha=dose), ""),
    ]
    return [
        Sample(prompt, [(label, continuation(model, prompt, edit, n), tone) for label, edit, tone in edits])
        for prompt in prompts
    ]
