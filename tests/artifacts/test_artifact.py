"""The Artifact base: declared once, saved and loaded bit by bit, bound to its model, safe through crashes."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from interneuron.artifacts import Artifact, Direction, Report, kinds, load_artifact
from interneuron.core.errors import ArtifactError, FingerprintMismatch, InputError, InterneuronError


class SparseMap(Artifact):
    """A kind that uses every sort of field."""

    weight: Tensor
    bias: Tensor | None = None
    parts: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    k: int = 1
    threshold: float = 0.5
    mode: Literal["topk", "relu"] = "topk"
    steps: tuple[int, ...] = ()
    pair: tuple[str, float] = ("a", 0.0)
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    note: str | None = None


def full() -> SparseMap:
    return SparseMap(
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        parts={"layers.0.resid_post": torch.tensor([float("nan"), -0.0]), "b": torch.tensor([True, False])},
        k=2**62,
        threshold=1,
        steps=(1, 2),
        pair=("b", float("-inf")),
        scores={"loss": float("nan"), "größe": 1.5e-300},
        note="häßlich\n\x07",
        site=("layers.0.resid_post", "layers.1.resid_post"),
        slug="sparse-map",
        fingerprint={"class": "GPT2LMHeadModel", "n_parameters": 124_439_808, "weights": "ab" * 32},
        fitted={"seed": 0, "lr": 1e-3, "shape": (2, 3)},
    )


def test_every_sort_of_field_comes_back(tmp_path: Path) -> None:
    before = full()
    before.save(tmp_path / "deep" / "folder")
    after = load_artifact(tmp_path / "deep" / "folder")
    assert isinstance(after, SparseMap)
    assert after.same_bits(before)
    assert (after.k, after.steps, after.pair, after.note) == (2**62, (1, 2), ("b", float("-inf")), "häßlich\n\x07")
    assert after.scores["loss"] != after.scores["loss"]
    assert after.bias is None
    assert type(after.threshold) is float
    assert after.sites == before.sites == ("layers.0.resid_post", "layers.1.resid_post")
    assert load_artifact(tmp_path / "deep" / "folder" / "artifact.json").same_bits(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_save_load_same_bits_for_every_kind_and_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    made: list[Artifact] = [
        Direction(torch.randn(2, 5).to(dtype), site=("a", "b")),
        Report(title="r", numbers={"x": 0.1 + 0.2}, arrays={"a": torch.randn(3, 3).to(dtype)}),
        Report(title="nothing but text"),
        full().to(dtype=dtype),
    ]
    for i, artifact in enumerate(made):
        artifact.save(tmp_path / str(i))
        assert load_artifact(tmp_path / str(i)).same_bits(artifact)
        files = {p.name: p.read_bytes() for p in (tmp_path / str(i)).iterdir()}
        load_artifact(tmp_path / str(i)).save(tmp_path / f"again{i}")
        assert {p.name: p.read_bytes() for p in (tmp_path / f"again{i}").iterdir()} == files


def test_same_bits_sees_every_difference() -> None:
    one = full()
    assert one.same_bits(full())
    assert not one.same_bits(one.replace(k=3))
    assert not one.same_bits(one.replace(weight=one.weight + 1e-7))
    assert not one.same_bits(one.replace(parts={}))
    assert not one.same_bits(one.replace(bias=torch.zeros(1)))
    assert not one.same_bits(Report())
    minus = one.replace(weight=torch.tensor([[-0.0]]))
    assert not minus.same_bits(one.replace(weight=torch.tensor([[0.0]])))


def test_a_kind_is_declared_by_its_annotations_alone() -> None:
    assert SparseMap.kind == "sparse_map"
    assert kinds()["sparse_map"] is SparseMap
    assert {"direction", "report"} <= kinds().keys()
    with pytest.raises(dataclasses.FrozenInstanceError):
        full().k = 2  # type: ignore[misc]
    assert "weight=[3, 4] float32" in repr(full())


def test_kinds_of_one_name_are_refused(tmp_path: Path) -> None:
    def make() -> type[Artifact]:
        class Twice(Artifact):
            x: int = 0

        return Twice

    first = make()
    first().save(tmp_path)
    second = make()
    second.__qualname__ = "Elsewhere"
    with pytest.raises(ArtifactError, match="ambiguous"):
        load_artifact(tmp_path)


def test_fingerprint(tmp_path: Path) -> None:
    mine = full().fingerprint
    full().save(tmp_path)
    assert load_artifact(tmp_path, model=mine).same_bits(full())
    other = {**mine, "n_parameters": 260_032, "extra": 1}
    with pytest.raises(FingerprintMismatch) as caught:
        load_artifact(tmp_path, model=other)
    message = str(caught.value)
    assert "n_parameters was 124,439,808, is 260,032" in message
    assert "allow_mismatch=True" in message
    assert "class" not in message
    assert load_artifact(tmp_path, model=other, allow_mismatch=True).same_bits(full())
    del other["weights"]
    with pytest.raises(FingerprintMismatch, match=r"weights was abababababab\.\.\., is absent"):
        full().check_model(other)
    with pytest.raises(InputError, match="has no fingerprint"):
        full().check_model(torch.nn.Linear(1, 1))
    full().replace(fingerprint={}).check_model(other)  # bound to no model


def test_typed_load(tmp_path: Path) -> None:
    full().save(tmp_path)
    assert SparseMap.load(tmp_path).same_bits(full())
    with pytest.raises(ArtifactError, match="holds a sparse_map, expected a direction"):
        Direction.load(tmp_path)


def test_to_moves_and_converts_floating_tensors_only() -> None:
    moved = full().to("cpu", torch.float16)
    assert moved.weight.dtype == torch.float16
    assert moved.parts["b"].dtype == torch.bool
    assert full().to("meta").weight.is_meta


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fitted": {"f": lambda: 0}}, "cannot save a function"),
        ({"fitted": {1: 2}}, "keys must be text"),
        ({"fitted": {"a": torch.zeros(3)}}, "cannot save a Tensor"),
        ({"fitted": {"a": {"$float": 1}}}, "keys must be text"),
        ({"parts": {"../x": torch.zeros(1)}}, "not allowed"),
        ({"fitted": {"x": "y" * (1 << 20)}}, "limit is 1,048,576"),
    ],
)
def test_what_cannot_be_saved_is_said_and_the_old_artifact_stays(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    full().save(tmp_path)
    with pytest.raises(InterneuronError, match=words):
        full().replace(**change).save(tmp_path)
    assert load_artifact(tmp_path).same_bits(full())


def test_numbers_of_torch_and_numpy_become_plain(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    made = full().replace(fitted={"a": torch.tensor(2), "b": numpy.float32(0.5), "c": numpy.int64(3), "d": True})
    made.save(tmp_path)
    assert load_artifact(tmp_path).fitted == {"a": 2, "b": 0.5, "c": 3, "d": True}


def test_saving_over_an_artifact_leaves_two_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for seed in range(3):
        Direction(torch.full((4,), 1.0 + seed), site="a").save(tmp_path)
        assert len(list(tmp_path.iterdir())) == 3
    Report(title="no tensors").save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["artifact.json", "notes.txt"]


def test_a_full_disk_is_one_line_and_the_old_artifact_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Direction(torch.ones(4), site="a")
    old.save(tmp_path)
    calls = {"n": 0, "fail": 0}
    for name in ("open", "fsync", "replace"):
        real = getattr(os, name)

        def maybe(*args: Any, _real: Any = real, **kwargs: Any) -> Any:
            calls["n"] += 1
            if calls["n"] == calls["fail"]:
                raise OSError(errno.ENOSPC, "No space left on device")
            return _real(*args, **kwargs)

        monkeypatch.setattr(os, name, maybe)
    messages = []
    for n in range(1, 100):  # every call fails once, in turn
        new = Direction(torch.full((4,), 1.0 + n), site="a")
        calls.update(n=0, fail=n)
        try:
            new.save(tmp_path)
        except ArtifactError as error:
            messages.append(str(error))
        else:
            break
        calls["fail"] = 0
        found = load_artifact(tmp_path)
        assert found.same_bits(old) or found.same_bits(new)
        assert not list(tmp_path.glob(".*.tmp"))
        old = found
    assert len(messages) >= 8
    assert all("No space left on device" in message and "\n" not in message for message in messages)


def test_a_second_saver_is_turned_away(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    full().save(tmp_path)
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match="another process is saving here"):
            Report().save(tmp_path)
        assert load_artifact(tmp_path).same_bits(full())  # readers need no lock
    finally:
        os.close(handle)
    Report().save(tmp_path)


def test_a_reader_between_two_saves_reads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The document is read, then a saver replaces everything, then the tensor file is asked for."""
    from interneuron.artifacts import folder

    Direction(torch.ones(4), site="a").save(tmp_path)
    real, new = folder.parse_document, Direction(torch.zeros(4) + 2, site="a")

    def slow(data: bytes, what: str) -> dict[str, Any]:
        document = real(data, what)
        monkeypatch.setattr(folder, "parse_document", real)
        new.save(tmp_path)
        return document

    monkeypatch.setattr(folder, "parse_document", slow)
    assert load_artifact(tmp_path).same_bits(new)


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(ArtifactError, match="not a folder"):
        full().save(tmp_path / "x")
    with pytest.raises(ArtifactError, match="no artifact here"):
        load_artifact(tmp_path / "x")
    with pytest.raises(ArtifactError, match="no artifact here"):
        load_artifact(tmp_path / "nowhere")
