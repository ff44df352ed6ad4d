"""Loading runs no code: an audit hook watches every public load function, on honest and on hostile files."""

from __future__ import annotations

import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from store_workloads import capture

import interneuron as inn
from interneuron import artifacts
from interneuron.artifacts import Artifact, Direction, Report
from interneuron.core import files, strict_json
from interneuron.core.errors import InterneuronError
from interneuron.model import edit_files
from interneuron.model import load as loading
from interneuron.model.load import load_model
from interneuron.store import Store
from interneuron.store.system import System

FORBIDDEN = (
    "pickle.", "exec", "compile", "marshal.", "code.__new__", "ctypes.", "os.system", "os.exec", "os.posix_spawn",
    "os.spawn", "os.fork", "os.startfile", "subprocess.", "socket.", "urllib.", "http.", "shutil.", "os.remove",
    "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod",
)  # fmt: skip
_watching: list[list[str]] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _watching:
        return
    writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    if writes or event.startswith(FORBIDDEN):
        _watching[-1].append(f"{event} {args!r:.80}")


@pytest.fixture(scope="module", autouse=True)
def _install() -> None:
    sys.addaudithook(_hook)  # cannot be removed; it does nothing outside `watch`


@contextmanager
def watch() -> Iterator[list[str]]:
    events: list[str] = []
    _watching.append(events)
    try:
        yield events
    finally:
        _watching.pop()


def loaders(home: Path) -> dict[str, Callable[[], Any]]:
    """Every public function that reads a file, by the name it has where it is defined."""
    tensor_file = next((home / "direction").glob("tensors-*"))
    document = home / "direction" / "artifact.json"
    return {
        "load_edit": lambda: inn.load_edit(home / "edit"),
        "Store.open": lambda: (store := Store.open(home / "store")).verify() and store[store.sites[0]][:3],
        "load_model": lambda: load_model(home / "model"),
        "load": lambda: inn.load(home / "model"),
        "load_artifact": lambda: inn.load_artifact(home / "direction"),
        "Artifact.load": lambda: Direction.load(home / "direction"),
        "Artifact.from_pretrained": lambda: Report.from_pretrained(home / "report"),
        "load_tensors": lambda: files.load_tensors(tensor_file),
        "read_tensor_header": lambda: files.read_tensor_header(tensor_file),
        "read_tensors": lambda: files.read_tensors(
            io.BytesIO(tensor_file.read_bytes()), tensor_file.stat().st_size, "x"
        ),
        "read_json": lambda: files.read_json(document),
        "read_bytes": lambda: files.read_bytes(document, 1 << 20),
        "open_plain": lambda: files.open_plain(document).__enter__()[0].close(),
        "sha256_file": lambda: files.sha256_file(document),
        "parse_json": lambda: strict_json.parse_json(document.read_bytes()),
    }


def tiny_language_model(folder: Path) -> None:
    """A Hugging Face folder, two layers of width 8, without a tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=16, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    Direction(torch.ones(4), site="a", slug="x").save(tmp_path / "direction")
    Report(title="r", arrays={"a": torch.ones(3)}).save(tmp_path / "report")
    (inn.Add("a", torch.ones(4)) + inn.Scale("b", 2.0)).save(tmp_path / "edit")
    capture(str(tmp_path / "store"), System())
    tiny_language_model(tmp_path / "model")
    for load in loaders(tmp_path).values():  # imports happen now; what is watched afterwards is reading alone
        load()
    return tmp_path


def test_no_loader_is_left_out(home: Path) -> None:
    public = {
        name
        for module in (files, strict_json, artifacts, edit_files, loading)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and name.startswith(("load", "read_", "open_", "parse_", "from_"))
    }
    public |= {name for name in inn.__all__ if name.startswith(("load", "read_", "open_"))}
    public |= {f"Artifact.{name}" for name in vars(Artifact) if name.startswith(("load", "from_"))}
    assert public <= loaders(home).keys()


def test_loading_runs_nothing_and_writes_nothing(home: Path) -> None:
    for name, load in loaders(home).items():
        with watch() as events:
            load()
        assert events == [], name


def test_refusing_runs_nothing_either(home: Path) -> None:
    tensor_file = next((home / "direction").glob("tensors-*"))
    document = home / "direction" / "artifact.json"
    good = tensor_file.read_bytes(), document.read_bytes()
    buffer = io.BytesIO()
    torch.save({"vector": torch.ones(4)}, buffer)
    hostile = [b"", b"\x80\x02cposix\nsystem\n(X\x04\0\0\0truetR.", buffer.getvalue(), b"[" * 100_000, b'{"a":NaN}']
    for payload in hostile:
        tensor_file.write_bytes(payload)
        with watch() as events, pytest.raises(InterneuronError):
            inn.load_artifact(home / "direction")
        tensor_file.write_bytes(good[0])
        document.write_bytes(payload)
        with watch() as more, pytest.raises(InterneuronError):
            inn.load_artifact(home / "direction")
        document.write_bytes(good[1])
        assert events + more == []


def test_the_watch_sees_what_it_must(tmp_path: Path) -> None:
    """The control: unpickling, running, compiling and writing are all seen."""
    torch.save(torch.nn.Linear(1, 1), tmp_path / "x.pt")
    with watch() as events:
        torch.load(tmp_path / "x.pt", weights_only=False)
    assert any(event.startswith("pickle.find_class") for event in events)
    with watch() as events:
        exec(compile("1", "x", "exec"))
        (tmp_path / "written").write_text("x")
    assert [event.split()[0] for event in events] == ["compile", "exec", "open"]
