"""The Hub, offline: a fake that checks every call against huggingface_hub's signatures and keeps its cache of links."""

from __future__ import annotations

import fnmatch
import hashlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from interneuron.artifacts import Artifact, Direction, Report, load_artifact
from interneuron.core.errors import ArtifactError, FingerprintMismatch, UnsafeFile

REPO = "somebody/direction"


class FakeHub:
    """Repositories as dicts of files; downloads arrive as links into a folder of blobs, as the real cache has them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits = 0
        self.before_download: Any = None
        self.offline = False

    @staticmethod
    def check(name: str, arguments: dict[str, Any]) -> None:
        inspect.signature(getattr(HfApi, name)).bind(None, **arguments)

    def create_repo(self, **arguments: Any) -> None:
        self.check("create_repo", arguments)
        assert arguments["exist_ok"]
        self.repos.setdefault(arguments["repo_id"], {})
        self.private.setdefault(arguments["repo_id"], arguments["private"])

    def upload_folder(self, **arguments: Any) -> str:
        self.check("upload_folder", arguments)
        inside = f"{arguments['path_in_repo']}/" if arguments["path_in_repo"] else ""
        files = self.repos[arguments["repo_id"]]
        for name in [n for n in files if n.startswith(inside)]:
            if fnmatch.fnmatch(name[len(inside) :], arguments["delete_patterns"]):
                del files[name]
        for path in Path(arguments["folder_path"]).iterdir():
            files[inside + path.name] = path.read_bytes()
        self.commits += 1
        return f"https://huggingface.co/{arguments['repo_id']}/commit/{self.commits}"

    def hf_hub_download(self, **arguments: Any) -> str:
        self.check("hf_hub_download", arguments)
        if self.offline:
            raise LocalEntryNotFoundError("offline")
        if arguments["repo_id"] not in self.repos:
            raise OSError(f"404 Client Error.\n\nRepository Not Found for url: {arguments['repo_id']}")
        data = self.repos[arguments["repo_id"]].get(arguments["filename"])
        if data is None:
            raise EntryNotFoundError(arguments["filename"])
        blob = self.home / "blobs" / hashlib.sha256(data).hexdigest()
        link = self.home / "snapshots" / str(self.commits) / arguments["filename"]
        for folder in (blob.parent, link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link.unlink(missing_ok=True)
        link.symlink_to(blob)
        if self.before_download:
            self.before_download, then = None, self.before_download
            then()
        return str(link)


@pytest.fixture
def hub(tmp_path: Path) -> FakeHub:
    return FakeHub(tmp_path)


def direction(scale: float = 1.0) -> Direction:
    return Direction(
        torch.arange(1.0, 5.0) * scale, site="layers.0.resid_post", slug="mean_difference", fingerprint={"n": 1}
    )


def test_up_and_down_again(hub: FakeHub) -> None:
    address = direction().push_to_hub(REPO, api=hub)
    assert address.endswith("/commit/1")
    assert hub.private[REPO]
    assert Direction.from_pretrained(REPO, api=hub).same_bits(direction())
    assert Artifact.from_pretrained(REPO, api=hub, revision="main").same_bits(direction())
    readme = hub.repos[REPO]["README.md"].decode()
    assert "library_name: interneuron" in readme
    assert 'Direction.from_pretrained("somebody/direction")' in readme


def test_the_second_push_replaces_the_first_in_one_commit(hub: FakeHub) -> None:
    direction(1).push_to_hub(REPO, api=hub)
    direction(2).push_to_hub(REPO, api=hub)
    assert hub.commits == 2
    assert sum(name.startswith("tensors-") for name in hub.repos[REPO]) == 1
    assert Direction.from_pretrained(REPO, api=hub).same_bits(direction(2))


def test_many_artifacts_in_one_repository(hub: FakeHub) -> None:
    direction(1).push_to_hub(REPO, api=hub, subfolder="one", private=False, message="first")
    Report(title="two").push_to_hub(REPO, api=hub, subfolder="two")
    assert not hub.private[REPO]
    assert Direction.from_pretrained(REPO, api=hub, subfolder="one").same_bits(direction(1))
    assert Report.from_pretrained(REPO, api=hub, subfolder="two").title == "two"
    assert "README.md" not in hub.repos[REPO]
    with pytest.raises(ArtifactError, match="holds a report, expected a direction"):
        Direction.from_pretrained(REPO, api=hub, subfolder="two")


def test_a_push_between_the_two_downloads(hub: FakeHub) -> None:
    direction(1).push_to_hub(REPO, api=hub)
    hub.before_download = lambda: direction(2).push_to_hub(REPO, api=hub)
    assert Direction.from_pretrained(REPO, api=hub).same_bits(direction(2))


def test_a_local_folder_needs_no_hub(hub: FakeHub, tmp_path: Path) -> None:
    direction().save(tmp_path / "mine" / "sub")
    assert Direction.from_pretrained(tmp_path / "mine" / "sub").same_bits(direction())
    assert Direction.from_pretrained(str(tmp_path / "mine"), subfolder="sub").same_bits(direction())


def test_the_fingerprint_is_checked_here_too(hub: FakeHub) -> None:
    direction().push_to_hub(REPO, api=hub)
    with pytest.raises(FingerprintMismatch):
        Direction.from_pretrained(REPO, api=hub, model={"n": 2})
    assert Direction.from_pretrained(REPO, api=hub, model={"n": 2}, allow_mismatch=True).same_bits(direction())


def test_what_comes_from_the_hub_is_not_trusted(hub: FakeHub) -> None:
    direction().push_to_hub(REPO, api=hub)
    name = next(n for n in hub.repos[REPO] if n.startswith("tensors-"))
    good = hub.repos[REPO][name]
    hub.repos[REPO][name] = good[:-1] + b"\x01"
    with pytest.raises(ArtifactError, match="SHA-256"):
        Direction.from_pretrained(REPO, api=hub)
    with pytest.raises(UnsafeFile, match="limit is 10"):
        Direction.from_pretrained(REPO, api=hub, max_bytes=10)
    hub.repos[REPO]["artifact.json"] = b"[" * 5000
    with pytest.raises(UnsafeFile, match="nested"):
        Direction.from_pretrained(REPO, api=hub)


def test_what_is_not_there(hub: FakeHub) -> None:
    with pytest.raises(ArtifactError, match=r"delivers artifact.json \(404 Client Error.\)"):
        Direction.from_pretrained("nobody/nothing", api=hub)
    hub.create_repo(repo_id="some/model", private=False, exist_ok=True)
    with pytest.raises(ArtifactError, match="some/model: no artifact here"):
        Direction.from_pretrained("some/model", api=hub)
    hub.offline = True
    with pytest.raises(ArtifactError, match="the Hub cannot be reached"):
        Direction.from_pretrained("some/model", api=hub)


def test_the_real_client_is_asked_only_when_none_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = []
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **options: made.append(options) or FakeHub(tmp_path))
    with pytest.raises(ArtifactError, match="404"):
        Direction.from_pretrained("nobody/nothing", token="t")
    assert made == [{"token": "t", "library_name": "interneuron"}]


def test_the_saved_folder_is_what_the_hub_holds(hub: FakeHub, tmp_path: Path) -> None:
    direction().push_to_hub(REPO, api=hub)
    for name, data in hub.repos[REPO].items():
        (tmp_path / name).write_bytes(data)
    assert load_artifact(tmp_path).same_bits(direction())
