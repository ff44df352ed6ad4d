"""Reasoning control vectors: scikit-learn's component, rows by hand, length-keeping edits, and the sweep in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from letters import Letters, letters_llama

from interneuron.artifacts import load_artifact
from interneuron.claims.steer import reasoning_control_vectors as claim
from interneuron.core.errors import InputError, ShapeError
from interneuron.model.model import Model
from interneuron.parts.steering_sweep import answer_log_probs, sweep_alpha
from interneuron.steer.reasoning_control_vectors import ControlVectors, ReasoningVector, reading_vector

RIGHT, WRONG = ["abc", "dab", "bcaa", "cd"], ["abx", "day", "bcaz", "cw"]


@pytest.fixture(scope="module")
def model() -> Model:
    return letters_llama(n_layers=3)


def hidden(model: Model, texts: list[str]) -> np.ndarray:
    """Last-token states from transformers' own output, one text at a time, [N S D]."""
    rows = []
    for text in texts:
        ids = torch.tensor([Letters()(text)["input_ids"]])
        with model.read("layers.*.resid_post") as acts, torch.no_grad():
            model.module(input_ids=ids)
        rows.append(torch.stack([acts[f"layers.{i}.resid_post"][0, -1] for i in range(3)]).double().numpy())
    return np.stack(rows)


def test_vectors_equal_numpy_and_scikit_learn(model: Model) -> None:
    from sklearn.decomposition import PCA

    good, bad = hidden(model, RIGHT), hidden(model, WRONG)
    reading = ReasoningVector("reading").fit(model, RIGHT)
    np.testing.assert_allclose(reading.vector.numpy(), good.mean(0), atol=1e-5)
    contrast = ReasoningVector("contrast", batch_size=2).fit(model, RIGHT, WRONG)
    np.testing.assert_allclose(contrast.vector.numpy(), (good - bad).mean(0), atol=1e-5)
    pca = ReasoningVector("pca").fit(model, RIGHT, WRONG)
    for layer in range(3):
        gaps = (good - bad)[:, layer]
        component = PCA(n_components=1).fit(gaps).components_[0] * np.linalg.norm(gaps.mean(0))
        component *= np.sign(component @ gaps.mean(0))
        np.testing.assert_allclose(pca.vector[layer].numpy(), component, atol=1e-4)


def test_addition_and_the_length_kept(model: Model) -> None:
    vectors = ReasoningVector().fit(model, RIGHT, WRONG)
    ids = torch.tensor([Letters()("abcd")["input_ids"]])
    site, (plain, added, turned) = "layers.1.resid_post", ([], [], [])
    for edits, out in (
        ([], plain),
        ([vectors.edit(0.7, site)], added),
        ([vectors.edit(0.7, site, normalize=True)], turned),
    ):
        with torch.no_grad():
            out.append(model.run(ids, read=[site], edit=edits).acts[site])
    torch.testing.assert_close(added[0], plain[0] + 0.7 * vectors.vector[1])
    torch.testing.assert_close(turned[0].norm(dim=-1), plain[0].norm(dim=-1))
    torch.testing.assert_close(
        turned[0] / turned[0].norm(dim=-1, keepdim=True), added[0] / added[0].norm(dim=-1, keepdim=True)
    )
    with torch.no_grad(), model.edit(vectors.edit(0.0, normalize=True)):
        nothing = model(ids).logits
    with torch.no_grad():
        assert torch.equal(nothing, model(ids).logits)


def test_one_site_is_a_direction_with_its_random_control(model: Model, tmp_path) -> None:
    vectors = ReasoningVector().fit(model, RIGHT, WRONG)
    one = vectors.at("layers.2.resid_post")
    assert torch.equal(one.vector, vectors.vector[2])
    torch.testing.assert_close(one.random_like(0).norm, one.norm)
    assert vectors.edit().site == "layers.1.resid_post"  # the middle one
    loaded = load_artifact(vectors.save(tmp_path / "v"), model=model)
    assert isinstance(loaded, ControlVectors)
    assert loaded.same_bits(vectors)
    with pytest.raises(InputError, match="no vector at 'layers.9.resid_post'"):
        vectors.at("layers.9.resid_post")


def test_the_sweep_equals_numpy(model: Model) -> None:
    vectors = ReasoningVector().fit(model, RIGHT, WRONG)
    labels, options = torch.tensor([1, 2, 3, 1]), torch.tensor([1, 2, 3])
    report = sweep_alpha(model, vectors.edit, [-1.0, 0.0, 1.0], RIGHT, labels, options, batch_size=3)
    before = answer_log_probs(model, RIGHT).double().numpy()
    after = answer_log_probs(model, RIGHT, vectors.edit(1.0)).double().numpy()
    p0, p1 = np.exp(before), np.exp(after)
    row = report.tables["sweep"][2]
    right = p1[np.arange(4), labels.numpy()]
    assert row["kl"] == pytest.approx((p0 * (before - after)).sum(1).mean(), rel=1e-4)
    assert row["entropy"] == pytest.approx(-(p1 * after).sum(1).mean(), rel=1e-4)
    assert row["correct"] == pytest.approx(right.mean(), rel=1e-4)
    assert row["other"] == pytest.approx((p1[:, options.numpy()].sum(1) - right).mean(), rel=1e-4)
    chosen = options.numpy()[after[:, options.numpy()].argmax(1)]
    assert row["accuracy"] == (chosen == labels.numpy()).mean()
    middle = report.tables["sweep"][1]
    assert middle["kl"] == 0.0
    assert middle["entropy"] == pytest.approx(-(p0 * before).sum(1).mean(), rel=1e-4)
    alone = answer_log_probs(model, RIGHT[3:])
    torch.testing.assert_close(alone[0], answer_log_probs(model, RIGHT)[3], atol=1e-4, rtol=0)  # padding is not seen


def test_the_claim_reads_finished_solutions_and_keeps_its_problems_apart() -> None:
    told = "compute : 4 + 8 ? let us see step by step . start with 4 . now take 4 plus 8 . 4 plus 8 makes 12 ."
    assert claim._result(told + " so now we have 12 .") == ""  # cut off before its result
    assert claim._result(told + " so now we have 12 . the result is 12 .") == "12"
    assert claim._result("briefly compute : 4 + 8 ? : 4 + 8 = 12 , = 12 .") == "12"
    assert claim._result("briefly compute : 4 + 8 ? : 4 + 8 = 12 , = 12") == ""
    parts = [claim._task("arithmetic", n, 107, part) for part, n in enumerate((40, 40, 60))]
    assert [sum(p.startswith("briefly ") for p in task.prompts) for task in parts] == [20, 20, 30]
    fitted, chosen, tested = ({p.removeprefix("briefly ") for p in task.prompts} for task in parts)
    assert not fitted & chosen
    assert not tested & (fitted | chosen)


@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_taught(model: Model) -> None:
    for vector, negative, match in [
        ("contrast", None, "needs negative texts"),
        ("reading", WRONG, "uses no negative"),
        ("mean", WRONG, "expected one of reading, contrast, pca"),
    ]:
        with pytest.raises(InputError, match=match):
            ReasoningVector(vector).fit(model, RIGHT, negative)
    with pytest.raises(ShapeError, match="one negative for each positive"):
        ReasoningVector().fit(model, RIGHT, WRONG[:2])
    with pytest.raises(InputError, match="needs at least 2"):
        reading_vector("pca", torch.ones(1, 4), torch.zeros(1, 4))
    with pytest.raises(InputError, match="a list of at least one text"):
        ReasoningVector("reading").fit(model, "abc")
    with pytest.raises(ShapeError, match="one id per prompt"):
        sweep_alpha(model, lambda a: None, [1.0], RIGHT, torch.tensor([1]))
