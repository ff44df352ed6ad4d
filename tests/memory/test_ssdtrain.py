"""Offloaded activations: the same bits, the bytes in memory, forwarding, changed tensors, disks that fail."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import interneuron as inn
from interneuron.core.errors import InputError, StoreError
from interneuron.core.seeds import generator
from interneuron.memory import ActivationOffload, ssdtrain
from interneuron.model.model import Model
from interneuron.parts.saved_tensors import SavedBytes
from interneuron.parts.spill_file import SpillFile
from interneuron.testing.state import snapshot

IDS = torch.randint(5, 1000, (4, 48), generator=generator(1))
SMALL = 1 << 12


@pytest.fixture(scope="module")
def model() -> Model:
    return inn.load("lm")


class GatedFile(SpillFile):
    """A file whose writes wait for `gate`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = threading.Event()

    def write(self, offset: int, data: memoryview) -> None:
        self.gate.wait(10)
        super().write(offset, data)


def grads(model: Model, off: ActivationOffload | None = None) -> list[Tensor]:
    if off is None:
        loss = model.module(IDS, labels=IDS).loss
    else:
        with off:
            loss = model.module(IDS, labels=IDS).loss
    return list(torch.autograd.grad(loss, list(model.module.parameters())))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize("options", [{}, {"prefetch": 0}, {"overlap": False}, {"keep_last": 0}, {"adaptive": False}])
def test_gradients_are_those_of_plain_training(model: Model, tmp_path: Path, options: dict[str, object]) -> None:
    before, exact = snapshot(model.module), grads(model)
    off = ActivationOffload(model, tmp_path, min_bytes=SMALL, **options)  # type: ignore[arg-type]
    for _ in range(3):
        assert same(grads(model, off), exact)
    assert off.resident.live == off.plain.live == 0 and os.listdir(tmp_path) == []
    assert off.stats()["read_back"] > 0 and off.stats()["dedup_saved"] > 0.1 * off.stats()["written"]
    assert not [line for line in before.differences(snapshot(model.module)) if "python rng" not in line]


def test_bytes_in_memory(model: Model, tmp_path: Path) -> None:
    """Written at once, what is held at the end of the forward pass are small tensors, the last block and the head."""
    with SavedBytes(model) as meter:
        loss = model.module(IDS, labels=IDS).loss
    off = ActivationOffload(model, tmp_path, min_bytes=SMALL, overlap=False)
    with off:
        mine = model.module(IDS, labels=IDS).loss
    assert 0.9 * meter.live <= off.plain.live <= 1.1 * meter.live
    assert off.resident.live <= 0.35 * off.plain.live
    none = ActivationOffload(model, tmp_path, min_bytes=SMALL, overlap=False, keep_last=6)
    with none:
        kept = model.module(IDS, labels=IDS).loss
    assert none.resident.live > 0.9 * none.plain.live
    del loss, mine, kept
    assert meter.live == off.resident.live == 0


def test_half_precision_halves_the_traffic(model: Model, tmp_path: Path) -> None:
    exact, full = grads(model), ActivationOffload(model, tmp_path, min_bytes=SMALL, adaptive=False)
    half = ActivationOffload(model, tmp_path, min_bytes=SMALL, adaptive=False, dtype=torch.bfloat16, overlap=False)
    grads(model, full)
    a, b = (torch.cat([g.flatten() for g in got]) for got in (grads(model, half), exact))
    assert 0 < float((a - b).norm() / b.norm()) < 0.02
    assert half.file.written <= 0.51 * (full.file.written + full.forwarded)


def test_what_is_not_written_yet_is_forwarded(model: Model, tmp_path: Path) -> None:
    file = GatedFile(tmp_path)
    off = ActivationOffload(model, file, min_bytes=SMALL)
    with off:
        loss = model.module(IDS, labels=IDS).loss
    got = list(torch.autograd.grad(loss, list(model.module.parameters())))
    file.gate.set()
    assert same(got, grads(model))
    assert off.forwarded > 0 and off.file.read_back == 0


def test_a_graph_can_be_run_backward_twice(model: Model, tmp_path: Path) -> None:
    parameters = list(model.module.parameters())
    off = ActivationOffload(model, tmp_path, min_bytes=SMALL, overlap=False)
    with off:
        loss = model.module(IDS, labels=IDS).loss
    first = list(torch.autograd.grad(loss, parameters, retain_graph=True))
    assert off.resident.live <= 0.35 * off.plain.live  # what was read is let go after use
    assert same(first, list(torch.autograd.grad(loss, parameters)))
    assert same(first, grads(model))


def test_two_graphs_at_once(model: Model, tmp_path: Path) -> None:
    off = ActivationOffload(model, tmp_path, min_bytes=SMALL)
    with off:
        a, b = (model.module(ids, labels=ids).loss for ids in (IDS, IDS[:2]))
    parameters = list(model.module.parameters())
    later = list(torch.autograd.grad(b, parameters))
    assert same(list(torch.autograd.grad(a, parameters)), grads(model))
    loss = model.module(IDS[:2], labels=IDS[:2]).loss
    assert same(later, list(torch.autograd.grad(loss, parameters)))


def test_a_tensor_changed_in_place_is_refused(tmp_path: Path) -> None:
    """Autograd's own check of versions does not look behind hooks: the gradient would be silently wrong."""
    w = torch.randn(64, 64, generator=generator(0)).requires_grad_()
    x = torch.randn(64, 64, generator=generator(1))
    file = GatedFile(tmp_path)
    with ActivationOffload(nn.Identity(), file, min_bytes=SMALL):
        loss = (x @ w).sum()
    x.mul_(2)
    file.gate.set()
    with pytest.raises(InputError, match="changed in place"):
        loss.backward()


def test_views_come_back_with_their_strides(tmp_path: Path) -> None:
    x = torch.randn(32, 48, generator=generator(0))
    w = torch.randn(32, 32, generator=generator(1)).requires_grad_()

    def loss() -> Tensor:
        return (x.T @ w).square().sum() + (w @ x[:, ::2]).sum() + (x.T[1:] @ w).exp().sum()

    with ActivationOffload(nn.Identity(), tmp_path, min_bytes=1, overlap=False):
        value = loss()
    assert torch.equal(torch.autograd.grad(value, w)[0], torch.autograd.grad(loss(), w)[0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_regions(tmp_path: Path, reentrant: bool) -> None:
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(4)))
    x = torch.randn(64, 64, generator=generator(0)).requires_grad_()

    def run() -> Tensor:
        y: Tensor = x
        for block in blocks:
            y = checkpoint(block, y, use_reentrant=reentrant)
        return y.square().sum()

    def slope(around: Callable[[], Tensor]) -> Tensor:
        x.grad = None
        around().backward()
        assert x.grad is not None
        return x.grad

    plain = slope(run)
    off = ActivationOffload(blocks, tmp_path, min_bytes=SMALL, keep_last=0, overlap=False)
    with off:
        assert torch.equal(slope(run), plain)
    assert off.file.written == 5 * 64 * 64 * 4 or reentrant  # inputs of the regions, and of the square


def test_nothing_is_left_after_an_error(model: Model, tmp_path: Path) -> None:
    before = snapshot(model.module)
    with pytest.raises(KeyboardInterrupt), ActivationOffload(model, tmp_path, min_bytes=SMALL):
        model.module(IDS, labels=IDS)
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    assert not [line for line in before.differences(snapshot(model.module)) if "python rng" not in line]


def test_a_full_disk_is_told(model: Model, tmp_path: Path) -> None:
    class Full(SpillFile):
        def write(self, offset: int, data: memoryview) -> None:
            raise OSError(28, "No space left on device")

    off = ActivationOffload(model, Full(tmp_path), min_bytes=SMALL, overlap=False)
    with pytest.raises(StoreError, match="No space left.*Free space"), off:
        model.module(IDS, labels=IDS)


@pytest.mark.parametrize("prefetch", [0, 8])
def test_a_disk_that_cannot_be_read_is_told(model: Model, tmp_path: Path, prefetch: int) -> None:
    class Short(SpillFile):
        def read(self, offset: int, into: memoryview) -> None:
            raise StoreError("the spill file ends early")

    off = ActivationOffload(model, Short(tmp_path), min_bytes=SMALL, prefetch=prefetch, overlap=prefetch > 0)
    with off:
        loss = model.module(IDS, labels=IDS).loss
    with pytest.raises(StoreError, match="ends early"):
        off.file.writer.submit(int).result()  # what was sent is written by now
        loss.backward()


def test_threads_are_woken_for_many_tensors_at_once(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = ActivationOffload(model, tmp_path, min_bytes=SMALL, adaptive=False)
    sent: list[int] = []
    submit = off.file.writer.submit

    def count(task: Callable[..., object], rows: list[object]) -> object:
        sent.append(len(rows))
        future = submit(task, rows)
        future.result()  # so that no load on the machine decides what is written in time
        return future

    monkeypatch.setattr(off.file.writer, "submit", count)
    assert same(grads(model, off), grads(model))
    assert sent and sum(sent) > 3 * len(sent)
    assert off.stats()["peak_resident"] < off.stats()["peak_plain"]


def test_the_first_pass_waits_for_a_slow_disk(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its speed is not known yet, and without waiting all would lie in memory."""
    monkeypatch.setattr(ssdtrain, "BATCH", 1 << 18)
    monkeypatch.setattr(ssdtrain, "AHEAD", 2)

    class Slow(SpillFile):
        def write(self, offset: int, data: memoryview) -> None:
            time.sleep(0.002)
            super().write(offset, data)

    shut = GatedFile(tmp_path)  # a disk that takes nothing
    waits = ActivationOffload(model, Slow(tmp_path), min_bytes=SMALL)
    never = ActivationOffload(model, shut, min_bytes=SMALL, adaptive=False)
    for off in (waits, never):
        grads(model, off)
    shut.gate.set()
    assert waits.resident.peak < 0.6 * waits.plain.peak < never.resident.peak
    assert waits.stall_s > never.stall_s


def test_slots_are_used_again(model: Model, tmp_path: Path) -> None:
    off = ActivationOffload(model, tmp_path, min_bytes=SMALL, overlap=False, adaptive=False)
    grads(model, off)
    end = off.file.take(1)
    for _ in range(2):
        grads(model, off)
    assert off.file.take(1) == end + 4096


def test_the_budget_follows_the_disk(model: Model, tmp_path: Path) -> None:
    off = ActivationOffload(model, tmp_path, min_bytes=SMALL, overlap=False)
    grads(model, off)
    off.file.write_seconds *= 1e4  # a disk that slow takes nothing in time
    off.resident.peak, written = 0, off.file.written
    grads(model, off)
    assert off.resident.peak > 0.8 * off.plain.peak and off.file.written - written < 0.2 * written


def test_report_draws_both_curves(model: Model, tmp_path: Path) -> None:
    off = ActivationOffload(model, tmp_path, min_bytes=SMALL)
    grads(model, off)
    plot = off.report().plot()
    assert max(plot["series"]["offloaded"]) < max(plot["series"]["plain"])


@pytest.mark.usefixtures("unchecked")
def test_wrong_uses_teach(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="min_bytes=0"):
        ActivationOffload(model, tmp_path, min_bytes=0)
    with pytest.raises(InputError, match=r"dtype=torch.int8"):
        ActivationOffload(model, tmp_path, dtype=torch.int8)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="no temporary file"):
        ActivationOffload(model, tmp_path / "file")
    off = ActivationOffload(model, tmp_path)
    with off, pytest.raises(InputError, match="open already"):
        off.__enter__()
