"""`digits`: scikit-learn's handwritten digits, the real images beside the generated ones.

1,797 scans of 8x8 pixels from the UCI repository, shipped inside scikit-learn, so nothing is downloaded.

Shapes. images Float[N 1 size size] in [0, 1], labels Int[N].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.core.errors import InputError, did_you_mean, need

SPLITS = ("train", "test", "all")


@dataclass(frozen=True)
class Digits:
    """images Float[N C size size] in [0, 1], labels Int[N] 0..9, and `index` Int[N] into scikit-learn's own order."""

    images: Tensor
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def flat(self) -> Tensor:
        """Float[N C size^2]: one row an image."""
        return self.images.flatten(1)


def digits(
    split: str = "train",
    *,
    seed: int = 0,
    size: int = 8,
    channels: int = 1,
    n: int | None = None,
    test_share: float = 0.2,
) -> Digits:
    """The digits, split by class-balanced random choice: train and test of one seed never share a scan.

    split     train, test or all
    size      side in pixels; other than 8 is resized bilinearly
    channels  1, or 3 for models that take colour
    n         the first n of the shuffled split

    >>> data = digits("test", size=16)
    ... data.images.shape[1:]
    torch.Size([1, 16, 16])
    """
    if split not in SPLITS:
        raise InputError(
            f"digits has no split {split!r}; expected one of {', '.join(SPLITS)}.{did_you_mean(split, SPLITS)}"
        )
    if size < 4 or channels not in (1, 3) or not 0.0 < test_share < 1.0:
        raise InputError(
            f"digits() needs size >= 4, channels 1 or 3 and 0 < test_share < 1; got {size}, {channels}, {test_share}."
        )
    raw = need("sklearn.datasets", extra="learn").load_digits()
    labels = torch.from_numpy(raw.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        members = order[labels[order] == label]
        is_test[members[: round(test_share * len(members))]] = True
    if split != "all":
        order = order[is_test[order] if split == "test" else ~is_test[order]]
    if n is not None:
        if not 0 <= n <= len(order):
            raise InputError(f"digits split {split!r} has {len(order)} images, got n={n}.")
        order = order[:n]
    images = torch.from_numpy(raw.images).float()[order][:, None] / 16.0
    if size != 8:
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=size < 8)
    return Digits(images.expand(-1, channels, -1, -1).contiguous(), labels[order], order)
