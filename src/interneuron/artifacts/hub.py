"""Artifacts on the Hugging Face Hub: one commit up, two files down, read by the same suspicious loader as any file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from interneuron.artifacts import folder
from interneuron.artifacts.base import Artifact
from interneuron.artifacts.load import build, load_artifact
from interneuron.core.errors import ArtifactError


def push_to_hub(
    artifact: Artifact,
    repo: str,
    *,
    subfolder: str = "",
    private: bool = True,
    message: str | None = None,
    token: str | None = None,
    api: Any = None,
) -> str:
    """Publish `artifact` in the model repository `repo` (made if missing, private unless told) and return its address.

    Everything goes in one commit that also removes the tensor file it replaces, so readers see the old or the new one.

    repo       "owner/name"
    subfolder  folder inside the repository, so that one repository can hold many artifacts
    api        a `huggingface_hub.HfApi`, or anything with its `create_repo` and `upload_folder`

    Raises:
        ArtifactError: the artifact cannot be saved.
        Exception: what huggingface_hub raises (no token, no network, no permission), as it is.
    """
    api = api or _api(token)
    with tempfile.TemporaryDirectory() as home:
        artifact.save(home)
        if not subfolder:
            Path(home, "README.md").write_text(_readme(artifact, repo), encoding="utf-8")
        api.create_repo(repo_id=repo, repo_type="model", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=home,
            path_in_repo=subfolder or None,
            commit_message=message or f"{artifact.kind} {artifact.slug}".strip(),
            delete_patterns="tensors-*.safetensors",
        )
    return str(getattr(commit, "commit_url", commit))


def from_pretrained(
    repo: str | Path,
    *,
    subfolder: str = "",
    revision: str | None = None,
    model: Any = None,
    allow_mismatch: bool = False,
    max_bytes: int = folder.MAX_BYTES,
    token: str | None = None,
    api: Any = None,
) -> Artifact:
    """Load an artifact from the Hub repository `repo`, or from the local folder of that name when there is one.

    revision  branch, tag or commit; a commit is the only one that cannot change under you
    The other options are those of `load_artifact`; `api` needs `hf_hub_download`.

    Raises:
        ArtifactError, UnsafeFile, FingerprintMismatch: as `load_artifact`.
    """
    local = Path(repo, subfolder)
    if local.is_dir():
        return load_artifact(local, model=model, allow_mismatch=allow_mismatch, max_bytes=max_bytes)
    api = api or _api(token)
    what = f"{repo}/{subfolder}".rstrip("/")

    def locate(name: str) -> Path:
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            found = api.hf_hub_download(
                repo_id=str(repo), filename=f"{subfolder}/{name}" if subfolder else name, revision=revision
            )
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise ArtifactError(
                    f"{what}: the Hub cannot be reached and {name} is not in its cache. Connect or pass a folder."
                ) from error
            raise FileNotFoundError(name) from None
        except (OSError, ValueError) as error:  # no such repository or revision, no permission, an impossible name
            reason = str(error).strip().splitlines()[0]
            raise ArtifactError(
                f"{what}: neither a local folder nor a repository that delivers {name} ({reason}). "
                "Check the name, the revision and your token."
            ) from error
        return Path(os.path.realpath(found))  # the Hub's own cache keeps links to its blobs

    return build(locate, what, model, allow_mismatch, max_bytes)


def _api(token: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="interneuron")


def _readme(artifact: Artifact, repo: str) -> str:
    shapes = "\n".join(f"- `{name}` {list(t.shape)} {t.dtype}" for name, t in artifact.tensors().items())
    sites = ", ".join(f"`{site}`" for site in artifact.sites) or "none"
    return (
        f"---\nlibrary_name: interneuron\ntags:\n- interneuron\n- {artifact.kind}\n---\n\n"
        f"# {repo}\n\nA {artifact.kind} made by `{artifact.slug or 'hand'}` with interneuron. Sites: {sites}.\n\n"
        f"{shapes}\n\n"
        f"```python\nimport interneuron as inn\nfrom interneuron.artifacts import {type(artifact).__name__}\n\n"
        f'artifact = {type(artifact).__name__}.from_pretrained("{repo}")\n```\n'
    )
