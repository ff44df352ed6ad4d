"""Controlled effects: the choice is made on other items than the report, controls and cost come with every effect."""

from __future__ import annotations

import math

import pytest
import torch
from letters import Letters

from interneuron.artifacts import Direction, load_artifact
from interneuron.core.errors import InputError
from interneuron.model.edits import Ablate
from interneuron.model.load import wrap
from interneuron.model.model import Model
from interneuron.parts.controls import ablating, controlled_effect, removing, split, steering
from interneuron.parts.likelihood import text_losses, window_losses

TRUTH = torch.nn.functional.one_hot(torch.tensor(3), 64).float()
SITE = "layers.0.resid_post"


def response(edit, items):  # a linear world: each item has its own slope along TRUTH
    push = 0.0 if edit is None else float((edit.alpha * edit.vector) @ TRUTH)
    return torch.tensor([10 + item * push for item in items])


def price(edit, items):  # the cost grows with the square of the push, whatever its direction
    push = 0.0 if edit is None else float((edit.alpha * edit.vector).norm())
    return torch.full((len(items),), push**2)


SLOPES = [0.5, 1.0, 1.5, 2.0, 0.5, 1.0, 1.5, 2.0]


def test_the_dearest_strength_within_the_limit_is_chosen_and_reported_on_other_items(tmp_path) -> None:
    weak = Direction(0.1 * TRUTH, site=SITE)
    strong = Direction(TRUTH, site="layers.1.resid_post")
    _, rest = split("items", SLOPES, 0.5, 0)
    found = controlled_effect(
        None,
        [steering(weak), steering(strong)],
        [0.0, 0.5, 1.0, 2.0],
        response,
        SLOPES,
        range(8),
        cost=price,
        limit=1.1,
    )
    assert (found.candidate.name, found.alpha) == ("layers.1.resid_post", 1.0)
    assert found.effect == pytest.approx(sum(rest) / len(rest))
    assert found.items.tolist() == pytest.approx(rest, rel=1e-5)
    assert found.price == pytest.approx(1.0)
    assert abs(found.control) < 0.5 * found.effect
    assert found.beyond_control
    assert found.effects.effect[0].tolist() == [0.0] * 4  # strength 0 is no edit
    report = found.report(unit="nats")
    assert report["effect"] == pytest.approx(found.effect)
    assert len(report.tables["tried"]) == 2 * 3
    assert report.plot("effect")["marks"] == [[1.0, "chosen"]]
    report.save(tmp_path / "report")
    assert load_artifact(tmp_path / "report").same_bits(report)


def test_the_parts_never_meet() -> None:
    items = list(range(11))
    one, two = split("items", items, 0.5, seed=3)
    assert sorted(one + two) == items
    assert split("items", items, 0.5, seed=3) == (one, two)
    assert split("items", items, 0.5, seed=4) != (one, two)
    calls: list[tuple[int, ...]] = []

    def measure(edit, given):
        calls.append(tuple(given))
        return response(edit, given)

    controlled_effect(None, steering(Direction(TRUTH, site=SITE)), [1.0], measure, items, items, cost=price)
    assert len(set(calls)) == 2
    assert not set(calls[0]) & set(calls[-1])


def test_lower_is_better_turns_the_choice_around() -> None:
    candidates = steering(Direction(TRUTH, site=SITE))
    arguments = (None, candidates, [-1.0, 1.0], response, SLOPES, range(4))
    up = controlled_effect(*arguments, cost=price, limit=math.inf)
    down = controlled_effect(*arguments, cost=price, limit=math.inf, better="lower")
    assert (up.alpha, down.alpha) == (1.0, -1.0)
    assert down.effect == pytest.approx(-up.effect)
    assert up.beyond_control and down.beyond_control
    assert down.trials[0].effect < 0


def test_a_random_direction_is_not_beyond_its_controls() -> None:
    random = Direction(TRUTH, site=SITE).random_like(99)
    found = controlled_effect(None, steering(random), [1.0], response, SLOPES, range(4), cost=price)
    assert not found.beyond_control


def test_steering_and_ablation_on_a_model(tiny_lm: Model) -> None:
    ids = list(torch.randint(1, 32, (8, 6), generator=torch.Generator().manual_seed(0)))

    def logit(edit, rows):
        with torch.no_grad(), tiny_lm.edit(*([] if edit is None else [edit])):
            return tiny_lm(torch.stack(rows)).logits[:, -1, 5]

    target = tiny_lm.module.lm_head.weight[5].detach()
    direction = Direction(target / target.norm(), site="layers.1.resid_post")
    added = controlled_effect(tiny_lm, steering(direction), [1.0, 4.0], logit, ids, ids, cost=logit, limit=math.inf)
    assert added.alpha == 4.0
    assert added.beyond_control
    gone = controlled_effect(
        tiny_lm,
        removing(direction, controls=4),
        [0.5, 1.0],
        logit,
        ids,
        ids,
        cost=logit,
        limit=math.inf,
        better="lower",
    )
    with torch.no_grad(), tiny_lm.edit(direction.ablation()):
        _, rest = split("items", ids, 0.5, 0)
        after = tiny_lm(torch.stack(rest)).logits[:, -1, 5]
    full = gone.effects.effect[1] + gone.effects.base
    assert torch.allclose(full, after, atol=1e-5)
    units = Ablate("layers.0.mlp.hidden", how="zero")
    several = ablating(units, [Ablate("layers.1.mlp.hidden", how="zero")] * 2)
    found = controlled_effect(tiny_lm, several, [1.0], logit, ids, ids, cost=logit, limit=math.inf)
    assert found.effects.control[0] == pytest.approx(found.effects.control[1])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"items": SLOPES[:3]}, "split 2 to 1"),
        ({"alphas": []}, "at 0 strengths"),
        ({"candidates": []}, "0 candidates"),
        ({"candidates": steering(Direction(TRUTH, site=SITE), controls=0)}, r"0 control\(s\)"),
        ({"measure": lambda edit, items: torch.zeros(3, 2)}, r"\[3, 2\] for 4 items"),
        ({"measure": lambda edit, items: torch.full((len(items),), math.nan)}, "NaN"),
        ({"better": "more"}, "'higher' or 'lower'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_taught(change, match) -> None:
    right = {
        "candidates": steering(Direction(TRUTH, site=SITE)), "alphas": [1.0], "measure": response, "items": SLOPES,
    }  # fmt: skip
    with pytest.raises(InputError, match=match):
        controlled_effect(
            model=None, cost_items=range(4), cost=lambda edit, items: torch.zeros(len(items)), **{**right, **change}
        )


def test_the_default_cost_is_the_loss_on_texts(tiny_lm: Model) -> None:
    model = wrap(tiny_lm.module, tokenizer=Letters())
    texts = [
        "she felt glad .",
        "the home of a friend is far away .",
        "he felt sad and she felt glad .",
        "mia looked up .",
    ]
    losses = text_losses(model, texts)
    for text, loss in zip(texts, losses, strict=True):
        alone = window_losses(model, model.prepare(text)[1]["input_ids"])
        assert float(loss) == pytest.approx(float(alone), rel=1e-5)
    with pytest.raises(InputError, match="one token long"):
        text_losses(model, ["she felt", "s"])
    found = controlled_effect(
        model,
        steering(Direction(torch.ones(16), site="layers.0.resid_post"), controls=2),
        [0.0, 3.0],
        lambda edit, items: -text_losses(model, items, edit),
        texts,
        texts,
        limit=math.inf,
    )
    assert found.price == pytest.approx(-found.effect)
    assert found.costs.effect[0].tolist() == [0.0, 0.0]
