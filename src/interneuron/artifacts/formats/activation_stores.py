"""Activations of other tools as stores: SAELens' cached activations and Delphi's latents.

SAELens caches activations as an Arrow dataset (`dataset_info.json`, `state.json`, `data-*.arrow`): a row per context, a
column [context D] per hook name, and `token_ids` [context]. They are copied context by context, so that a cache may be
larger than memory. Latents become dense rows of F features per token.

    cached = formats.read("cache").value          # CachedActivations: cached["layers.3.resid_post"] [contexts T D]
    store = cached.to_store("store")    # and back: formats.write(store, "cache", "saelens_activations")
    store = store_from_latents(formats.read("latents/layers.3.mlp").value, "store")
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interneuron.artifacts.formats import names
from interneuron.artifacts.formats.format import Format
from interneuron.artifacts.latents import Latents
from interneuron.core import files
from interneuron.core.errors import ArtifactError, InputError, need
from interneuron.store import Column, Store, StoreWriter
from interneuron.store.export import export

TOKENS = "token_ids"
STATE, INFO, RUNNER = "state.json", "dataset_info.json", "cache_activations_runner_cfg.json"
CONTEXTS = 64  # read at a time
_DTYPES = {"float16", "float32", "float64"}


class CachedActivations:
    """An Arrow dataset of SAELens on disk, read a few contexts at a time.

    hooks    site -> the hook name its column has         n_contexts, length   contexts and tokens in each
    has_tokens   whether the tokens were kept             config               what the runner wrote beside it, or {}
    """

    def __init__(self, source: str | Path, notes: list[str] | None = None) -> None:
        self.source, what = Path(source), str(source)
        try:
            self._rows: Any = need("datasets", "export").load_from_disk(what).with_format("numpy")
        except (FileNotFoundError, ValueError, KeyError, OSError) as error:
            raise ArtifactError(f"{what}: no Arrow dataset ({str(error)[:120]}). Download the folder again.") from error
        self.hooks: dict[str, str] = {}
        widths = {}
        for name in self._rows.column_names:
            if name == TOKENS:
                continue
            feature = self._rows.features[name]
            shape, dtype = getattr(feature, "shape", ()), getattr(feature, "dtype", "")
            if len(shape) != 2 or dtype not in _DTYPES:
                raise ArtifactError(
                    f"{what}: column {name[:60]!r} is {feature}, expected [context D] of floats. Not read."
                )
            site = names.from_hook(name, what, notes if notes is not None else [])
            self.hooks[site], widths[site] = name, (*shape, dtype)
        if not self.hooks or len({shape[0] for shape in widths.values()}) != 1:
            raise ArtifactError(f"{what}: columns {self._rows.column_names}, expected activations of equal contexts.")
        self.columns = [Column(site, dtype, (width,)) for site, (_, width, dtype) in widths.items()]
        self.has_tokens, self.n_contexts = TOKENS in self._rows.column_names, len(self._rows)
        self.length = int(next(iter(widths.values()))[0])
        runner = self.source / RUNNER
        self.config: dict[str, Any] = files.read_json(runner) if runner.is_file() else {}

    def __repr__(self) -> str:
        sites = ", ".join(f"{c.name} [{c.shape[0]}] {c.dtype}" for c in self.columns)
        return f"CachedActivations({self.n_contexts} contexts of {self.length} tokens: {sites})"

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """{site: [contexts T D], and "token_ids": [contexts T]}, a few contexts at a time."""
        for start in range(0, self.n_contexts, CONTEXTS):
            part = self._rows[start : start + CONTEXTS]
            found = {site: np.asarray(part[hook]) for site, hook in self.hooks.items()}
            for site, values in found.items():
                if not np.isfinite(values).all():
                    raise ArtifactError(
                        f"{self.source}: {site} holds NaN or infinity behind context {start}. Not read."
                    )
            yield found | ({TOKENS: np.asarray(part[TOKENS])} if self.has_tokens else {})

    def __getitem__(self, site: str) -> Tensor:
        """All of it [contexts T D]; "token_ids" gives the tokens."""
        return torch.cat([torch.from_numpy(np.array(part[site])) for part in self.batches()])

    def to_store(self, path: str | Path) -> Store:
        """Copy to a new store at `path`, in the dtypes of the cache; a document per context, token -1 when unknown."""
        identity = {"source": "saelens cached activations", "config": self.config}
        doc = 0
        with StoreWriter(path, self.columns, identity) as writer:
            for part in self.batches():
                tokens = part.pop(TOKENS, None)
                for row in range(len(next(iter(part.values())))):
                    values = {site: rows[row] for site, rows in part.items()}
                    token = -1 if tokens is None else tokens[row]
                    writer.append(values, token=token, pos=range(self.length), doc=doc)
                    doc += 1
        return Store.open(path)


def store_from_cached_activations(source: str | Path, path: str | Path) -> Store:
    """Copy SAELens' cached activations (an Arrow dataset on disk) to a new store at `path`."""
    return CachedActivations(source).to_store(path)


def store_from_latents(latents: Latents, path: str | Path, dtype: str = "float32") -> Store:
    """Write latents densely, one row of F features per token, to a new store at `path`."""
    if latents.tokens is None or not latents.n_features:
        raise InputError("these latents have no tokens or no number of features, which a store's rows need. Add them.")
    site = f"{latents.site}.latents" if latents.site else "latents"
    length = latents.tokens.shape[1]
    identity = {"source": "delphi latents", "site": str(latents.site)}
    with StoreWriter(path, [Column(site, dtype, (latents.n_features,))], identity) as writer:
        for row in range(len(latents.tokens)):
            values = latents.dense(slice(row, row + 1))[0].float().numpy()
            writer.append({site: values}, token=latents.tokens[row].numpy(), pos=range(length), doc=row)
    return Store.open(path)


def latents_from_store(store: Store, site: str = "") -> Latents:
    """What is not zero in a store that `store_from_latents` wrote; documents of one length, in order."""
    name = site or next((name for name in store.sites if name.endswith("latents")), "")
    if not name:
        raise InputError(
            f"{store.path}: no site of it ends in 'latents' ({', '.join(store.sites)}). Name it with site=."
        )
    tokens = store.tokens[:]
    length = int(store.positions[:].max()) + 1
    if len(tokens) % length:
        raise InputError(f"{store.path}: {len(tokens)} rows are no whole number of texts of {length} tokens.")
    places, values = [], []
    for start in range(0, store.n_rows, 4096):
        part = store[name][start : start + 4096]
        row, feature = part.nonzero(as_tuple=True)
        at = row + start
        places.append(torch.stack([at // length, at % length, feature], 1))
        values.append(part[row, feature])
    return Latents(
        locations=torch.cat(places), activations=torch.cat(values), tokens=tokens.reshape(-1, length).long(),
        n_features=store[name].column.width, site=name.removesuffix(".latents") if name != "latents" else "",
    )  # fmt: skip


def _detect(path: Path) -> bool:
    return path.is_dir() and (path / STATE).is_file() and (path / INFO).is_file()


def _read(path: Path, notes: list[str]) -> CachedActivations:
    found = CachedActivations(path, notes)
    if not found.has_tokens:
        notes.append("no token_ids: a store made of it has -1 for every token")
    return found


def _write(value: Any, path: Path) -> Path:
    if not isinstance(value, Store):
        raise InputError(
            f"saelens_activations holds a store, got a {type(value).__name__}. Open one: Store.open(path)."
        )
    return export(value, path, "saelens")


FORMAT = Format(
    name="saelens_activations",
    title="SAELens cached activations: an Arrow dataset, a column per hook name",
    holds=("store",),
    detect=_detect,
    reads=_read,
    writes=_write,
    extra="export",
)
