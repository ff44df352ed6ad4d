"""`inn.load`: one call for shipped organisms, local folders and Hugging Face ids."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch

from interneuron.core.errors import InputError
from interneuron.model.load import load_model
from interneuron.model.model import Model


def load(
    name: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    checkpoint: int | None = None,
    **options: Any,
) -> Model:
    """Load a model by organism name (`"lm"`), folder, or Hugging Face id, ready to read and edit.

        model = inn.load("lm")

    device, dtype   where to and as what (default: cpu, as stored; organisms as float32)
    checkpoint      a training checkpoint of an organism that ships several
    options         passed to `from_pretrained` for folders and ids
    Raises InputError (a misspelt name, an id that cannot be reached), UnsupportedModel, MethodNotFound (an organism
    without that checkpoint).
    """
    from interneuron import organisms

    folder = organisms.resolve(str(name), checkpoint=checkpoint) if not Path(name).is_dir() else None
    if folder is None:
        _refuse_misspelt(str(name))
        return load_model(name, device=device, dtype=dtype, **options)
    model = load_model(folder, device=device, dtype=dtype or torch.float32, **options)
    model.organism = organisms.Organism(str(name), checkpoint=checkpoint)
    if model.tokenizer is not None:  # so that an unknown word is named in the error
        model.tokenizer = model.organism.tokenizer(model.tokenizer)
    return model


NEAR = 0.8  # "lm-smal" is a misspelt "lm-small" (0.93); "gpt2" is a name of its own beside "lm-gpt2" (0.73)


def _refuse_misspelt(name: str) -> None:
    """Raise InputError for a name that is nearly an organism's or a local model folder's, before asking the hub."""
    from interneuron.organisms.catalogue import names

    path = Path(name)
    if path.exists():
        return  # what is wrong with it is said by who loads it
    folders = [str(file.parent) for file in path.parent.glob("*/config.json")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(name, [*names(), *folders], n=1, cutoff=NEAR)
    if near:
        what = "organism" if near[0] in names() else "model folder"
        raise InputError(
            f"there is no organism and no folder {name!r}, but there is the {what} {near[0]!r}: did you mean that? "
            "A repository of the Hugging Face Hub is given as 'owner/name'."
        )
