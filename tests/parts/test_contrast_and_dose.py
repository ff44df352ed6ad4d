from __future__ import annotations

import numpy as np
import pytest
import torch

from interneuron.artifacts import Direction
from interneuron.core.errors import InputError, ShapeError
from interneuron.parts.contrast import auc, separation
from interneuron.parts.dose import best_within, dose_response, try_doses
from interneuron.parts.intervals import bootstrap_interval, prediction_interval


def test_auc_equals_counting_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 40).astype(float), rng.integers(0, 6, 30).astype(float)
    by_hand = np.mean([1.0 if x > y else 0.5 if x == y else 0.0 for x in a for y in b])
    assert auc(torch.tensor(a), torch.tensor(b)) == pytest.approx(by_hand)
    assert auc(torch.tensor(b), torch.tensor(a)) == pytest.approx(1 - by_hand)
    with pytest.raises(InputError, match="at least one"):
        auc(torch.tensor([]), torch.tensor(b))


def test_separation_finds_a_planted_direction_and_the_shuffled_control_does_not() -> None:
    g = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(32, generator=g), dim=0)
    noise = [torch.randn(60, 32, generator=g) for _ in range(4)]
    fit, held = (noise[0] + 2 * truth, noise[1]), (noise[2] + 2 * truth, noise[3])
    found = separation("layers.0.resid_post", fit, held)
    assert found.auc > 0.85
    assert abs(sum(found.shuffled) / len(found.shuffled) - 0.5) < 0.15
    assert max(found.shuffled) < found.auc
    assert separation("layers.0.resid_post", fit, held) == found
    with pytest.raises(ShapeError, match="pairs"):
        separation("x", (fit[0], fit[1][:5]), held)


def test_intervals() -> None:
    x = torch.randn(400, generator=torch.Generator().manual_seed(1))
    low, high = bootstrap_interval(x)
    half = 1.96 * float(x.std()) / 20
    assert low == pytest.approx(float(x.mean()) - half, abs=0.02)
    assert high == pytest.approx(float(x.mean()) + half, abs=0.02)
    assert bootstrap_interval(x) == (low, high)
    draws = torch.tensor([1.0, 2.0, 3.0])
    assert prediction_interval(draws) == pytest.approx((2 - 4.303 * 1.1547, 2 + 4.303 * 1.1547), abs=1e-3)
    with pytest.raises(InputError, match="at least 2"):
        prediction_interval(draws[:1])


def _measure(truth: torch.Tensor):  # a linear world: pushing along `truth` raises every item by its own slope
    slopes = torch.tensor([0.5, 1.0, 1.5])

    def measure(edit):
        push = 0.0 if edit is None else float((edit.alpha * edit.vector) @ truth)
        return 10 + slopes * push

    return measure


def test_dose_response_in_a_linear_world() -> None:
    truth = torch.nn.functional.one_hot(torch.tensor(3), 64).float()
    direction = Direction(2 * truth, site="layers.0.resid_post")
    result = dose_response(direction, [-0.5, 0.0, 0.5, 1.0], _measure(truth), controls=6)
    assert result.mean == pytest.approx([-1.0, 0.0, 1.0, 2.0])
    assert result.base.tolist() == [10.0, 10.0, 10.0]
    rows = result.rows()
    assert rows[1]["random"] == 0.0
    assert rows[3]["effect_low"] <= 2.0 <= rows[3]["effect_high"]
    assert rows[3]["random_low"] < 0 < rows[3]["random_high"] < rows[3]["effect"]
    with pytest.raises(InputError, match="at least 2"):
        dose_response(direction, [1.0], _measure(truth), controls=1)


def test_choice_keeps_within_the_cost() -> None:
    truth = torch.nn.functional.one_hot(torch.tensor(0), 8).float()
    weak, strong = Direction(truth, site="layers.0.resid_post"), Direction(3 * truth, site="layers.1.resid_post")
    trials = try_doses([weak, strong], [0.5, 1.0], _measure(truth), _measure(truth))
    assert [t.effect for t in trials] == pytest.approx([0.5, 1.0, 1.5, 3.0])
    best = best_within(trials, limit=1.6)
    assert (best.direction.site, best.dose) == ("layers.1.resid_post", 0.5)
    assert best_within(trials, limit=-1.0).effect == pytest.approx(0.5)  # none is cheap enough: the cheapest
