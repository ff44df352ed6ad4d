"""LinEAS: exact one-dimensional transport, a known affine map recovered, sparse steps by hand, the same model after."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from letters import letters_llama
from scipy.stats import wasserstein_distance
from torch import nn

from interneuron.artifacts import load_artifact
from interneuron.core.errors import InputError, ShapeError
from interneuron.model.load import wrap
from interneuron.model.model import Model
from interneuron.steer.lineas import AffineMaps, LinearAcT, LinEAS, least_squares_map, pooled, shrink, sorted_w2


def numpy_w2(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """By brute force: both samples repeated to a common size, then sorted."""
    x, y = (np.sort(np.repeat(v, k, axis=0), axis=0) for v, k in ((a, len(b)), (b, len(a))))
    return ((x - y) ** 2).mean(axis=0)


@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 6), (7, 3), (1, 4)])
def test_distance_equals_brute_force_also_for_unequal_sizes(n: int, m: int) -> None:
    rng = np.random.default_rng(n + m)
    a, b = rng.standard_normal((n, 3)), rng.standard_normal((m, 3))
    got = sorted_w2(torch.tensor(a), torch.tensor(b))
    np.testing.assert_allclose(got.numpy(), numpy_w2(a, b), rtol=1e-12)
    np.testing.assert_allclose(sorted_w2(torch.tensor(b), torch.tensor(a)).numpy(), got.numpy(), rtol=1e-12)
    assert float(sorted_w2(torch.tensor(a), torch.tensor(a)).max()) == 0


def test_distance_bounds_the_one_scipy_knows_and_ignores_order() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((40, 2)), 3 + rng.standard_normal((25, 2))
    squared = sorted_w2(torch.tensor(a), torch.tensor(b))
    first = [wasserstein_distance(a[:, j], b[:, j]) for j in range(2)]
    assert (squared.sqrt().numpy() >= np.array(first) - 1e-12).all()  # W1 <= W2
    moved = sorted_w2(torch.tensor(rng.permutation(a)), torch.tensor(b))
    torch.testing.assert_close(moved, squared)
    shifted = sorted_w2(torch.tensor(a), torch.tensor(a + 2.5))  # a pure shift by c costs c^2
    torch.testing.assert_close(shifted, torch.full((2,), 6.25, dtype=torch.float64))


def test_least_squares_recovers_a_known_affine_map() -> None:
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.standard_normal((30, 4)))
    scale, shift = torch.tensor([0.5, 2.0, 1.0, 3.0]).double(), torch.tensor([1.0, 0.0, -2.0, 0.5]).double()
    order = torch.tensor(rng.permutation(30))
    got = least_squares_map(x, (scale * x + shift)[order])
    torch.testing.assert_close(got[0], scale)
    torch.testing.assert_close(got[1], shift)
    constant = least_squares_map(torch.ones(3, 1), torch.tensor([[2.0], [4.0], [6.0]]))
    assert [float(v) for v in constant] == [1.0, 3.0]


def test_shrinking_by_hand() -> None:
    torch.testing.assert_close(shrink(torch.tensor([0.3, -0.1, 0.0]), 0.2, 0.0), torch.tensor([0.1, 0.0, 0.0]))
    v = torch.tensor([3.0, 4.0])  # length 5, shortened by 0.5 sqrt(2)
    torch.testing.assert_close(shrink(v, 0.0, 0.5), v * (1 - 0.5 * 2**0.5 / 5))
    assert shrink(v, 0.0, 4.0).tolist() == [0.0, 0.0]


@pytest.fixture(scope="module")
def tiny_lm() -> Model:
    return letters_llama(n_layers=2)


class OneLayer(nn.Module):
    """Token vectors, of which a text has one: pooled activations are rows of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, 3)
        self.last = nn.Linear(3, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.last(self.table(input_ids))


@pytest.fixture
def known() -> tuple[Model, torch.Tensor, torch.Tensor]:
    """A module in which the vectors of capital letters are an affine image of those of small letters."""
    module = OneLayer()
    scale, shift = torch.tensor([0.5, 1.5, 1.0]), torch.tensor([1.0, 0.0, -1.0])
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        rows = torch.randn(6, 3, generator=g)
        module.table.weight[:6] = rows
        module.table.weight[8:14] = scale * rows.flip(0) + shift
    return wrap(module.eval(), tokenizer=Digits()), scale, shift


class Digits:
    pad_token_id = 0

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(text)]}


SOURCE, TARGET = list(map(str, range(6))), list(map(str, range(8, 14)))


def test_a_known_affine_map_is_recovered(known) -> None:
    model, scale, shift = known
    maps = LinEAS(sites="table:out", lr=1.0, steps=400).fit(model, SOURCE, TARGET)
    torch.testing.assert_close(maps.scale["table:out"], scale, atol=1e-3, rtol=0)
    torch.testing.assert_close(maps.shift["table:out"], shift, atol=1e-3, rtol=0)
    act = LinearAcT(sites="table:out").fit(model, SOURCE, TARGET)
    torch.testing.assert_close(act.scale["table:out"], scale)
    torch.testing.assert_close(act.shift["table:out"], shift, atol=1e-6, rtol=0)


def test_sparse_maps_keep_less_and_the_strongest_penalty_keeps_nothing(known) -> None:
    model = known[0]
    kept = [LinEAS("table:out", l1=l1, lr=0.5, steps=100).fit(model, SOURCE, TARGET).kept for l1 in (0.0, 0.5, 9.0)]
    assert kept[0] == 1.0
    assert 0 < kept[1] < 1
    assert kept[2] == 0.0
    assert LinEAS("table:out", group=9.0, lr=0.5, steps=20).fit(model, SOURCE, TARGET).kept == 0.0


def test_momentum_gets_there_sooner_and_to_the_same_sparse_maps(known) -> None:
    model = known[0]
    settled, quick, slow = (
        LinEAS("table:out", l1=0.05, lr=lr, steps=n, momentum=m).fit(model, SOURCE, TARGET)
        for n, m, lr in ((150, 0.0, 0.4), (60, 0.8, 0.1), (60, 0.0, 0.1))
    )

    def far(maps: AffineMaps) -> float:
        name = "table:out"
        gaps = [maps.scale[name] - settled.scale[name], maps.shift[name] - settled.shift[name]]
        return float(torch.cat(gaps).abs().max())

    assert far(quick) < 0.2 * far(slow)
    assert quick.support()["table:out"].tolist() == settled.support()["table:out"].tolist()


def test_a_second_fit_frees_what_the_penalty_kept(known) -> None:
    model = known[0]
    options = {"sites": "table:out", "l1": 0.5, "lr": 0.5, "steps": 40}
    once = LinEAS(**options).fit(model, SOURCE, TARGET)
    twice = LinEAS(**options, refit=150).fit(model, SOURCE, TARGET)
    assert 0 < twice.kept <= once.kept < 1
    assert set(twice.support()["table:out"].tolist()) <= set(once.support()["table:out"].tolist())
    full = LinEAS("table:out", lr=0.5, steps=150).fit(model, SOURCE, TARGET)
    for j in once.support()["table:out"].tolist():  # coordinates do not act on each other in this model
        torch.testing.assert_close(twice.scale["table:out"][j], full.scale["table:out"][j])
        torch.testing.assert_close(twice.shift["table:out"][j], full.shift["table:out"][j])
    with pytest.raises(InputError, match="refit=5 with l1=0.0"):
        LinEAS("table:out", refit=5).fit(model, SOURCE, TARGET)


def test_the_first_step_is_the_gradient_in_numpy(known) -> None:
    model = known[0]
    maps = LinEAS("table:out", lr=0.25, steps=1).fit(model, SOURCE, TARGET)
    table = model.module.table.weight.detach().double().numpy()
    x, y = np.sort(table[:6], axis=0), np.sort(table[8:14], axis=0)
    slope_shift = 2 * (x - y).mean(0) / 3  # of 1/D sum_j mean_i (x_ij - y_ij)^2 at w = 1, b = 0
    slope_scale = 2 * ((x - y) * x).mean(0) / 3
    np.testing.assert_allclose(maps.shift["table:out"].numpy(), -0.25 * slope_shift, atol=1e-6)
    np.testing.assert_allclose(maps.scale["table:out"].numpy(), 1 - 0.25 * slope_scale, atol=1e-6)


def test_pooling_leaves_padding_out(tiny_lm: Model) -> None:
    model, site = tiny_lm, "layers.0.norm2"
    both = pooled(model, ["abcdefgh", "abc"], [site])[site]
    for text, row in zip(["abcdefgh", "abc"], both, strict=True):
        torch.testing.assert_close(row, pooled(model, [text], [site])[site][0], atol=1e-5, rtol=0)


def test_later_maps_see_earlier_ones_and_the_loss_falls(tiny_lm: Model) -> None:
    model = tiny_lm
    source, target = ["abc", "abd", "bca", "cab"], ["xyz", "zyx", "yxz", "xzyy"]
    maps = LinEAS(lr=0.5, steps=30).fit(model, source, target)
    assert list(maps.scale) == [f"layers.{i}.norm{k}" for i in (0, 1) for k in (1, 2)]
    assert maps.fitted["last loss"] < 0.5 * maps.fitted["first loss"]
    goal = pooled(model, target, list(maps.scale))
    now = pooled(model, source, list(maps.scale), maps.edit(1.0))
    total = sum(float(sorted_w2(now[n], goal[n]).mean()) for n in goal)
    assert total <= maps.fitted["last loss"] * 1.001
    assert all(p.grad is None for p in model.module.parameters())


def test_artifact_strength_control_and_file(tmp_path) -> None:
    maps = AffineMaps(
        scale={"a": torch.tensor([2.0, 1.0]), "b": torch.ones(2)},
        shift={"a": torch.tensor([0.0, 3.0]), "b": torch.zeros(2)},
        site=("a", "b"),
    )
    assert {name: found.tolist() for name, found in maps.support().items()} == {"a": [0, 1], "b": []}
    assert maps.kept == 0.5
    assert load_artifact(maps.save(tmp_path / "maps")).same_bits(maps)
    control = maps.permuted(1)
    assert sorted(control.scale["a"].tolist()) == [1.0, 2.0]
    assert [edit.strength for edit in maps.edit(0.25)] == [0.25, 0.25]
    assert len(maps.plot()["ticks"]) == 2


@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_taught(known, tiny_lm: Model) -> None:
    model = known[0]
    for method in (LinEAS("table:out", steps=2), LinearAcT("table:out")):
        with pytest.raises(InputError, match="at least two texts"):
            method.fit(model, ["1"], TARGET)
    with pytest.raises(InputError, match="expected penalties >= 0"):
        LinEAS("table:out", lr=-1.0).fit(model, SOURCE, TARGET)
    with pytest.raises(InputError, match="momentum=0.9 with optimizer='adam'"):
        LinEAS("table:out", optimizer="adam", momentum=0.9).fit(model, SOURCE, TARGET)
    with pytest.raises(InputError, match="ower lr"):
        LinEAS(lr=1e9, steps=9).fit(tiny_lm, ["abc", "abd"], ["xyz", "zy"])
    with pytest.raises(ShapeError, match=r"\[N D\] and \[M D\]"):
        sorted_w2(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ShapeError, match="two \\[D\\]"):
        AffineMaps(scale={"a": torch.ones(2)}, shift={})
