from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interneuron.core.errors import InputError, ShapeError
from interneuron.model.model import Model
from interneuron.parts.patching import logit_difference, patch_grid

CLEAN = torch.tensor([[3, 7, 5, 9, 2], [3, 8, 5, 9, 2]])
CORRUPT = torch.tensor([[3, 7, 6, 9, 2], [3, 8, 6, 9, 2]])
METRIC = logit_difference(torch.tensor([4, 4]), torch.tensor([11, 11]))


def test_metric_by_hand() -> None:
    logits = torch.zeros(2, 3, 5)
    logits[0, -1, 1], logits[1, -1, 2] = 3.0, -1.0
    assert logit_difference(torch.tensor([1, 2]), torch.tensor([0, 0]))(logits).tolist() == [3.0, -1.0]


def test_grid_equals_patching_by_plain_hooks(tiny_lm: Model) -> None:
    sites = ["layers.0.resid_post", "layers.1.resid_post"]
    grid = patch_grid(tiny_lm, CLEAN, CORRUPT, METRIC, sites)
    module = tiny_lm.module
    kept: dict[int, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, i=i: kept.__setitem__(i, _first(out).clone()))
        for i, layer in enumerate(module.model.layers)
    ]
    with torch.no_grad():
        high = float(METRIC(module(CLEAN).logits).mean())
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        low = float(METRIC(module(CORRUPT).logits).mean())
    for i in range(2):
        for p in range(5):

            def put(_: object, __: object, out: object, i: int = i, p: int = p) -> object:
                x = _first(out).clone()
                x[:, p] = kept[i][:, p]
                return (x, *out[1:]) if isinstance(out, tuple) else x

            hook = module.model.layers[i].register_forward_hook(put)
            with torch.no_grad():
                patched = float(METRIC(module(CORRUPT).logits).mean())
            hook.remove()
            assert grid.recovery[i, p] == pytest.approx((patched - low) / (high - low), abs=1e-3)


def test_what_must_hold_of_any_causal_model(tiny_lm: Model) -> None:
    grid = patch_grid(tiny_lm, CLEAN, CORRUPT, METRIC, ["layers.0.resid_post", "layers.1.resid_post"])
    # Before the word that differs both runs are the same; after the last layer only the last position is read.
    assert torch.allclose(grid.recovery[:, :2], torch.zeros(2, 2), atol=1e-4)
    assert torch.allclose(grid.control[:, :2], torch.zeros(2, 2), atol=1e-4)
    assert torch.allclose(grid.recovery[1, :4], torch.zeros(4), atol=1e-4)
    assert float(grid.recovery[1, 4]) == pytest.approx(1.0, abs=1e-4)
    assert abs(float(grid.control[1, 4]) - 1.0) > 1e-2
    again = patch_grid(tiny_lm, CLEAN, CORRUPT, METRIC, ["layers.0.resid_post", "layers.1.resid_post"])
    assert torch.equal(grid.recovery, again.recovery)
    assert torch.equal(grid.control, again.control)


def test_chosen_positions_and_peak(tiny_lm: Model) -> None:
    whole = patch_grid(tiny_lm, CLEAN, CORRUPT, METRIC, ["layers.0.resid_post", "layers.1.resid_post"])
    part = patch_grid(tiny_lm, CLEAN, CORRUPT, METRIC, ["layers.1.resid_post"], positions=[2, 4])
    assert torch.allclose(part.recovery[0], whole.recovery[1, [2, 4]], atol=1e-5)
    site, position, value = part.peak()
    assert (site, position) == ("layers.1.resid_post", 4)
    assert value == float(part.recovery.max())


def test_wrong_uses(tiny_lm: Model) -> None:
    with pytest.raises(ShapeError, match="equally many tokens"):
        patch_grid(tiny_lm, CLEAN, CORRUPT[:, :4], METRIC, ["layers.0.resid_post"])
    with pytest.raises(InputError, match="tells apart"):
        patch_grid(tiny_lm, CLEAN, CLEAN, METRIC, ["layers.0.resid_post"])


def _first(out: object) -> Tensor:
    return out[0] if isinstance(out, tuple) else out  # type: ignore[return-value]
