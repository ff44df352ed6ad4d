"""Weighted steering controller: its loss in NumPy, eq. 4 by hand on a model, separation, and one pass per decision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from letters import Letters, letters_llama

from interneuron.artifacts import Direction, load_artifact
from interneuron.core.errors import InputError, ShapeError
from interneuron.model.model import Model
from interneuron.steer.weighted_steering_controller import SteeringController, controller_loss

HARMFUL, BENIGN = ["abz", "cdez", "fgz", "hijkz"], ["aby", "cdey", "fgy", "hijky"]


@pytest.fixture(scope="module")
def model() -> Model:
    return letters_llama(n_layers=4)


@pytest.fixture(scope="module")
def network(model: Model):
    return SteeringController(hidden=32, epochs=40, lr=5e-3, batch_size=2).fit(model, HARMFUL, BENIGN)


def test_the_loss_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    w1, b1, w2, b2 = (rng.standard_normal(s) for s in ((5, 6), 5, (4, 5), 4))
    x, y = rng.standard_normal((3, 6)), rng.standard_normal((2, 6))

    def out(states: np.ndarray) -> np.ndarray:
        return np.maximum(states @ w1.T + b1, 0) @ w2.T + b2

    def sigma(v: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-v))

    w = sigma(out(x)[:, 1:])
    wanted = -np.log(sigma(out(x)[:, 0])).mean() - np.log(1 - sigma(out(y)[:, 0])).mean()
    wanted += 0.1 * (np.abs(w - 0.5).mean() + 0.01 * w.mean())
    got = controller_loss([torch.tensor(v) for v in (w1, b1, w2, b2)], torch.tensor(x), torch.tensor(y))
    assert float(got) == pytest.approx(wanted, rel=1e-10)


def test_it_tells_the_groups_apart_and_equal_seeds_agree(model: Model, network) -> None:
    seen = network.strengths(model, HARMFUL + BENIGN).sum(1)
    assert seen[:4].min() > 0 > seen[4:].max()
    assert float(network.positive.min()) > 0 > float(network.negative.max())
    again = SteeringController(hidden=32, epochs=40, lr=5e-3, batch_size=2).fit(model, HARMFUL, BENIGN)
    assert again.same_bits(network)
    assert not SteeringController(hidden=32, epochs=1, seed=1).fit(model, HARMFUL, BENIGN).same_bits(network)


def test_equation_four_by_hand_also_in_a_padded_batch(model: Model, network) -> None:
    texts, alpha = ["abcz", "dy"], 1.5
    assert network.reads == ("layers.1.resid_post", "layers.2.resid_post")
    assert network.sites == ("layers.3.resid_post",)
    names = [*network.reads, *network.sites]
    with torch.no_grad():
        plain = model.run(texts, read=names).acts
        moved = model.run(texts, read=names, edit=list(network.edit(alpha))).acts
    for row, length in enumerate((4, 2)):
        last = length - 1
        states = torch.cat([plain[name][row, last] for name in network.reads])
        hidden = (network.hidden_weight @ states + network.hidden_bias).relu()
        s, w = network.out_weight @ hidden + network.out_bias
        push = alpha * s * w.sigmoid() * network.direction
        before, after = plain[network.sites[0]][row], moved[network.sites[0]][row]
        torch.testing.assert_close(after[last], before[last] + push, atol=1e-4, rtol=1e-4)
        assert torch.equal(after[:last], before[:last])
    for name in network.reads:
        assert torch.equal(plain[name], moved[name])
    with torch.no_grad():
        sided = model.run(texts, read=list(network.sites), edit=list(network.edit(alpha, one_sided=True))).acts
    torch.testing.assert_close(sided[network.sites[0]][0], moved[network.sites[0]][0])
    assert torch.equal(sided[network.sites[0]][1, 1], plain[network.sites[0]][1, 1])  # harmless: left alone


def test_every_pass_decides_anew_and_zero_changes_nothing(model: Model, network) -> None:
    ids = torch.tensor([Letters()("abcz")["input_ids"]])
    edit = network.edit(2.0)
    with torch.no_grad(), model.edit(edit):
        first = model(ids).logits
        model("dey")
        second = model(ids).logits
    assert torch.equal(first, second)
    with torch.no_grad(), model.edit(network.edit(0.0)):
        nothing = model(ids).logits
    with torch.no_grad():
        assert torch.equal(nothing, model(ids).logits)
        assert not torch.equal(first, nothing)


def test_file_and_direction(model: Model, network, tmp_path) -> None:
    assert load_artifact(network.save(tmp_path / "n"), model=model).same_bits(network)
    assert float(network.direction.norm()) == pytest.approx(1.0)
    mine = Direction(2 * torch.ones(16), site="layers.1.resid_post")
    made = SteeringController(hidden=8, epochs=1).fit(model, HARMFUL, BENIGN, direction=mine)
    torch.testing.assert_close(made.direction, torch.full((16,), 0.25))
    assert made.plot()["ticks"] == ["3"]


@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_taught(model: Model, network) -> None:
    with pytest.raises(InputError, match="must lie behind the last one read"):
        SteeringController(read_sites=("layers.2.resid_post",), write_sites=("layers.1.resid_post",)).fit(
            model, HARMFUL, BENIGN
        )
    with pytest.raises(InputError, match="at least two prompts"):
        SteeringController().fit(model, HARMFUL[:1], BENIGN)
    with pytest.raises(InputError, match="has no layer number"):
        SteeringController(read_sites=("final_norm",)).fit(model, HARMFUL, BENIGN)
    with pytest.raises(ShapeError, match="states of width 3"):
        network.decide(torch.ones(1, 3))
    with pytest.raises(ShapeError, match="Fit it again"):
        network.replace(reads=("layers.1.resid_post",))
