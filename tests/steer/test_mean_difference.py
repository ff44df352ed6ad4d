"""Mean difference: equation 1 by hand, what padding and batches must not change, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

import interneuron as inn
from interneuron.core.errors import InputError, ShapeError, SiteNotFound
from interneuron.model.model import Model
from interneuron.organisms.tinyworld import tokenizer
from interneuron.steer import MeanDifference

POSITIVE = ["she felt happy .", "the lamp was lovely today .", "he looked cheerful ."]
NEGATIVE = ["she felt sad .", "the lamp was ugly again today ."]
SITE = "layers.1.resid_post"


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1152,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        pad_token_id=0,
    )
    return inn.wrap(LlamaForCausalLM(config).eval(), tokenizer=tokenizer.build())


def test_by_hand() -> None:
    positive = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    negative = torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    direction = MeanDifference().fit_activations(positive, negative, site="s")
    assert direction.vector.tolist() == [1.0, 2.0]
    assert (direction.site, direction.slug, direction.fitted["n_negative"]) == ("s", "mean_difference", 3)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_against_numpy_and_its_symmetries(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive, negative, shift = rng.normal(size=(n, 4)), rng.normal(size=(m, 4)), rng.normal(size=4)

    def fit(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return MeanDifference().fit_activations(torch.tensor(a), torch.tensor(b)).vector.numpy()

    v = fit(positive, negative)
    np.testing.assert_allclose(v, positive.mean(0) - negative.mean(0), atol=1e-12)
    np.testing.assert_allclose(fit(negative, positive), -v, atol=1e-12)
    np.testing.assert_allclose(fit(positive + shift, negative + shift), v, atol=1e-12)
    np.testing.assert_allclose(fit(positive[::-1].copy(), negative), v, atol=1e-12)


def test_half_precision_rows_are_summed_exactly() -> None:
    rows = torch.full((4096, 2), 1.001, dtype=torch.bfloat16)
    direction = MeanDifference().fit_activations(rows, torch.zeros(1, 2, dtype=torch.bfloat16))
    assert direction.vector.dtype == torch.float32
    assert torch.equal(direction.vector, rows[0].float())


def last_token(model: Model, texts: list[str], layer: int) -> torch.Tensor:
    """The residual stream behind a layer at the last token, one text at a time, without the library's engine."""
    rows = []
    for text in texts:
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = model.module(ids, output_hidden_states=True).hidden_states
        rows.append(states[layer + 1][0, -1])
    return torch.stack(rows).double()


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_fit_equals_plain_transformers(model: Model, batch_size: int) -> None:
    fitted = MeanDifference(batch_size=batch_size).fit(model, POSITIVE, NEGATIVE, site=SITE)
    wanted = last_token(model, POSITIVE, 1).mean(0) - last_token(model, NEGATIVE, 1).mean(0)
    torch.testing.assert_close(fitted.vector.double(), wanted, atol=1e-6, rtol=1e-5)
    assert fitted.site == SITE
    fitted.check_model(model)


def test_token_mean_ignores_padding(model: Model) -> None:
    together = MeanDifference(pos=None).fit(model, POSITIVE, NEGATIVE, site=SITE).vector
    alone = MeanDifference(pos=None, batch_size=1).fit(model, POSITIVE, NEGATIVE, site=SITE).vector
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_several_sites_give_one_row_each(model: Model) -> None:
    sites = ["layers.0.resid_post", "blocks.1.hook_resid_post"]
    direction = MeanDifference().fit(model, POSITIVE, NEGATIVE, site=sites)
    assert direction.sites == ("layers.0.resid_post", SITE)
    assert torch.equal(direction.vector[1], MeanDifference().fit(model, POSITIVE, NEGATIVE, site=SITE).vector)


def test_steering_moves_the_score_by_the_squared_norm(model: Model) -> None:
    direction = MeanDifference().fit(model, POSITIVE, NEGATIVE, site=SITE)
    plain = model.run(["he looked"], read=[SITE]).acts[SITE]
    with model.edit(direction.edit(alpha=2.0)):
        steered = model.run(["he looked"], read=[SITE]).acts[SITE]
    moved = direction.score(steered) - direction.score(plain)
    torch.testing.assert_close(moved, torch.full_like(moved, 2.0 * float(direction.norm)), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("positive", "negative", "error", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), ShapeError, r"shapes \[2, 3\] and \[2, 4\], expected \[N D\] and \[M D\]"),
        (torch.ones(2, 3), torch.ones(3), ShapeError, r"shapes \[2, 3\] and \[3\]"),
        (torch.ones(0, 3), torch.ones(2, 3), InputError, "positive: expected at least one row"),
        (torch.ones(2, 3), torch.tensor([[1.0, 2, float("nan")]]), InputError, "negative: 1 of 1 rows hold NaN"),
    ],
)
def test_wrong_activations_teach(
    positive: torch.Tensor, negative: torch.Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MeanDifference().fit_activations(positive, negative)


@pytest.mark.usefixtures("unchecked")
def test_wrong_groups_and_sites_teach(model: Model) -> None:
    with pytest.raises(InputError, match="negative: expected a list of at least one text"):
        MeanDifference().fit(model, POSITIVE, [], site=SITE)
    with pytest.raises(InputError, match="positive: expected a list of at least one text, got 'happy'"):
        MeanDifference().fit(model, "happy", NEGATIVE, site=SITE)
    with pytest.raises(SiteNotFound):
        MeanDifference().fit(model, POSITIVE, NEGATIVE, site="layers.7.resid_post")
