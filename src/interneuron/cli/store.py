"""`interneuron record` and `interneuron store info|verify|stats|export|delete`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interneuron.core.errors import CorruptStore, InputError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Folder = Annotated[str, typer.Argument(metavar="DIR", help="Folder of the store, or an fsspec address.")]


def record(
    model: Annotated[str, typer.Argument(help="Hugging Face id, local folder or organism.")],
    data: Annotated[Path, typer.Option(help="A text file or a folder of images.")],
    sites: Annotated[list[str], typer.Option(help="Site names or globs; repeat or separate by commas.")],
    out: Annotated[Path, typer.Option(help="Folder of the store.")],
    dtype: Annotated[str | None, typer.Option(help="float32, float16, bfloat16 or int8; default: as it flows.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pieces in one forward pass.")] = 8,
    seq_len: Annotated[int | None, typer.Option(min=1, help="Longest piece in tokens.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a capture that was interrupted.")] = False,
    device: Annotated[str | None, typer.Option(help="Where to run the model.")] = None,
) -> None:
    """Run a model over a text file or image folder and keep what flows through its sites, resumable."""
    import interneuron as inn

    wanted = [name for item in sites for name in item.split(",") if name]
    loaded = inn.load(model, device=device)
    try:
        store = inn.record(
            loaded, data, wanted, out, dtype=dtype, batch_size=batch_size, seq_len=seq_len, resume=resume
        )
    except KeyboardInterrupt:
        typer.echo(f"stopped; what was committed is safe in {out}. Go on with the same command and --resume.", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{store.n_rows:,} rows of {len(store.sites)} sites, {store.n_bytes / 1e9:.3f} GB, in {out}")


@app.command()
def info(folder: Folder) -> None:
    """Show what a store holds: model, data, sites, rows, and whether its capture has finished."""
    from interneuron.store import Store

    store = Store.open(folder)
    identity = store.identity
    typer.echo(
        f"{folder}: {store.n_rows:,} rows, {store.n_bytes / 1e9:.3f} GB, "
        f"{'complete' if store.is_complete else 'unfinished'}"
    )
    for name, value in identity.items():
        text = ", ".join(f"{k} {_short(v)}" for k, v in value.items()) if isinstance(value, dict) else _short(value)
        typer.echo(f"  {name:<14} {text}")
    for site in store.sites:
        column = store.column(site)
        typer.echo(f"  {site:<32} {column.dtype:<9} {list(column.shape)}")


@app.command()
def verify(folder: Folder) -> None:
    """Read every byte and compare it with its checksum; exit status 1 when something is damaged."""
    from interneuron.store import Store

    store = Store.open(folder)
    problems = list(store.check())
    for problem in problems:
        typer.echo(problem)
    if any("harmless" not in problem for problem in problems):
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise CorruptStore(f"{folder}: {count}. Restore the files named above from a copy.")
    typer.echo(f"{folder}: {store.n_rows:,} rows of {len(store.sites)} sites, every byte as it was written")


@app.command()
def stats(
    folder: Folder,
    sites: Annotated[list[str] | None, typer.Option("--site", help="Sites; all by default.")] = None,
) -> None:
    """Mean, deviation, range and norms of each site; computed once and kept beside the data."""
    from interneuron.store import Store

    store = Store.open(folder)
    typer.echo(
        f"{'site':<32} {'rows':>10} {'mean':>10} {'std':>10} {'low':>10} {'high':>10} {'norm':>10} {'norm p99':>10}"
    )
    for site in sites or store.sites:
        found = store.stats(site)
        norm_99 = float(found.norm_quantiles[8])
        numbers = (
            found.mean.mean(),
            found.std.square().mean().sqrt(),
            found.low.min(),
            found.high.max(),
            found.norm_mean,
            norm_99,
        )
        typer.echo(f"{site:<32} {found.rows:>10,} " + " ".join(f"{float(n):>10.4g}" for n in numbers))


@app.command()
def export(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="A new folder.")],
    form: Annotated[str, typer.Option("--format", help="safetensors, parquet or saelens.")] = "safetensors",
    sites: Annotated[list[str] | None, typer.Option("--site", help="Sites; all by default.")] = None,
) -> None:
    """Copy rows to a format of other tools."""
    from interneuron.store import Store
    from interneuron.store.export import export as write

    write(Store.open(folder), out, form, sites)
    typer.echo(f"wrote {form} to {out}")


@app.command()
def delete(
    folder: Folder,
    site: Annotated[str | None, typer.Option(help="Give up this site only.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it nothing happens.")] = False,
) -> None:
    """Delete a store, or one site of it."""
    from interneuron.store import delete as delete_store
    from interneuron.store import drop_site

    what = f"site {site} of {folder}" if site else folder
    if not yes:
        raise InputError(f"store delete: {what} would be lost. Pass --yes to do it.")
    if site:
        drop_site(folder, site)
    else:
        delete_store(folder)
    typer.echo(f"deleted {what}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:16] + "..."
