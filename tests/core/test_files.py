"""Safe files: whole old or whole new on disk, the same bytes for the same tensors, and honest refusals."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from interneuron.core import files
from interneuron.core.errors import ArtifactError, ShapeError, UnsafeFile
from interneuron.core.strict_json import dump_json, parse_json
from interneuron.core.tensor_header import DTYPES


def every_dtype() -> dict[str, torch.Tensor]:
    made = {code.lower(): torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for code, (name, _) in DTYPES.items()}
    made.update(scalar=torch.tensor(3.5), empty=torch.empty(0, 4), nan=torch.tensor([float("nan"), -0.0, 1e-45]))
    made["turned"] = torch.arange(20.0).reshape(4, 5).t()
    return made


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].dtype, a[name].shape, bits(a[name])) == (b[name].dtype, b[name].shape, bits(b[name])), name


# --- tensors ---


def test_every_dtype_comes_back_bit_by_bit_and_safetensors_agrees(tmp_path: Path) -> None:
    path, tensors = tmp_path / "a.safetensors", every_dtype()
    sha = files.save_tensors(path, tensors, {"format": "pt"})
    assert sha == files.sha256_file(path) == files.sha256_tensors(tensors, {"format": "pt"})
    assert_same(files.load_tensors(path, sha256=sha), tensors)
    assert_same(load_file(path), tensors)  # the reference reader reads ours
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "b.safetensors")
    assert_same(files.load_tensors(tmp_path / "b.safetensors"), tensors)  # and we read the reference writer's


def test_the_file_does_not_depend_on_the_order_of_the_dict(tmp_path: Path) -> None:
    tensors = every_dtype()
    first = files.save_tensors(tmp_path / "a", tensors)
    assert files.save_tensors(tmp_path / "b", dict(reversed(tensors.items()))) == first


def test_a_header_of_128_bytes_is_not_mistaken_for_a_pickle(tmp_path: Path) -> None:
    lengths = set()
    for n in range(1, 160):  # header lengths 0x80, 0x180, ... begin like a pickle
        path = tmp_path / "x"
        files.save_tensors(path, {"v": torch.zeros(1)}, {"m": "x" * n})
        lengths.add(path.read_bytes()[0])
        assert files.load_tensors(path)["v"].tolist() == [0]
    assert 0x80 in lengths


def test_metadata_and_shapes_are_read_without_the_body(tmp_path: Path) -> None:
    files.save_tensors(tmp_path / "x", {"w": torch.zeros(3, 2, dtype=torch.bfloat16)}, {"kind": "test"})
    header = files.read_tensor_header(tmp_path / "x")
    assert header.metadata == {"kind": "test"}
    assert [(e.name, e.dtype, e.shape) for e in header.entries] == [("w", "BF16", (3, 2))]
    assert header.body_start % 8 == 0


def test_loaded_tensors_own_their_memory(tmp_path: Path) -> None:
    files.save_tensors(tmp_path / "x", {"a": torch.zeros(4), "b": torch.ones(4)})
    loaded = files.load_tensors(tmp_path / "x")
    files.save_tensors(tmp_path / "x", {"a": torch.full((4,), 7.0), "b": torch.ones(4)})
    assert loaded["a"].tolist() == [0, 0, 0, 0]
    assert loaded["a"].untyped_storage().data_ptr() != loaded["b"].untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("tensor", "error"),
    [
        (torch.zeros(2, device="meta"), ShapeError),
        (torch.eye(3).to_sparse(), ShapeError),
        (torch.zeros(2, dtype=torch.complex128), ShapeError),
        ([1.0, 2.0], ShapeError),
        (torch.zeros([1] * 9), UnsafeFile),
    ],
)
def test_what_cannot_be_read_back_is_not_written(tmp_path: Path, tensor: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        files.save_tensors(tmp_path / "x", {"v": tensor})  # type: ignore[dict-item]
    with pytest.raises(UnsafeFile, match="not allowed"):
        files.save_tensors(tmp_path / "x", {"a/b": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_max_bytes_is_judged_before_reading(tmp_path: Path) -> None:
    files.save_tensors(tmp_path / "x", {"v": torch.zeros(1000)})
    with pytest.raises(UnsafeFile, match="limit is 1,000"):
        files.load_tensors(tmp_path / "x", max_bytes=1000)


def test_a_file_that_shrinks_while_read_is_an_error(tmp_path: Path) -> None:
    files.save_tensors(tmp_path / "x", {"v": torch.zeros(1000)})
    data = (tmp_path / "x").read_bytes()
    with pytest.raises(ArtifactError, match="changed while being read"):
        files.read_tensors(io.BytesIO(data[:-1]), len(data), "x")


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9_\-]{1,20}", fullmatch=True),
        st.tuples(st.lists(st.integers(0, 4), max_size=4), st.sampled_from(sorted(DTYPES))),
        max_size=6,
    )
)
def test_any_names_shapes_and_dtypes_survive(tmp_path_factory: pytest.TempPathFactory, spec: dict) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    tensors = {name: torch.ones(shape).to(getattr(torch, DTYPES[code][0])) for name, (shape, code) in spec.items()}
    files.save_tensors(path, tensors)
    assert_same(files.load_tensors(path), tensors)


# --- JSON ---


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
        ),
        max_leaves=10,
    )
)
def test_json_comes_back_equal(value: object) -> None:
    assert parse_json(dump_json(value)) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**64, {1, 2}, "\ud800", [[]] * 3 + [object()]])
def test_json_refuses_on_writing_what_it_refuses_on_reading(tmp_path: Path, value: object) -> None:
    with pytest.raises(ArtifactError):
        files.write_json(tmp_path / "x.json", {"a": value})
    assert list(tmp_path.iterdir()) == []


def test_json_limits(tmp_path: Path) -> None:
    nested: list = []
    for _ in range(40):
        nested = [nested]
    with pytest.raises(UnsafeFile, match="nested deeper"):
        dump_json(nested)
    assert parse_json(b'["' + b"[{" * 100 + b'\\"[["]') == ["[{" * 100 + '"[[']  # brackets inside text do not count
    with pytest.raises(UnsafeFile, match="limit is 10"):
        files.write_json(tmp_path / "x.json", "y" * 20, max_bytes=10)
    files.write_json(tmp_path / "big.json", "y" * (2 << 20), max_bytes=4 << 20)
    assert len(files.read_json(tmp_path / "big.json", max_bytes=4 << 20)) == 2 << 20


# --- writing ---


def test_an_error_while_writing_leaves_the_old_file_and_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "x"
    files.atomic_write_bytes(path, b"old")

    def interrupted() -> None:
        with files.atomic_writer(path) as file:
            file.write(b"new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_every_failing_call_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "x"
    files.atomic_write_bytes(path, b"old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space"):
            files.atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_order_of_durable_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File fsync, then rename, then folder fsync: each of the three missing loses data on a power cut."""
    steps = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(handle: int) -> None:
        steps.append("fsync folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "fsync file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("rename"), replace(a, b)))
    files.atomic_write_bytes(tmp_path / "x", b"data")
    assert steps == ["fsync file", "rename", "fsync folder"]
    steps.clear()
    files.make_folder(tmp_path / "a" / "b")
    assert steps == ["fsync folder", "fsync folder"]


def test_rights_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        files.atomic_write_bytes(tmp_path / "x", b"")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_sweep_removes_only_our_temporary_files(tmp_path: Path) -> None:
    for name in (".x.0123456789ab.tmp", ".other.0123456789ab.tmp", "x", ".x", "notes.tmp"):
        (tmp_path / name).touch()
    assert files.sweep_temporary(tmp_path, "x") == 1
    assert files.sweep_temporary(tmp_path) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [".x", "notes.tmp", "x"]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(NotADirectoryError):
        files.make_folder(tmp_path / "x")


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 3_000_000)
    assert files.sha256_file(tmp_path / "x") == files.sha256_bytes(b"abc" * 3_000_000)
    assert files.sha256_bytes(b"").startswith("e3b0c442")
