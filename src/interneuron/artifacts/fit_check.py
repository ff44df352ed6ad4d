"""The self-check of a foreign dictionary: which reading of it explains activations, or the numbers when none does.

    checked, report = check_fit(dictionary, {"layers.3.mlp.out": x})          # rows of activations by site
    checked, report = check_on_model(dictionary, model, texts)                # reads them, and measures the loss too

For each reading (`readings.py`) and each site given: FVU = sum |y - y'|^2 / sum |y - mean y|^2, and L0, the mean
number of
active features. The declared reading stays when it fits and none does clearly better; otherwise the only one that fits
is taken and named; when none or several fit, nothing is: SelfCheckFailed, with the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interneuron.artifacts.dictionary import Dictionary
from interneuron.artifacts.readings import ANOTHER_K, DECLARED, gain_refit, readings, same_output
from interneuron.artifacts.report import Report
from interneuron.core.errors import InputError, SelfCheckFailed, SiteNotFound

MAX_FVU = 0.6
CLEARLY = 0.7  # a reading is clearly better when its FVU is below this share of the other's
WRONG_K = 0.2  # more features help a top-k dictionary a little; this much says that k is not its own
LOST_NORMS = 0.4  # one gain per feature explaining this much better means that decoder norms were lost


class Tried(NamedTuple):
    """One reading at one site, with its numbers."""

    reading: str
    site: str
    target: str
    dictionary: Dictionary
    fvu: float
    l0: float


def check_fit(
    dictionary: Dictionary,
    activations: Tensor | Mapping[str, Tensor],
    max_fvu: float = MAX_FVU,
    repair: bool = True,
) -> tuple[Dictionary, Report]:
    """The reading of `dictionary` that explains the activations, and a report that says which and why.

    activations  rows [N D] of its own site, or a mapping from site to rows of the same tokens: its site (and target),
                 and any other places it might have been meant for, such as the other layers
    max_fvu      what counts as fitting
    repair       False: accept only the declared reading, never another

    Raises:
        SelfCheckFailed: no reading fits, or several that differ do; the message has the numbers.
        InputError: no activations of the site, or too few rows.
    """
    rows = _rows(dictionary, activations)
    tried = _try_all(dictionary, rows, depth=1)
    if not any(_fits(t, dictionary, max_fvu) for t in tried):
        tried = _try_all(dictionary, rows, depth=2)
    tried.sort(key=lambda t: t.fvu if math.isfinite(t.fvu) else math.inf)
    chosen, reason = _choose(dictionary, tried, rows, max_fvu, repair)
    before, after = gain_refit(chosen.dictionary, rows[chosen.site], rows[chosen.target or chosen.site])
    if before > 0.02 and after < LOST_NORMS * before:
        raise SelfCheckFailed(
            f"{_name(dictionary)}: the best reading ({chosen.reading}) has FVU {before:.3g}, but {after:.3g} once "
            "each feature "
            "is given a gain of its own: the lengths of its decoder rows were lost. Get the file with unfolded norms."
        )
    report = _report(tried, chosen, reason)
    notes = [*dictionary.fitted.get("notes", []), reason]
    fitted = {**dictionary.fitted, "notes": notes, "self_check": {"fvu": chosen.fvu, "l0": chosen.l0}}
    return chosen.dictionary.replace(site=chosen.site, target=chosen.target, fitted=fitted), report


def _rows(dictionary: Dictionary, activations: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = str(dictionary.site) if isinstance(dictionary.site, str) else ""
    if isinstance(activations, Tensor):
        if dictionary.target:
            raise InputError("a transcoder needs rows of both its sites: pass {site: x, target: y}.")
        activations = {own: activations}
    flat = {name: _flat(x, dictionary) for name, x in activations.items()}
    counts = {len(x) for x in flat.values()}
    if len(counts) != 1 or min(counts) < 16:
        raise InputError(
            f"activations have {sorted(counts)} rows, expected the same number everywhere and at least 16."
        )
    return flat


def _flat(x: Tensor, dictionary: Dictionary) -> Tensor:
    if (
        x.ndim > 2
        and x.shape[-1] != dictionary.d_in
        and x.shape[-1] * x.shape[-2] in (dictionary.d_in, dictionary.decoder.shape[1])
    ):
        x = x.flatten(-2)  # attn.z, whose heads lie side by side in the dictionary
    return x.detach().reshape(-1, x.shape[-1]).to(dictionary.encoder.dtype)


def _try_all(dictionary: Dictionary, rows: Mapping[str, Tensor], depth: int) -> list[Tried]:
    own = str(dictionary.site) if isinstance(dictionary.site, str) else ""
    out_width = dictionary.decoder.shape[1]
    tried: list[Tried] = []
    for site, x in rows.items():
        if x.shape[-1] != dictionary.d_in:
            continue
        targets = [name for name in rows if rows[name].shape[-1] == out_width] if dictionary.target else [site]
        # Other sites are tried with the declared reading only, or the table would grow beyond reason.
        changes = readings(dictionary, x, depth) if site == own or own not in rows else {DECLARED: dictionary}
        for target in targets:
            if dictionary.target and target == site and dictionary.target != site:
                continue
            several = changes if target == dictionary.target or not dictionary.target else {DECLARED: dictionary}
            tried += [_measure(name, site, target, reading, x, rows[target]) for name, reading in several.items()]
    if not tried:
        shapes = {name: list(x.shape) for name, x in rows.items()}
        raise InputError(f"no activations of width {dictionary.d_in} (and {out_width}) among {shapes}. Read its site.")
    return tried


@torch.no_grad()
def _measure(name: str, site: str, target: str, reading: Dictionary, x: Tensor, y: Tensor) -> Tried:
    quality = reading.quality(x, y)
    goal = target if reading.target else ""
    return Tried(name, site, goal, reading, quality["fvu"], quality["l0"])


def _fits(t: Tried, dictionary: Dictionary, max_fvu: float) -> bool:
    return math.isfinite(t.fvu) and t.fvu <= max_fvu and t.l0 > 0


def _is_declared(t: Tried, dictionary: Dictionary) -> bool:
    return (
        t.reading == DECLARED and t.site == dictionary.site and (not dictionary.target or t.target == dictionary.target)
    )


def _choose(
    dictionary: Dictionary, tried: list[Tried], rows: Mapping[str, Tensor], max_fvu: float, repair: bool
) -> tuple[Tried, str]:
    declared = next((t for t in tried if _is_declared(t, dictionary)), None)
    floor = WRONG_K * declared.fvu if declared is not None else 0.0
    tried = [t for t in tried if not t.reading.startswith(f"{ANOTHER_K} = ") or t.fvu < floor]
    fitting = [t for t in tried if _fits(t, dictionary, max_fvu)]
    if not fitting:
        raise SelfCheckFailed(f"{_name(dictionary)}: no reading explains the activations. {_table(tried, max_fvu)}")
    best = fitting[0]
    if declared is not None and _fits(declared, dictionary, max_fvu) and best.fvu >= CLEARLY * declared.fvu - 1e-6:
        return (
            declared,
            f"checked on {_count(rows)} rows: the declared reading fits, FVU {declared.fvu:.3g}, L0 {declared.l0:.1f}",
        )
    rivals = [t for t in fitting[1:] if best.fvu >= CLEARLY * t.fvu - 1e-6 and not _alike(best, t, rows)]
    if rivals:
        raise SelfCheckFailed(
            f"{_name(dictionary)}: several readings fit and differ. {_table([best, *rivals], max_fvu)}"
        )
    before = f"FVU {declared.fvu:.3g}" if declared is not None else "not measured"
    if not repair and declared is not None:
        raise SelfCheckFailed(
            f"{_name(dictionary)}: the declared reading does not fit ({before}), another would. "
            f"{_table(tried, max_fvu)}"
        )
    what = best.reading if best.reading != DECLARED else "the declared reading"
    where = "" if best.site == dictionary.site and best.target == dictionary.target else f" at {best.site}" + (
        f" into {best.target}" if best.target else "")  # fmt: skip
    return best, (
        f"checked on {_count(rows)} rows: repaired to {what}{where}, FVU {best.fvu:.3g}, L0 {best.l0:.1f}; as "
        f"declared it is {before}"
    )


def _alike(a: Tried, b: Tried, rows: Mapping[str, Tensor]) -> bool:
    return a.site == b.site and a.target == b.target and same_output(a.dictionary, b.dictionary, rows[a.site])


def _count(rows: Mapping[str, Tensor]) -> int:
    return len(next(iter(rows.values())))


def _name(dictionary: Dictionary) -> str:
    return f"the dictionary [{dictionary.d_in} {dictionary.n_features}] for {dictionary.site or 'no site'}"


def _table(tried: Sequence[Tried], max_fvu: float) -> str:
    rows = "; ".join(
        f"{t.reading} at {t.site or 'the rows given'}{' -> ' + t.target if t.target else ''}: FVU {t.fvu:.3g}, L0 "
        f"{t.l0:.1f}"
        for t in tried[:6]
    )
    return (
        f"Best first (FVU up to {max_fvu:g} fits): {rows}. "
        "Check site, layer, model and tokens, or pass the right reading."
    )


def _report(tried: list[Tried], chosen: Tried, reason: str) -> Report:
    table = [
        {"reading": t.reading, "site": t.site, "target": t.target, "fvu": t.fvu, "l0": t.l0, "chosen": t is chosen}
        for t in tried
    ]
    numbers: dict[str, Any] = {"fvu": chosen.fvu, "l0": chosen.l0, "reading": chosen.reading, "readings": len(tried)}
    return Report(title="Self-check of a foreign dictionary", numbers=numbers, tables={"readings": table}, notes=reason)


# --- with a model ---


def check_on_model(
    dictionary: Dictionary,
    model: Any,
    inputs: Any,
    other_sites: Sequence[str] = (),
    max_fvu: float = MAX_FVU,
    repair: bool = True,
    skip_first: bool = True,
) -> tuple[Dictionary, Report]:
    """`check_fit` on what flows through `model`, with the loss recovered.

    inputs       texts or tokens, a few hundred tokens in all
    other_sites  where it might have been meant for; the same point of the neighbouring layers and raw output against
                 residual contribution are added by themselves
    skip_first   leave out the first token of each row, whose activations are often of another size

    Raises as `check_fit`; SiteNotFound when the model has neither its site nor any candidate.
    """
    sites = [name for name in (str(dictionary.site), dictionary.target) if name]
    names = _existing(model, [*sites, *[near for site in sites for near in _neighbours(site)], *other_sites])
    if not names:
        raise SiteNotFound(f"{_name(dictionary)}: the model has none of {sites}. Give the site with replace(site=...).")
    with torch.no_grad(), model.read(*names) as acts:
        model(inputs)
    flat = {name: acts[name][:, 1:] if skip_first and acts[name].shape[1] > 1 else acts[name] for name in names}
    checked, report = check_fit(dictionary, {n: x.flatten(0, 1) for n, x in flat.items()}, max_fvu, repair)
    losses = loss_recovered(model, checked, inputs)
    return checked, report.replace(numbers={**report.numbers, **losses})


def _existing(model: Any, names: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for name in names:
        try:
            for site in model.sites(name):
                found[site.name] = None
        except SiteNotFound:
            continue
    return list(found)


def _neighbours(site: str) -> list[str]:
    head, _, rest = site.partition(".")
    layer, _, point = rest.partition(".")
    if head != "layers" or not layer.isdigit():
        return []
    twins = {
        "mlp.out": "mlp.contribution",
        "mlp.contribution": "mlp.out",
        "attn.out": "attn.contribution",
        "attn.contribution": "attn.out",
    }
    near = [f"layers.{int(layer) + step}.{point}" for step in (-1, 1) if int(layer) + step >= 0]
    return near + ([f"layers.{layer}.{twins[point]}"] if point in twins else [])


@torch.no_grad()
def loss_recovered(model: Any, dictionary: Dictionary, inputs: Any) -> dict[str, float]:
    """Next-token loss clean, with the target replaced by its reconstruction, and with it set to 0.

    loss_recovered = (loss_zero - loss_spliced) / (loss_zero - loss_clean): 1 loses nothing, 0 is nothing there.
    """
    from interneuron.model.edits import Ablate, Replace

    site = str(dictionary.site)
    target = dictionary.target or site
    run = model.run(inputs, read=[site])
    ids, mask = model.prepare(inputs)[1]["input_ids"], model.prepare(inputs)[1].get("attention_mask")
    x = run.acts[site]
    spliced = dictionary.reconstruct(x.flatten(2) if x.ndim > 3 else x).reshape(
        x.shape if target == site else (*x.shape[:2], -1)
    )

    def loss(edits: list[Any]) -> float:
        return _next_token_loss(model.run(inputs, edit=edits).output.logits, ids, mask)

    clean, cut, kept = loss([]), loss([Ablate(target)]), loss([Replace(target, spliced.to(x.dtype))])
    recovered = (cut - kept) / (cut - clean) if cut != clean else math.nan
    return {"loss_clean": clean, "loss_spliced": kept, "loss_zero": cut, "loss_recovered": recovered}


def _next_token_loss(logits: Tensor, ids: Tensor, mask: Tensor | None) -> float:
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].double().transpose(1, 2), ids[:, 1:].to(logits.device), reduction="none"
    )
    if mask is None:
        return float(losses.mean())
    kept = mask[:, 1:].to(losses)
    return float((losses * kept).sum() / kept.sum().clamp_min(1))
