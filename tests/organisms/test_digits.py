"""The real digits: balanced, disjoint, in range."""

from __future__ import annotations

import pytest
import torch

from interneuron.core.errors import InputError
from interneuron.organisms.digits import digits


def test_train_and_test_are_disjoint_and_complete() -> None:
    train, test, whole = (digits(split, seed=3) for split in ("train", "test", "all"))
    assert set(train.index.tolist()).isdisjoint(test.index.tolist())
    assert len(train) + len(test) == len(whole) == 1797
    assert torch.bincount(test.labels).min() >= 34
    assert whole.images.min() == 0
    assert whole.images.max() == 1


def test_resizing_keeps_digits_apart() -> None:
    big = digits("train", size=32, channels=3, n=50)
    assert big.images.shape == (50, 3, 32, 32)
    assert torch.equal(big.images[:, 0], big.images[:, 2])
    assert torch.equal(big.labels, digits("train", n=50).labels)


def test_mistakes_are_taught() -> None:
    with pytest.raises(InputError, match="Did you mean 'test'"):
        digits("tests")
    with pytest.raises(InputError, match=r"has 3\d\d images"):
        digits("test", n=5000)
