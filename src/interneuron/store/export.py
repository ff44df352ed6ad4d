"""Copies of a store in formats of others: safetensors shards, Parquet, and the layout SAELens caches activations in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interneuron.core.errors import StoreError, need
from interneuron.core.files import save_tensors, write_json
from interneuron.core.progress import Progress, track
from interneuron.model.aliases import canonical_alias
from interneuron.store.documents import runs
from interneuron.store.reader import Store

_CHUNK_BYTES = 64 << 20
_OTHER_ENDS = (
    "ln1.hook_normalized", "ln2.hook_normalized", "mlp.hook_post", "mlp.hook_pre_linear", "attn.hook_rot_q",
    "attn.hook_rot_k", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_attn_scores", "attn.hook_out",
    "mlp.hook_out", "hook_attn_out", "hook_mlp_out", "mlp.hook_router_scores", "mlp.hook_expert_indices",
)  # fmt: skip


def export(store: Store, path: str | os.PathLike[str], form: str, sites: Sequence[str] | None = None) -> Path:
    """Write rows of `sites` (default: all) to the new folder `path`.

    Args:
        store: The store.
        path: An empty or new folder.
        form: `safetensors` (files of about 64 MB: a tensor per site, `tokens`, `positions`, `documents`),
            `parquet` (one file; a fixed-size list per site beside token, pos and doc) or `saelens` (an Arrow dataset
            with one row per context, a column per hook name and `token_ids`, as its cached activations are).
        sites: Which sites.

    Raises:
        StoreError: unknown form, the folder is not empty, or rows that the form cannot hold.
        MissingExtra: pyarrow or datasets is not installed.
    """
    forms = {"safetensors": _safetensors, "parquet": _parquet, "saelens": _saelens}
    if form not in forms:
        raise StoreError(f"format {form!r} is not known; expected {', '.join(forms)}.")
    target = Path(path)
    if target.exists() and any(target.iterdir()):
        raise StoreError(f"{target}: not empty; expected a new folder. Choose another one.")
    names = list(sites or store.sites)
    for name in names:
        store[name]  # raises for unknown names before anything is written
    target.mkdir(parents=True, exist_ok=True)
    forms[form](store, target, names)
    return target


def _chunks(store: Store, names: list[str]) -> Iterator[slice]:
    width = sum(4 * store[n].column.width for n in names)
    step = max(1, _CHUNK_BYTES // width)
    with Progress(store.n_rows, "exporting", "rows") as bar:
        for start in range(0, store.n_rows, step):
            part = slice(start, min(store.n_rows, start + step))
            yield part
            bar.advance(part.stop - part.start)


def _safetensors(store: Store, target: Path, names: list[str]) -> None:
    files = []
    for i, part in enumerate(_chunks(store, names)):
        tensors = {name: store[name][part] for name in names}
        tensors |= {
            "tokens": store.tokens[part],
            "positions": store.positions[part],
            "documents": store.documents[part],
        }
        # Tensor names in a file are plain; a module path such as `a.b:out` is written with an underscore.
        save_tensors(target / f"rows-{i:05d}.safetensors", {_plain(n): t for n, t in tensors.items()})
        files.append({"file": f"rows-{i:05d}.safetensors", "rows": part.stop - part.start})
    write_json(
        target / "index.json", {"files": files, "sites": {n: _plain(n) for n in names}, "identity": store.identity}
    )


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_.-" else "_" for c in name)


def _arrow_rows(pa: Any, store: Store, name: str, part: slice) -> Any:
    """Rows of a site as a fixed-size list array; bfloat16 has no Arrow type and becomes float32."""
    values = store[name][part]
    values = values.float() if values.dtype == torch.bfloat16 else values
    flat = np.ascontiguousarray(values.reshape(-1).numpy())
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), store[name].column.width)


def _parquet(store: Store, target: Path, names: list[str]) -> None:
    pa = need("pyarrow", "export")
    pq = need("pyarrow.parquet", "export")
    writer = None
    try:
        for part in _chunks(store, names):
            keys = store.keys(part)
            columns = {n: pa.array(np.ascontiguousarray(keys[n])) for n in ("token", "pos", "doc")}
            columns |= {name: _arrow_rows(pa, store, name, part) for name in names}
            table = pa.table(columns)
            if writer is None:
                # Page checksums are off by default in Parquet; a copy without them could decay unseen.
                writer = pq.ParquetWriter(
                    target / "rows.parquet",
                    table.schema,
                    compression="none",
                    use_dictionary=False,
                    write_page_checksum=True,
                )
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _saelens(store: Store, target: Path, names: list[str]) -> None:
    datasets = need("datasets", "export")
    found = runs(store)
    context = int(np.bincount(found.length).argmax()) if len(found.length) else 0
    whole = [i for i in range(len(found.row)) if found.length[i] == context]
    for name in names:
        if len(store[name].column.shape) != 1:
            raise StoreError(
                f"{name}: rows of shape {store[name].column.shape}; SAELens holds vectors. Choose other sites."
            )
    hooks = {name: hook_name(name) for name in names}

    features = {hooks[n]: datasets.Array2D((context, store[n].column.width), "float32") for n in names}
    features["token_ids"] = datasets.Sequence(datasets.Value("int32"), length=context)
    building = target.parent / f".{target.name}.building.arrow"
    arrow = need("datasets.arrow_writer", "export")
    with arrow.ArrowWriter(features=datasets.Features(features), path=str(building), writer_batch_size=64) as writer:
        for i in track(whole, label="exporting", unit="contexts"):
            part = slice(int(found.row[i]), int(found.row[i]) + context)
            values = {hooks[n]: store[n][part].float().numpy() for n in names}
            writer.write({**values, "token_ids": store.keys(part)["token"].astype(np.int32)})
        writer.finalize()
    made = datasets.Dataset.from_file(str(building))
    made.save_to_disk(str(target))
    del made
    building.unlink()
    config = {
        "hook_name": hooks[names[0]],
        "hook_names": list(hooks.values()),
        "d_in": store[names[0]].column.width,
        "context_size": context,
        "n_contexts": len(whole),
        "training_tokens": len(whole) * context,
        "dtype": "float32",
        "new_cached_activations_path": str(target),
        "model_name": store.identity.get("model", {}).get("class", ""),
    }
    (target / "cache_activations_runner_cfg.json").write_text(json.dumps(config, indent=2))


def hook_name(site: str) -> str:
    """The TransformerLens name of a canonical site, by which SAELens calls it; other names stay as they are.

    >>> hook_name("layers.3.resid_post"), hook_name("layers.0.attn.z")
    ('blocks.3.hook_resid_post', 'blocks.0.attn.hook_z')
    """
    parts = site.split(".")
    if len(parts) < 3 or parts[0] != "layers":
        tried = ["hook_embed", "ln_final.hook_normalized"]
    else:
        room, leaf = ".".join(parts[2:-1]), parts[-1]
        ends = [f"{room}.hook_{leaf}".lstrip("."), *_OTHER_ENDS]
        tried = [f"blocks.{parts[1]}.{end}" for end in ends]
    return next((name for name in tried if canonical_alias(name, ()) == site), site)
