"""Direction: cases computed by hand, the mathematics it promises, and edits that do what their formula says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interneuron.artifacts import Direction
from interneuron.core.errors import ArtifactError, FingerprintMismatch, InputError, ShapeError
from interneuron.model.load import wrap

SITE = "layers.0.resid_post"


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_by_hand() -> None:
    d = Direction(torch.tensor([3.0, 4.0]), site=SITE)
    assert d.norm.item() == 5
    scores = d.score(torch.tensor([[[3.0, 4.0], [4.0, -3.0], [1.0, 1.0]]]))
    torch.testing.assert_close(scores, torch.tensor([[5.0, 0.0, 1.4]]))
    assert d.cosine(torch.tensor([4.0, -3.0])).item() == 0
    assert d.cosine(Direction(torch.tensor([-6.0, -8.0]), site="elsewhere")).item() == -1


def test_several_sites() -> None:
    d = Direction(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), site=("a", "b"))
    assert d.norm.tolist() == [5, 2]
    acts = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([[1.0, 7.0]]), "other": torch.zeros(3)}
    scores = d.score(acts)
    assert scores["a"].item() == 5
    assert scores["b"].tolist() == [7]
    assert d.cosine(d).tolist() == [1, 1]
    assert [edit.site for edit in d.edit(2.0)] == ["a", "b"]
    with pytest.raises(InputError, match="expected a mapping"):
        d.score(torch.zeros(2))


def test_one_site_reads_from_a_mapping() -> None:
    d = Direction(torch.tensor([3.0, 4.0]), site=SITE)
    assert d.score({SITE: torch.tensor([3.0, 4.0])}).item() == 5


@given(st.integers(0, 10_000), st.floats(0.01, 100.0))
def test_score_is_linear_and_blind_to_the_length_of_the_direction(seed: int, factor: float) -> None:
    v, x, y = (drawn(seed + i, *shape).double() for i, shape in enumerate([(8,), (5, 8), (5, 8)]))
    d = Direction(v, site=SITE)
    torch.testing.assert_close(d.score(x + factor * y), d.score(x) + factor * d.score(y))
    torch.testing.assert_close(Direction(v * factor, site=SITE).score(x), d.score(x))
    assert (d.score(x).abs() <= x.norm(dim=-1) * 1.00001).all()  # Cauchy-Schwarz


@given(st.integers(0, 10_000))
def test_random_control_has_the_same_norm_and_the_same_bits_again(seed: int) -> None:
    d = Direction(drawn(seed, 3, 16) * 7, site=("a", "b", "c"), slug="mean_difference", fingerprint={"class": "X"})
    control = d.random_like(seed)
    torch.testing.assert_close(control.norm, d.norm)
    assert control.same_bits(d.random_like(seed))
    assert not control.same_bits(d.random_like(seed + 1))
    assert (control.sites, control.fingerprint) == (d.sites, d.fingerprint)
    assert control.fitted["of"] == "mean_difference"


def test_random_control_points_anywhere() -> None:
    d = Direction(torch.eye(64)[0], site=SITE)
    cosines = torch.stack([d.cosine(d.random_like(seed)) for seed in range(200)])
    assert abs(cosines.mean().item()) < 0.03  # standard error 1/sqrt(64 * 200) = 0.009
    assert cosines.std().item() == pytest.approx(1 / 8, rel=0.2)  # 1/sqrt(D)


def test_random_control_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    Direction(torch.ones(4), site=SITE).random_like(0)
    assert torch.equal(torch.get_rng_state(), before)


def edited(d: Direction, edit: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A model of one linear map whose output is the site: its output as it is, and under the edit."""
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Identity())
    with torch.no_grad():
        module[0].weight.copy_(drawn(7, 8, 4))
    model, x = wrap(module), drawn(1, 5, 4)
    with torch.no_grad():
        plain = module(x)
        with model.edit(edit):
            return plain, model(x)


def test_edit_moves_the_score_by_alpha_times_the_norm() -> None:
    d = Direction(drawn(0, 8), site="0:out")
    plain, steered = edited(d, d.edit(2.5))
    torch.testing.assert_close(d.score(steered), d.score(plain) + 2.5 * d.norm)
    torch.testing.assert_close(steered, plain + 2.5 * d.vector)
    assert torch.equal(*edited(d, d.edit(0.0)))


def test_edits_of_several_sites_all_act() -> None:
    d = Direction(drawn(0, 2, 8), site=("0:out", "1:out"))
    plain, steered = edited(d, d.edit())
    torch.testing.assert_close(steered, plain + d.vector.sum(0))


def test_ablation_leaves_nothing_along_the_direction_and_everything_else() -> None:
    d = Direction(drawn(0, 8) * 100, site="0:out")
    plain, ablated = edited(d, d.ablation())
    torch.testing.assert_close(d.score(ablated), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(ablated, plain - d.score(plain)[:, None] * d.unit)


def test_a_direction_bound_to_its_model(tmp_path: Any) -> None:
    model, other = wrap(torch.nn.Linear(4, 8)), wrap(torch.nn.Linear(4, 9))
    d = Direction(drawn(0, 8), site=":out", fingerprint=model.fingerprint)
    d.save(tmp_path)
    assert Direction.load(tmp_path, model=model).same_bits(d)
    with pytest.raises(FingerprintMismatch, match="n_parameters was 40, is 45"):
        Direction.load(tmp_path, model=other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    d = Direction(torch.ones(4096, dtype=dtype), site=SITE)
    x = torch.ones(1, 4096, dtype=dtype)
    assert d.score(x).dtype == torch.float32
    assert d.score(x).item() == pytest.approx(64, rel=1e-2)
    assert d.cosine(d).item() == pytest.approx(1, rel=1e-2)
    assert d.random_like(0).vector.dtype == dtype


@pytest.mark.parametrize(
    ("vector", "site", "error", "words"),
    [
        (torch.ones(2, 3, 4), SITE, ShapeError, r"expected floating point \[D\] or \[S D\]"),
        (torch.ones(4, dtype=torch.long), SITE, ShapeError, "is torch.int64"),
        (torch.ones(0), SITE, ShapeError, r"\[0\]"),
        (torch.ones(2, 3), SITE, ShapeError, "for 1 site"),
        (torch.ones(3), ("a",), ShapeError, "for 1 site"),
        (torch.ones(2, 3), ("a", "b", "c"), ShapeError, "for 3 site"),
        (torch.tensor([1.0, float("nan")]), SITE, InputError, "NaN or infinity"),
        (torch.ones(3), (), ShapeError, r"Pass site="),
    ],
)
def test_what_is_no_direction(vector: torch.Tensor, site: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Direction(vector, site=site)


def test_wrong_uses_teach() -> None:
    d = Direction(torch.ones(4), site=SITE)
    with pytest.raises(ShapeError, match=r"shape \[2, 3\] at layers.0.resid_post, expected \[..., 4\]"):
        d.score(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match="expected the same"):
        d.cosine(torch.ones(5))
    zero = Direction(torch.zeros(4), site=SITE)
    for call in (lambda: zero.score(torch.ones(4)), lambda: zero.cosine(d), zero.ablation):
        with pytest.raises(InputError, match="all zeros"):
            call()
    with pytest.raises(ArtifactError, match="cannot save a object"):
        Direction(torch.ones(4), site=SITE, fitted={"x": object()})


def test_plot_is_data() -> None:
    plot = Direction(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), site=("a", "b")).plot()
    assert (plot["kind"], plot["names"], plot["values"]) == ("bars", ["a", "b"], [5, 2])
