"""Names that cannot be loaded: a near organism or folder is suggested before the hub is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import interneuron as inn
from interneuron.core.errors import InputError, UnsupportedModel

LINES = "We couldn't connect to the hub to load the files,\nand couldn't find them.\nSee https://example.org for more."


class Asked(Exception):
    pass


def hub(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[str]:
    """Let the hub fail in one way; the list of ids it is asked for."""
    import transformers

    asked: list[str] = []

    def fail(name: str, **options: Any) -> Any:
        asked.append(name)
        raise error

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    return asked


def refusal(name: str) -> str:
    with pytest.raises((InputError, UnsupportedModel)) as caught:
        inn.load(name)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(name) in message
    return message


@pytest.mark.parametrize(("name", "meant"), [("lm-smal", "lm-small"), ("cnnn", "cnn"), ("lmbase", "lm-base")])
def test_a_misspelt_organism_is_suggested_before_the_hub_is_asked(
    monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    asked = hub(monkeypatch, OSError(LINES))
    assert f"the organism {meant!r}: did you mean that?" in refusal(name)
    assert not asked


def test_a_misspelt_folder_is_suggested(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = hub(monkeypatch, OSError(LINES))
    (tmp_path / "models" / "story-teller").mkdir(parents=True)
    (tmp_path / "models" / "story-teller" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert "the model folder 'models/story-teller'" in refusal("models/story-tellr")
    assert not asked


@pytest.mark.parametrize("name", ["gpt2", "owner/model", "lm-enormous-of-somebody"])
def test_a_plausible_id_goes_to_the_hub(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked = hub(monkeypatch, Asked())
    with pytest.raises(Asked):
        inn.load(name)
    assert asked == [name]


def test_without_a_connection_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    error = OSError(LINES)
    error.__cause__ = LocalEntryNotFoundError("offline")
    hub(monkeypatch, error)
    message = refusal("owner/model")
    assert "cannot be reached" in message
    assert "give a local folder" in message
    hub(monkeypatch, OSError(LINES))
    assert "check the spelling" in refusal("owner/model")


def test_a_folder_that_holds_no_model_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "florbl"}')
    assert "florbl" in refusal(str(tmp_path))
