"""Activations of other tools as stores: SAELens' cached activations and Delphi's latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from interneuron.artifacts.formats import names
from interneuron.artifacts.formats.saelens import read_cached_activations
from interneuron.artifacts.latents import Latents
from interneuron.core.errors import InputError
from interneuron.store import Column, Store, StoreWriter

TOKENS = "token_ids"


def store_from_cached_activations(source: str | Path, path: str | Path, dtype: str = "float32") -> Store:
    """Copy SAELens' cached activations (an Arrow dataset on disk) to a new store at `path`."""
    found = read_cached_activations(source)
    tokens = found.pop(TOKENS, None)
    sites = {names.from_hook(hook, str(source), []): values for hook, values in found.items()}
    return _write(sites, tokens, path, dtype, {"source": "saelens cached activations"})


def store_from_latents(latents: Latents, path: str | Path, dtype: str = "float32") -> Store:
    """Write latents densely, one row of F features per token, to a new store at `path`."""
    if latents.tokens is None or not latents.n_features:
        raise InputError("these latents have no tokens or no number of features, which a store's rows need. Add them.")
    site = f"{latents.site}.latents" if latents.site else "latents"
    return _write({site: latents.dense()}, latents.tokens, path, dtype, {"source": "delphi latents"})


def _write(
    sites: Mapping[str, Tensor], tokens: Tensor | None, path: str | Path, dtype: str, identity: dict[str, Any]
) -> Store:
    """sites: [B T D] each; one document per row of the batch."""
    if not sites:
        raise InputError("there are no activations to write. Check the source.")
    columns = [Column(name, dtype, (values.shape[-1],)) for name, values in sites.items()]
    batch, length = next(iter(sites.values())).shape[:2]
    with StoreWriter(path, columns, identity) as writer:
        for row in range(batch):
            values = {name: tensor[row].float().numpy() for name, tensor in sites.items()}
            writer.append(values, token=-1 if tokens is None else tokens[row].numpy(), pos=range(length), doc=row)
    return Store.open(path)
