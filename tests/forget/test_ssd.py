"""Selective synaptic dampening: importances and factors against NumPy, changes that come off bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import interneuron as inn
from interneuron.artifacts import load_artifact
from interneuron.core.errors import FingerprintMismatch, InputError
from interneuron.core.seeds import generator
from interneuron.forget import SSD, membership_inference
from interneuron.model.model import Model
from interneuron.parts.importance import fisher_diagonal


def linear(width: int = 3, classes: int = 4) -> Model:
    net = nn.utils.skip_init(nn.Linear, width, classes)
    with torch.no_grad():
        net.weight.copy_(torch.randn(classes, width, generator=generator(1)))
        net.bias.copy_(torch.randn(classes, generator=generator(2)))
    return inn.wrap(net.eval())


def rows(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = generator(seed)
    return torch.randn(n, 3, generator=rng), torch.randint(4, (n,), generator=rng)


def softmax_gradients(model: Model, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """d loss / d weight of each sample for a linear softmax classifier: (p - onehot) x^T."""
    w, b = (p.detach().double().numpy() for p in model.module.parameters())
    scores = x.double().numpy() @ w.T + b
    p = np.exp(scores - scores.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True) - np.eye(4)[y.numpy()]
    return np.einsum("nc,nd->ncd", p, x.double().numpy())


def test_fisher_diagonal_against_numpy() -> None:
    model, (x, y) = linear(), rows(6)
    each = softmax_gradients(model, x, y)
    np.testing.assert_allclose(fisher_diagonal(model, x, y)["weight"], (each**2).mean(0), rtol=1e-5, atol=1e-8)
    pairs = each.reshape(3, 2, 4, 3).mean(1)  # batches of two: squares of mean gradients
    np.testing.assert_allclose(fisher_diagonal(model, x, y, 2)["weight"], (pairs**2).mean(0), rtol=1e-5, atol=1e-8)


def test_selected_weights_shrink_by_the_ratio_of_importances() -> None:
    everything = {"w": torch.tensor([1.0, 1.0, 1.0, 0.0, 4.0])}
    special = {"w": torch.tensor([1.9, 2.5, 4.0, 1.0, 0.0])}
    beta = SSD(threshold=2.0).factors(everything, special)["w"]
    torch.testing.assert_close(beta, torch.tensor([1.0, 0.4, 0.25, 0.0, 1.0]))
    stronger = SSD(threshold=2.0, dampening=3.0).factors(everything, special)["w"]
    torch.testing.assert_close(stronger, torch.tensor([1.0, 1.0, 0.75, 0.0, 1.0]))  # never above 1


def test_a_change_is_applied_reverted_and_saved_bit_for_bit(tmp_path) -> None:
    model, (x, y) = linear(), rows(40)
    old = {k: v.clone() for k, v in model.module.state_dict().items()}
    chosen = y == 2
    delta = SSD(threshold=1.2).fit(model, x, x[chosen], labels=y, forget_labels=y[chosen])
    assert all(torch.equal(v, old[k]) for k, v in model.module.state_dict().items())  # fitting changes nothing
    assert 0 < delta.selected_fraction < 1
    with pytest.raises(ZeroDivisionError), delta.applied(model):
        assert not torch.equal(model.module.weight, old["weight"])
        raise ZeroDivisionError
    assert all(torch.equal(v, old[k]) for k, v in model.module.state_dict().items())
    load_artifact(delta.save(tmp_path / "delta")).apply(model)  # type: ignore[attr-defined]
    with pytest.raises(FingerprintMismatch, match="holds other values"):
        delta.apply(model)
    delta.revert(model)
    assert torch.equal(model.module.weight, old["weight"])


def test_a_class_is_forgotten_and_the_others_stay() -> None:
    """One weight column a class, inputs one-hot: the class's own row is all that must go."""
    net = nn.utils.skip_init(nn.Linear, 4, 4)
    with torch.no_grad():
        net.weight.copy_(4.0 * torch.eye(4))
        net.bias.zero_()
    model, y = inn.wrap(net.eval()), torch.arange(4).repeat(5)
    x = torch.eye(4)[y]
    delta = SSD(threshold=2.0).fit(model, x, x[y == 1], labels=y, forget_labels=y[y == 1])
    with delta.applied(model):
        scores = model(torch.eye(4))
    assert scores[1, 1] < 2.0
    assert scores[[0, 2, 3], [0, 2, 3]].tolist() == [4.0, 4.0, 4.0]


def test_texts_need_no_labels_and_padding_does_not_count() -> None:
    model = inn.load("lm")
    short, long = "mia looked at the lamp .", "mia looked at the lamp in the garden and it was lovely ."
    one = fisher_diagonal(model, [short])
    assert all(torch.isfinite(v).all() for v in one.values())
    from interneuron.parts.importance import losses

    with torch.no_grad():
        both, alone = losses(model, [short, long]), losses(model, [short])
    assert both[0].item() == pytest.approx(alone[0].item(), abs=1e-5)


def test_membership_inference_sees_what_there_is_to_see() -> None:
    model, (x, y) = linear(), rows(60)
    best = model(x).argmax(-1).detach()
    worst = model(x).argmin(-1).detach()
    assert membership_inference(model, x[:30], x[30:], best[:30], worst[30:]) > 0.9
    assert 0.2 < membership_inference(model, x[:30], x[30:], y[:30], y[30:]) < 0.8


def test_wrong_uses_teach() -> None:
    model, (x, y) = linear(), rows(8)
    with pytest.raises(InputError, match="no weight matters 10.0 times more"):
        SSD().fit(model, x, x, labels=y, forget_labels=y)
    with pytest.raises(InputError, match="labels given for one set only"):
        SSD().fit(model, x, x, labels=y)
    with pytest.raises(InputError, match="8 inputs and 3 labels"):
        fisher_diagonal(model, x, y[:3])
    with pytest.raises(InputError, match="expected threshold and dampening > 0"):
        SSD(threshold=0)
