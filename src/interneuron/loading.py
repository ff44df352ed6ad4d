"""`inn.load`: one call for shipped organisms, local folders and Hugging Face ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

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
    Raises InputError, UnsupportedModel, MethodNotFound (an organism without that checkpoint).
    """
    from interneuron import organisms

    folder = organisms.resolve(str(name), checkpoint=checkpoint) if not Path(name).is_dir() else None
    if folder is None:
        return load_model(name, device=device, dtype=dtype, **options)
    model = load_model(folder, device=device, dtype=dtype or torch.float32, **options)
    model.organism = organisms.Organism(str(name), checkpoint=checkpoint)
    if model.tokenizer is not None:  # so that an unknown word is named in the error
        model.tokenizer = model.organism.tokenizer(model.tokenizer)
    return model
