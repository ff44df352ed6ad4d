"""Saved edits: every kind comes back with the same bits, functions are refused, damage is noticed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import Letters, shared, tokens, vector

import interneuron as inn
from interneuron.core.errors import ArtifactError, EditError, UnsafeFile
from interneuron.core.files import sha256_bytes
from interneuron.model.edit_files import load_edit, save_edits
from interneuron.model.positions import Span, Token

SITE = "layers.0.resid_post"
V, W = vector(), torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
KINDS = {
    "add": inn.Add(SITE, V, alpha=0.1),
    "add-half": inn.Add(SITE, V.bfloat16()),
    "scale": inn.Scale(SITE, 1 / 3),
    "scale-tensor": inn.Scale(SITE, V),
    "replace": inn.Replace(SITE, W[0]),
    "zero": inn.Ablate(SITE),
    "mean": inn.Ablate(SITE, "mean", V),
    "resample": inn.Ablate(SITE, "resample"),
    "project": inn.Project(SITE, W[:3]),
    "project-keep": inn.Project(SITE, V, keep=True),
    "clamp": inn.Clamp(SITE, V, 0.7),
    "clamp-tensor": inn.Clamp(SITE, V, torch.tensor(0.7)),
    "transport": inn.Transport(SITE, W, V),
    "transport-diagonal": inn.Transport(SITE, V),
    "strength": 0.3 * inn.Ablate(SITE),
    "gate": inn.Add(SITE, V).when(inn.Above(W[1], 0.05)),
}
CHOICES = {
    "int": {"pos": -1}, "list": {"pos": [0, 3]}, "rows": {"pos": [[0], [1, 2]]}, "slice": {"pos": slice(1, -1)},
    "open": {"pos": slice(None, None)}, "tensor": {"pos": torch.tensor([2, 4])}, "text": {"pos": "ab"},
    "span": {"pos": Span("ab", -1)}, "spans": {"pos": Span("ab")}, "token": {"pos": Token("a")},
    "id": {"pos": Token(3)}, "mixed": {"pos": [0, slice(2, 3), Token(3)]}, "row": {"row": 1},
    "phase": {"phase": "prompt"}, "several": {"row": [0], "pos": 1, "phase": "prompt"},
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    return inn.wrap(shared("llama"), tokenizer=Letters())


def acted(model: Any, edit: Any) -> torch.Tensor:
    with torch.no_grad(), model.edit(edit):
        return model(["abcab", "zzabd"]).logits


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_comes_back_with_the_same_bits(model: Any, tmp_path: Path, name: str) -> None:
    edit = KINDS[name]
    edit.save(tmp_path / "edit")
    loaded = inn.load_edit(tmp_path / "edit")
    assert type(loaded) is type(edit)
    assert (loaded.site, loaded.strength, loaded.selection) == (edit.site, edit.strength, edit.selection)
    assert torch.equal(acted(model, loaded), acted(model, edit))


@pytest.mark.parametrize("name", CHOICES)
def test_every_selection_comes_back(model: Any, tmp_path: Path, name: str) -> None:
    edit = inn.Add(SITE, V).at(**CHOICES[name])
    edit.save(tmp_path)
    loaded = inn.load_edit(tmp_path)
    assert loaded.selection == edit.selection
    assert repr(loaded.selection) == repr(edit.selection)
    assert torch.equal(acted(model, loaded), acted(model, edit))


def test_a_sum_comes_back_in_order_and_replaces_what_was_there(model: Any, tmp_path: Path) -> None:
    inn.Add(SITE, V).save(tmp_path)
    edits = KINDS["add"] + KINDS["scale"] + KINDS["gate"].at(pos=[0, 1])
    edits.save(tmp_path)
    loaded = inn.load_edit(tmp_path)
    assert [type(e).__name__ for e in loaded] == ["Add", "Scale", "Add"]
    assert torch.equal(acted(model, loaded), acted(model, edits))
    assert len(list(tmp_path.iterdir())) == 2
    save_edits([KINDS["scale"]], tmp_path / "list")
    assert isinstance(inn.load_edit(tmp_path / "list"), inn.Edits)
    assert [p.name for p in (tmp_path / "list").iterdir()] == ["edit.json"]


def test_the_same_edit_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (KINDS["add"] + KINDS["gate"]).save(tmp_path / name)
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert files[0] == files[1]


def test_learned_vectors_are_saved_without_their_graph(tmp_path: Path) -> None:
    inn.Add(SITE, V.clone().requires_grad_() * 2).save(tmp_path)
    assert torch.equal(inn.load_edit(tmp_path).vector, V * 2)


@pytest.mark.parametrize(
    "edit",
    [
        inn.Apply(SITE, torch.tanh),
        inn.Add(SITE, V) + inn.Apply(SITE, lambda x: x),
        inn.Add(SITE, V).when(lambda x: x[..., 0] > 0),
    ],
)  # fmt: skip
def test_functions_are_not_saved(tmp_path: Path, edit: Any) -> None:
    with pytest.raises(EditError, match=r"cannot be saved: it is a .*loading one would run code.*"):
        edit.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(EditError, match="no edit to save"):
        save_edits([], tmp_path)


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=r"cannot be written .*choose another folder"):
        KINDS["add"].save(tmp_path / "file")


def forge(folder: Path, change: Any) -> None:
    """Change the document and seal it again, as only somebody who knows the format would."""
    path = folder / "edit.json"
    document = json.loads(path.read_text())
    document.pop("sha256")
    change(document)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps({**document, "sha256": sha256_bytes(text.encode())}))


def first(document: dict[str, Any]) -> dict[str, Any]:
    return document["edits"][0]


FORGERIES: dict[str, tuple[Any, type[Exception], str]] = {
    "format": (lambda d: d.update(format="x"), ArtifactError, "not a saved edit"),
    "newer": (lambda d: d.update(version=2), ArtifactError, "Upgrade interneuron"),
    "version": (lambda d: d.update(version=True), ArtifactError, "schema version"),
    "key": (lambda d: d.update(more=1), ArtifactError, "missing or unknown"),
    "no edits": (lambda d: d.update(edits=[]), ArtifactError, "list of edits"),
    "single": (lambda d: d.update(edits=d["edits"] * 2), ArtifactError, "list of edits"),
    "escape": (lambda d: d.update(tensors="../tensors-" + "0" * 64 + ".safetensors"), UnsafeFile, "same folder"),
    "absent": (lambda d: d.update(tensors="tensors-" + "0" * 64 + ".safetensors"), ArtifactError, "can be read"),
    "unused": (lambda d: first(d)["fields"].update(vector={"tensor": "9.vector"}), ArtifactError, "not in the file"),
    "kind": (lambda d: first(d).update(kind="Ad"), ArtifactError, "Did you mean 'Add'"),
    "apply": (lambda d: first(d).update(kind="Apply"), ArtifactError, "is unknown"),
    "strength": (lambda d: first(d).update(strength="1"), ArtifactError, "strength a number"),
    "site": (lambda d: first(d).update(site=3), ArtifactError, "site must be text"),
    "edit key": (lambda d: first(d).update(extra=3), ArtifactError, "exactly"),
    "fields": (lambda d: first(d)["fields"].update(extra=3), ArtifactError, "expected the fields"),
    "field type": (lambda d: first(d)["fields"].update(alpha="big"), ArtifactError, "alpha is 'big', expected float"),
    "field bool": (lambda d: first(d)["fields"].update(alpha=True), ArtifactError, "expected float"),
    "text vector": (lambda d: first(d)["fields"].update(vector="v"), ArtifactError, "vector is 'v', expected Tensor"),
    "phase": (lambda d: first(d)["selection"].update(phase="later"), ArtifactError, "'later' is unknown"),
    "axes": (lambda d: first(d)["selection"].update(axes=[1]), ArtifactError, "'phase' and 'axes'"),
    "choice": (lambda d: first(d)["selection"].update(axes={"pos": 1.5}), ArtifactError, "no choice"),
    "code": (lambda d: first(d)["selection"].update(axes={"pos": {"eval": "1"}}), ArtifactError, "no choice"),
    "bounds": (
        lambda d: first(d)["selection"].update(axes={"pos": {"slice": [0, "1", None]}}),
        ArtifactError,
        "no choice",
    ),
    "twice": (lambda d: first(d)["selection"].update(axes={"batch": 0, "row": 1}), ArtifactError, "cannot be built"),
    "gate": (lambda d: first(d).update(gate={"fn": "x"}), ArtifactError, "gate: expected the fields"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_document_is_refused(tmp_path: Path, name: str) -> None:
    change, error, words = FORGERIES[name]
    inn.Add(SITE, V).save(tmp_path)
    forge(tmp_path, change)
    with pytest.raises(error, match=words) as caught:
        load_edit(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_damage_is_noticed(tmp_path: Path) -> None:
    KINDS["gate"].save(tmp_path)
    tensors = next(tmp_path.glob("*.safetensors"))
    good = tensors.read_bytes()
    for bad, error, words in [
        (good[:-1], ArtifactError, "edit|bytes|short|end"),
        (good[:-1] + bytes([good[-1] ^ 1]), ArtifactError, "SHA-256"),
        (pickle.dumps({"vector": [1.0]}), UnsafeFile, "pickle|safetensors"),
        (b"", ArtifactError, "."),
    ]:
        tensors.write_bytes(bad)
        with pytest.raises(error, match=words):
            load_edit(tmp_path)
    tensors.write_bytes(good)
    document = (tmp_path / "edit.json").read_text()
    (tmp_path / "edit.json").write_text(document.replace("0.05", "0.06"))
    with pytest.raises(ArtifactError, match="do not match the hash"):
        load_edit(tmp_path)
    (tmp_path / "edit.json").write_text(document[:100])
    with pytest.raises(ArtifactError, match="not JSON"):
        load_edit(tmp_path)
    with pytest.raises(UnsafeFile, match="limit is 10"):
        (tmp_path / "edit.json").write_text(document)
        load_edit(tmp_path, max_bytes=10)


@pytest.mark.parametrize("path", ["nowhere", "file"])
def test_a_path_without_an_edit_is_named(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=r"no edit can be read here.*expected a folder with edit.json"):
        load_edit(tmp_path / path)


def test_a_not_finite_vector_is_refused_on_loading(tmp_path: Path) -> None:
    edit = inn.Add(SITE, V.clone())
    edit.vector[3] = torch.nan
    edit.save(tmp_path)
    with pytest.raises(ArtifactError, match="cannot be built from it: the vector of Add holds NaN"):
        load_edit(tmp_path)


def test_an_edit_of_another_width_is_refused_where_it_acts(model: Any, tmp_path: Path) -> None:
    inn.Add(SITE, vector(16)).save(tmp_path)
    with pytest.raises(ValueError, match="width 16, the site 32"), model.edit(inn.load_edit(tmp_path)):
        model(tokens())
