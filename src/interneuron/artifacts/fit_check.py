"""The self-check of a foreign dictionary: which reading of it explains activations, or the numbers when none does.

    checked, report = check_fit(dictionary, {"layers.3.mlp.out": x})          # rows of activations by site
    checked, report = check_on_model(dictionary, model, texts)                # reads them, and measures the loss too

For each reading (`readings.py`) and each site given:

    FVU = sum |y - y'|^2 / sum |y - mean y|^2        bias = N |mean (y - y')|^2 / sum |y - mean y|^2, less FVU / N
    score = FVU + 10 bias                            and L0, the mean number of active features

The mean error is counted more than the rest because it tells a wrong place from a weak dictionary: a dictionary carries
the mean of the activations it was trained on in its decoder bias, and neighbouring layers, which it explains almost as
well, have another mean. The declared reading stays when it fits and nothing scores better; a clearly better one that is
alone is taken and named; in all other cases nothing is: SelfCheckFailed, with the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interneuron.artifacts.candidates import all_layers, existing, near, read_rows, untold
from interneuron.artifacts.dictionary import Dictionary
from interneuron.artifacts.readings import ANOTHER_K, DECLARED, gain_refit, readings, same_output
from interneuron.artifacts.report import Report
from interneuron.core.errors import InputError, SelfCheckFailed, SiteNotFound

MAX_FVU = 0.6
MAX_ROWS = 1024  # of each site; more tell no more
FEW_ROWS = 400
BIAS = 10.0  # weight of the mean error in the score
BETTER = 0.95  # of the declared score: below it the declared reading is in doubt
SMALL = 0.005  # of score: less says nothing, however good the fit
CLEARLY = 0.7  # of any other score: below it a reading is the only one
ALIKE = 1.05  # of the declared score: up to it another reading is mentioned, because these rows cannot exclude it
TRUSTED = 0.4  # FVU up to which a reading that nobody declared is believed
GAINS = (0.8, 1.3)  # of the features, all together, without a word; a penalty on their size shrinks relu ones further
MORE = 1.5  # times the active features of the declared reading
WRONG_K = 0.2  # more features help a top-k dictionary a little; this much says that k is not its own
LOST_NORMS = 0.9  # a gain per feature explaining this much better than one for all: decoder norms were lost


class Tried(NamedTuple):
    """One reading at one site, with its numbers."""

    reading: str
    site: str
    target: str
    dictionary: Any
    fvu: float
    bias: float
    l0: float

    @property
    def score(self) -> float:
        """FVU with the mean error counted more; infinite when it is no number."""
        total = self.fvu + BIAS * self.bias
        return total if math.isfinite(total) else math.inf

    @property
    def place(self) -> str:
        """Where it was tried."""
        return f"{self.site or 'the rows given'}{' -> ' + self.target if self.target else ''}"


def check_fit(
    dictionary: Dictionary,
    activations: Tensor | Mapping[str, Tensor],
    max_fvu: float = MAX_FVU,
    repair: bool = True,
) -> tuple[Dictionary, Report]:
    """The reading of `dictionary` that explains the activations, and a report that says which and why.

    activations  rows [N D] of its own site, or a mapping from site to rows of the same tokens: its site (and target),
                 and any other places it might have been meant for, such as the other layers; about 1,000 are enough
    max_fvu      what counts as fitting
    repair       False: accept only the declared reading, never another

    Raises:
        SelfCheckFailed: no reading fits, or several that differ do; the message has the numbers.
        InputError: no activations of the site, or too few rows.
    """
    stored = dictionary.encoder.dtype
    if stored in (torch.float16, torch.bfloat16):
        dictionary = dictionary.to(dtype=torch.float32)  # exact, as is the way back; sums in half precision are not
    dictionary = _with_heads(dictionary, activations)
    rows = _rows(dictionary, activations)
    tried = _try_all(dictionary, rows, depth=1)
    if not any(_fits(t, dictionary, max_fvu) for t in tried):
        tried = _try_all(dictionary, rows, depth=2)
    tried.sort(key=lambda t: t.score)
    chosen, reason = _choose(dictionary, tried, rows, max_fvu, repair)
    reason += _quirks(chosen, rows, dictionary) + untold([str(dictionary.site), dictionary.target], activations)
    report = _report(tried, chosen, reason)
    notes = [*dictionary.fitted.get("notes", []), reason]
    fitted = {**dictionary.fitted, "notes": notes, "self_check": {"fvu": chosen.fvu, "l0": chosen.l0}}
    checked = chosen.dictionary.replace(site=chosen.site, target=chosen.target, fitted=fitted)
    return checked.to(dtype=stored), report


def _quirks(chosen: Tried, rows: Mapping[str, Tensor], dictionary: Dictionary) -> str:
    """What is odd about the reading taken, in words; raises SelfCheckFailed when decoder norms were lost."""
    gain, before, after = gain_refit(chosen.dictionary, rows[chosen.site], rows[chosen.target or chosen.site])
    if before > 0.1 and after < LOST_NORMS * before:
        raise SelfCheckFailed(
            f"{_name(dictionary)}: the best reading ({chosen.reading}) has FVU {before:.3g} with one gain for all "
            f"features, but {after:.3g} with one for each: the lengths of its decoder rows were lost. Get the file "
            "with unfolded norms."
        )
    found = "" if _count(rows) >= FEW_ROWS else f"; fewer than {FEW_ROWS} rows do not show lost decoder norms"
    if not GAINS[0] <= gain <= (2 if dictionary.activation in ("relu", "gated") else GAINS[1]):
        found += f"; its features would fit better multiplied by {gain:.2g}: another scale, or other text"
    if _off_centre(chosen):
        found += "; its mean error is large beside the rest: a bias is missing, or this is other text"
    return found


def _with_heads(dictionary: Dictionary, activations: Tensor | Mapping[str, Tensor]) -> Dictionary:
    """With the heads of its site, where activations [... H K] show that its width is theirs side by side."""
    x = activations if isinstance(activations, Tensor) else activations.get(str(dictionary.site))
    if x is None or x.ndim < 3 or dictionary.heads or dictionary.decoder.shape[1] != dictionary.d_in:
        return dictionary
    heads, width = x.shape[-2:]
    return dictionary.replace(heads=heads) if width < heads * width == dictionary.d_in else dictionary


def _rows(dictionary: Dictionary, activations: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = str(dictionary.site) if isinstance(dictionary.site, str) else ""
    if isinstance(activations, Tensor):
        if dictionary.target:
            raise InputError("a transcoder needs rows of both its sites: pass {site: x, target: y}.")
        activations = {own: activations}
    flat: dict[str, Tensor] = {}
    wanted = [name for name in (own, dictionary.target) if name in activations]
    for name in [*wanted, *activations]:
        x = _flat(activations[name], dictionary)
        # The same rows under two names (a block's raw output and what it adds, where no norm is between) are one place.
        if name in wanted or not any(x.shape == y.shape and torch.equal(x, y) for y in flat.values()):
            flat[name] = x
    counts = {len(x) for x in flat.values()}
    if len(counts) != 1 or min(counts) < 16:
        raise InputError(
            f"activations have {sorted(counts)} rows, expected the same number everywhere and at least 16."
        )
    step = -(-counts.pop() // MAX_ROWS)
    return {name: x[::step] for name, x in flat.items()}


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
            if dictionary.target and not _sensible(dictionary, site, target):
                continue
            several = changes if target == dictionary.target or not dictionary.target else {DECLARED: dictionary}
            tried += [_measure(name, site, target, reading, x, rows[target]) for name, reading in several.items()]
    if not tried:
        shapes = {name: list(x.shape) for name, x in rows.items()}
        raise InputError(f"no activations of width {dictionary.d_in} (and {out_width}) among {shapes}. Read its site.")
    return tried


def _sensible(dictionary: Dictionary, site: str, target: str) -> bool:
    """Whether a transcoder may be tried from `site` into `target`: one of them moved in its layer, or both alike."""
    if target == site and dictionary.target != dictionary.site:
        return False
    own, goal = str(dictionary.site), dictionary.target
    moved = [_layer(site) - _layer(own), _layer(target) - _layer(goal)]
    if site == own or target == goal:
        return moved == [0, 0]
    return moved[0] == moved[1] and _point(site) == _point(own) and _point(target) == _point(goal)


def _layer(site: str) -> int:
    number = site.partition(".")[2].partition(".")[0]
    return int(number) if number.isdigit() else -1


def _point(site: str) -> str:
    return site.partition(".")[2].partition(".")[2]


@torch.no_grad()
def _measure(name: str, site: str, target: str, reading: Dictionary, x: Tensor, y: Tensor) -> Tried:
    f = reading.encode(x)
    left = y.double() - reading.decode(f, x).double()
    total = float((y.double() - y.double().mean(0)).square().sum())
    fvu = float(left.square().sum()) / total if total else math.inf
    bias = len(x) * float(left.mean(0).square().sum()) / total - fvu / len(x) if total else math.inf
    l0 = float((f != 0).sum(-1).double().mean())
    return Tried(name, site, target if reading.target else "", reading, fvu, max(bias, 0.0), l0)


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
    if declared is not None and _fits(declared, dictionary, max_fvu):
        # Any dictionary explains more with more features: such a reading is mentioned, and decides nothing.
        fewer = [
            t for t in fitting if t.site != declared.site or t.l0 <= MORE * declared.l0 or t.fvu < 0.5 * declared.fvu
        ]
    else:
        fewer = fitting
    best = fewer[0]
    if declared is not None and _fits(declared, dictionary, max_fvu) and best.score >= BETTER * declared.score - SMALL:
        near_by = [t for t in fitting if t.score <= ALIKE * declared.score and not _alike(declared, t, rows)]
        doubt = f"; these rows do not exclude {_list(near_by[:3])}" if near_by else ""
        return declared, f"checked on {_count(rows)} rows: the declared reading fits, {_numbers(declared)}{doubt}"
    rivals = [t for t in fewer[1:] if best.score >= CLEARLY * t.score - 1e-6 and not _alike(best, t, rows)]
    if rivals:
        one = best is declared or best.site == dictionary.site
        raise SelfCheckFailed(
            f"{_name(dictionary)}: several readings fit and {'differ' if one else 'another place fits better'}. "
            f"{_table([best, *rivals], max_fvu)}"
        )
    before = _numbers(declared) if declared is not None else "not measured"
    if best.fvu > TRUSTED or _off_centre(best) or (declared is not None and best.fvu > declared.fvu):
        raise SelfCheckFailed(
            f"{_name(dictionary)}: the declared reading is in doubt ({before}), and what scores better is not good "
            f"enough to be believed. {_table(tried, max_fvu)}"
        )
    if not repair and declared is not None:
        raise SelfCheckFailed(
            f"{_name(dictionary)}: the declared reading does not fit ({before}), another would. "
            f"{_table(tried, max_fvu)}"
        )
    what = best.reading if best.reading != DECLARED else "the declared reading"
    where = "" if best.site == dictionary.site and best.target == dictionary.target else f" at {best.site}" + (
        f" into {best.target}" if best.target else "")  # fmt: skip
    return best, (
        f"checked on {_count(rows)} rows: repaired to {what}{where}, {_numbers(best)}; as declared it is {before}"
    )


def _off_centre(t: Tried) -> bool:
    """Whether the mean error is large beside the rest, as it is where a reading fits by chance."""
    return BIAS * t.bias > max(t.fvu, 0.01)


def _numbers(t: Tried) -> str:
    return f"FVU {t.fvu:.3g}, mean error {t.bias:.2g}, L0 {t.l0:.1f}"


def _list(tried: Sequence[Tried]) -> str:
    return " or ".join(f"'{t.reading}' at {t.place} ({_numbers(t)})" for t in tried)


def _alike(a: Tried, b: Tried, rows: Mapping[str, Tensor]) -> bool:
    return a.site == b.site and a.target == b.target and same_output(a.dictionary, b.dictionary, rows[a.site])


def _count(rows: Mapping[str, Tensor]) -> int:
    return len(next(iter(rows.values())))


def _name(dictionary: Any) -> str:
    return f"the dictionary [{dictionary.d_in} {dictionary.n_features}] for {dictionary.site or 'no site'}"


def _table(tried: Sequence[Tried], max_fvu: float) -> str:
    rows = "; ".join(f"{t.reading} at {t.place}: {_numbers(t)}" for t in tried[:6])
    return (
        f"Best first (FVU up to {max_fvu:g} fits): {rows}. "
        "Check site, layer, model and tokens, or pass the right reading; without activations nothing is checked."
    )


def _report(tried: list[Tried], chosen: Tried, reason: str) -> Report:
    table = [
        {
            "reading": t.reading, "site": t.site, "target": t.target, "fvu": t.fvu, "bias": t.bias, "l0": t.l0,
            "chosen": t is chosen,
        }
        for t in tried
    ]  # fmt: skip
    numbers: dict[str, Any] = {
        "fvu": chosen.fvu, "bias": chosen.bias, "l0": chosen.l0, "reading": chosen.reading, "readings": len(tried),
    }  # fmt: skip
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
    other_sites  where it might have been meant for; the neighbouring layers, the other points of its own layer and raw
                 output against residual contribution are added by themselves, and all layers when one of them does
                 better
    skip_first   leave out the first token of each row, whose activations are often of another size

    Raises as `check_fit`; SiteNotFound when the model has neither its site nor any candidate.
    """
    sites = [name for name in (str(dictionary.site), dictionary.target) if name]
    names = existing(model, [*sites, *[other for site in sites for other in near(site)], *other_sites])
    if not names:
        raise SiteNotFound(f"{_name(dictionary)}: the model has none of {sites}. Give the site with replace(site=...).")
    acts = read_rows(model, inputs, names, skip_first)
    if _elsewhere(dictionary, acts):
        more = existing(model, [other for site in sites for other in all_layers(site, model.n_layers)])
        acts = {**acts, **read_rows(model, inputs, [name for name in more if name not in acts], skip_first)}
    checked, report = check_fit(dictionary, acts, max_fvu, repair)
    losses = loss_recovered(model, checked, inputs)
    return checked, report.replace(numbers={**report.numbers, **losses})


def _elsewhere(dictionary: Dictionary, acts: Mapping[str, Tensor]) -> bool:
    """Whether some other place does better than the declared one with the declared reading."""
    try:
        tried = _try_all(dictionary, _rows(dictionary, acts), depth=0)
    except InputError:
        return False
    best = min(tried, key=lambda t: t.score)
    return not _is_declared(best, dictionary)


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
