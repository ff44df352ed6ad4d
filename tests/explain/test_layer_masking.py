"""Layer masking: equations against plain loops in float64, exactness of full masks, maps through branches and pools."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import interneuron as inn
from interneuron.core.errors import InputError, ShapeError, UnsupportedModel
from interneuron.core.seeds import generator
from interneuron.explain import grid_segments, lime, masked_layers, masked_logits
from interneuron.explain.layer_masking import _continue, _nearness, _weighted_ridge
from interneuron.model.model import Model


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


def fixed(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for i, (name, value) in enumerate([*module.named_parameters(), *module.named_buffers()]):
            if value.is_floating_point():
                value.copy_(normal(*value.shape, seed=i).abs() + 0.5 if "var" in name else normal(*value.shape, seed=i))
    return module.eval()


def small(*layers: nn.Module) -> Model:
    return inn.wrap(fixed(nn.Sequential(*layers)))


def left_half(side: int) -> torch.Tensor:
    return (torch.arange(side) < side // 2).expand(1, 1, side, side)


class Branches(nn.Module):
    """A residual block whose activation, sum and average over positions are functions, not modules."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.one(x))
        return self.last(F.relu(x + self.norm(self.two(x))).mean((2, 3)))


def test_the_fill_continues_what_is_kept_against_loops() -> None:
    x, mask = normal(1, 2, 6, 6).double(), torch.zeros(1, 1, 6, 6).double()
    mask[..., 1:3, 2:4] = 1
    got = _continue(x, mask, 2)[0].numpy()
    image, valid = (x * mask)[0].numpy(), mask[0, 0].numpy()
    for _ in range(2):
        new, grown = image.copy(), valid.copy()
        for i in range(6):
            for j in range(6):
                rows, columns = slice(max(i - 1, 0), i + 2), slice(max(j - 1, 0), j + 2)
                count = valid[rows, columns].sum()
                total = image[:, rows, columns].sum((1, 2))
                new[:, i, j] += (1 - valid[i, j]) * total / (count + 1e-5)
                grown[i, j] = min(valid[i, j] + count, 1)
        image, valid = new, grown
    np.testing.assert_allclose(got, image, rtol=1e-10, atol=1e-12)


def test_one_convolution_and_average_by_hand() -> None:
    """A 1 x 1 convolution sees no neighbours: the logits are the mean over the kept half alone."""
    model = small(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x, conv = normal(2, 3, 6, 6), model.module[0]  # type: ignore[index]
    wanted = F.relu(conv(x))[..., :3].mean((2, 3))
    torch.testing.assert_close(masked_logits(model, x, left_half(6)), wanted)


@pytest.mark.parametrize("build", [lambda: inn.load("cnn"), lambda: inn.wrap(fixed(Branches()))], ids=["cnn", "plain"])
def test_full_masks_change_no_bit_and_hidden_pixels_have_no_say(build: Callable[[], Model]) -> None:
    model, x = build(), torch.rand(3, 3, 32, 32, generator=generator(0))
    output = model(x)
    plain = output if isinstance(output, torch.Tensor) else output.logits
    assert torch.equal(masked_logits(model, x, torch.ones(1, 1, 32, 32)), plain)
    mask = left_half(32)
    one = masked_logits(model, x, mask)
    assert torch.equal(one, masked_logits(model, torch.where(mask, x, 7.0), mask))
    assert not torch.allclose(one, plain, atol=1e-3)
    torch.testing.assert_close(one[1:2], masked_logits(model, x[1:2], mask), rtol=1e-4, atol=1e-5)


def test_a_constant_image_looks_the_same_through_any_mask() -> None:
    """Without padding, content continued outward and averaged over valid places alone leaves no trace of a mask."""
    model = small(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(),
                  nn.AdaptiveAvgPool2d(1), nn.Flatten())  # fmt: skip
    x = torch.tensor([0.3, 0.9, 0.5])[None, :, None, None].expand(1, 3, 16, 16)
    with torch.no_grad():
        plain, masked = model(x), masked_logits(model, x, left_half(16))
        black = masked_logits(model, x, left_half(16), "black")
    torch.testing.assert_close(masked, plain, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(black, plain, atol=1e-2)


def test_an_average_that_is_a_function_equals_the_module() -> None:
    layers = [nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU()]

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = nn.Sequential(*layers), linear

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(F.avg_pool2d(self.body(x), 4).flatten(1))

    linear = nn.Linear(4, 3)
    module = small(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    x = normal(2, 3, 8, 8)
    torch.testing.assert_close(
        masked_logits(inn.wrap(Functional().eval()), x, left_half(8)), masked_logits(module, x, left_half(8))
    )


def test_gradients_reach_kept_pixels_only() -> None:
    model, x = inn.wrap(fixed(Branches())), normal(1, 3, 8, 8).requires_grad_()
    with masked_layers(model, left_half(8)):
        model(x).sum().backward()
    assert x.grad is not None
    assert x.grad[..., :4].abs().sum() > 0
    assert torch.equal(x.grad[..., 4:], torch.zeros(1, 3, 8, 4))


def test_ridge_against_scikit_learn_and_lime_finds_the_only_evidence() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    z = (torch.rand(40, 5, generator=generator(1)) < 0.5).double()
    p, weight = normal(40, seed=2).double(), _nearness(z, 0.25)
    np.testing.assert_allclose(
        weight, np.exp(-((1 - (z.sum(1) / (z.norm(dim=1) * 5**0.5).clamp_min(1e-9)).numpy()) ** 2) / 0.0625), rtol=1e-9
    )
    wanted = linear.Ridge(alpha=2.0).fit(z.numpy(), p.numpy(), sample_weight=weight.numpy()).coef_
    np.testing.assert_allclose(_weighted_ridge(z, p, weight, 2.0), wanted, rtol=1e-8)
    model = small(nn.Conv2d(1, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        model.module[0].weight.copy_(torch.tensor([9.0, -9.0]).view(2, 1, 1, 1))  # type: ignore[index]
    x = torch.zeros(1, 1, 8, 8)
    x[..., 4:, :4] = 1.0
    weights = lime(model, x, grid_segments(8, 8, 4), n=100, target=0)
    assert int(weights.argmax()) == 2
    assert torch.equal(weights, lime(model, x, grid_segments(8, 8, 4), n=100, target=0))


def test_a_grid_numbers_its_squares_row_by_row() -> None:
    assert grid_segments(3, 5, 2).tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]


@pytest.mark.usefixtures("unchecked")
def test_wrong_uses_teach() -> None:
    model, x = small(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)), normal(2, 3, 4, 4)
    with pytest.raises(ShapeError, match="expected \\[B 1 H W\\] of the same size"), masked_layers(model, left_half(6)):
        model(x)
    with pytest.raises(InputError, match="values other than 0 and 1"), masked_layers(model, torch.rand(1, 1, 4, 4)):
        model(x)
    with pytest.raises(ShapeError, match="Give one mask per image"):
        masked_logits(model, x, torch.ones(3, 1, 4, 4))
    with pytest.raises(InputError, match="Did you mean 'grey'"):
        masked_logits(model, x, left_half(4), "gray")
    with pytest.raises(ShapeError, match="Explain one image at a time"):
        lime(model, x, grid_segments(4, 4, 2))
    with (
        pytest.raises(UnsupportedModel, match=r"no nn\.Conv2d"),
        masked_layers(inn.wrap(nn.Linear(3, 2)), left_half(4)),
    ):
        pass
    model.module.train()
    with pytest.raises(InputError, match="training mode"), masked_layers(model, left_half(4)):
        model(x)
