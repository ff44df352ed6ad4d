"""Power cuts while an artifact is saved: at every moment, in every state POSIX allows, the old or the new one loads.

The model: a file that was not synced may be empty, torn or whole; a name that was created, renamed or removed may be
so on disk or not, each independently of the others, until the folder is synced. Controls without the syncs must fail.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from interneuron.artifacts import Artifact, Direction, Report, load_artifact
from interneuron.core import files
from interneuron.core.errors import ArtifactError

OLD = Direction(torch.arange(1.0, 9.0), site="layers.0.resid_post", slug="old")
NEW = Direction(torch.arange(9.0, 17.0), site="layers.0.resid_post", slug="new")


class Recorder:
    """Watches the system calls that change a folder and replays them up to any moment."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.start = {p.name: p.read_bytes() for p in folder.iterdir()}
        self.events: list[tuple[str, ...]] = []
        self.content: dict[str, bytes] = {}
        self.handles: dict[int, str] = {}
        self.real = {name: getattr(os, name) for name in ("open", "fsync", "replace", "unlink")}
        for name in self.real:
            patch.setattr(os, name, getattr(self, name))

    def open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        handle = self.real["open"](path, flags, *args, **kwargs)
        self.handles[handle] = str(path)
        if flags & os.O_CREAT:
            self.events.append(("create", Path(path).name))
        return handle

    def fsync(self, handle: int) -> None:
        path = Path(self.handles[handle])
        if path.is_dir():
            self.events.append(("sync names",))
        else:
            self.content[path.name] = path.read_bytes()
            self.events.append(("sync", path.name))

    def replace(self, source: Any, target: Any) -> None:
        self.content.setdefault(Path(source).name, Path(source).read_bytes())
        self.events.append(("rename", Path(source).name, Path(target).name))
        self.real["replace"](source, target)

    def unlink(self, path: Any, **kwargs: Any) -> None:
        self.real["unlink"](path, **kwargs)
        self.events.append(("remove", Path(path).name))

    def states(self) -> Iterator[dict[str, bytes]]:
        """Every folder content a power cut can leave, after every event."""
        for moment in range(len(self.events) + 1):
            durable: list[tuple[str, ...]] = []
            pending: list[tuple[str, ...]] = []
            synced: set[str] = set()
            for event in self.events[:moment]:
                if event[0] == "sync":
                    synced.add(event[1])
                elif event[0] == "sync names":
                    durable, pending = durable + pending, []
                else:
                    pending.append(event)
            for chosen in itertools.product((False, True), repeat=len(pending)):
                survived = durable + [event for event, kept in zip(pending, chosen, strict=True) if kept]
                yield from self._contents(survived, synced)

    def _contents(self, survived: list[tuple[str, ...]], synced: set[str]) -> Iterator[dict[str, bytes]]:
        names: dict[str, bytes | str] = dict(self.start)  # str: the file of that temporary name
        for event in survived:
            if event[0] == "create":
                names[event[1]] = event[1]
            elif event[0] == "rename":
                names.pop(event[1], None)
                names[event[2]] = event[1]
            else:
                names.pop(event[1], None)
        torn = sorted({inode for inode in names.values() if isinstance(inode, str) and inode not in synced})
        for parts in itertools.product((0.0, 0.5, 1.0), repeat=len(torn)):
            kept = dict(zip(torn, parts, strict=True))
            yield {name: self._bytes(inode, kept) for name, inode in names.items()}

    def _bytes(self, inode: bytes | str, kept: dict[str, float]) -> bytes:
        if isinstance(inode, bytes):
            return inode
        data = self.content.get(inode, b"")
        return data[: int(len(data) * kept.get(inode, 1.0))]


def outcomes(folder: Path, old: Artifact | None, new: Artifact) -> list[str]:
    """Save `new` over `old` and say, for every state a power cut can leave, what loads."""
    folder.mkdir()
    if old is not None:
        old.save(folder)
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(folder, patch)
        new.save(folder)
    found = []
    for i, state in enumerate(recorder.states()):
        home = folder.parent / f"state{i}"
        home.mkdir()
        for name, data in state.items():
            (home / name).write_bytes(data)
        try:
            loaded = load_artifact(home)
        except ArtifactError as error:
            found.append("nothing" if "no artifact here" in str(error) else "broken")
        else:
            same_old = old is not None and loaded.same_bits(old)
            found.append("old" if same_old else "new" if loaded.same_bits(new) else "wrong")
            new.save(home)  # and the next save heals whatever the cut left behind
            assert load_artifact(home).same_bits(new)
            assert not list(home.glob(".*.tmp"))
            assert len(list(home.glob("tensors-*"))) == len(new.tensors() and [1])
    return found


@pytest.mark.parametrize("new", [NEW, Report(title="no tensors"), OLD.replace(slug="same tensors")])
def test_old_or_new_after_every_power_cut(tmp_path: Path, new: Artifact) -> None:
    found = outcomes(tmp_path / "x", OLD, new)
    assert set(found) == {"old", "new"}
    assert found[0] == "old"
    assert found[-1] == "new"
    assert len(found) >= 10


def test_nothing_or_new_on_the_first_save(tmp_path: Path) -> None:
    assert set(outcomes(tmp_path / "x", None, NEW)) == {"nothing", "new"}


def test_control_without_file_sync_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Recorder.fsync
    monkeypatch.setattr(Recorder, "fsync", lambda self, h: real(self, h) if os.path.isdir(self.handles[h]) else None)
    assert "broken" in outcomes(tmp_path / "x", OLD, NEW)


def test_control_without_folder_sync_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fsync_dir", lambda path: None)
    assert "broken" in outcomes(tmp_path / "x", OLD, NEW)
