"""The self-check of a dictionary that reads whole texts: its declared reading against the others, on activations.

    checked, report = check_sequences(temporal, {"layers.3.resid_post": x})       # x [B T D], texts in order
    checked, report = check_sequences_on_model(temporal, model, texts)

Only the declared reading is ever accepted: where another one or another place does better, or none explains the
activations, SelfCheckFailed has the table. The first token of each text is left out of the sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interneuron.artifacts.candidates import existing, near
from interneuron.artifacts.fit_check import BETTER, MAX_FVU, SMALL, Tried, _name, _numbers, _report, _table
from interneuron.artifacts.readings import DECLARED
from interneuron.artifacts.report import Report
from interneuron.artifacts.temporal import TemporalDictionary
from interneuron.core.errors import InputError, SelfCheckFailed, SiteNotFound

Texts = Tensor | Sequence[Tensor]


def check_sequences(
    dictionary: TemporalDictionary, activations: Texts | Mapping[str, Texts], max_fvu: float = MAX_FVU
) -> tuple[TemporalDictionary, Report]:
    """The dictionary with a note of its fit, and the table of all readings.

    activations  [B T D] of its site, a list of [T D], or a mapping from site to either, its own among them

    Raises:
        SelfCheckFailed: the declared reading does not fit, or another does better.
        InputError: no activations of its site, or fewer than 16 tokens.
    """
    own = str(dictionary.site)
    if not isinstance(activations, Mapping):
        activations = {own: activations}
    texts = {
        site: _texts(value) for site, value in activations.items() if _texts(value)[0].shape[-1] == dictionary.d_in
    }
    if own not in texts or sum(len(x) for x in texts[own]) < 16:
        raise InputError(f"{own or 'its site'} is not among {list(activations)} with at least 16 tokens. Read it.")
    wide = dictionary.to(dtype=torch.float32)
    tried = [_measure(DECLARED, site, wide, x) for site, x in texts.items()]
    tried += [_measure(name, own, reading, texts[own]) for name, reading in _others(wide).items()]
    tried.sort(key=lambda t: t.score)
    declared = next(t for t in tried if t.reading == DECLARED and t.site == own)
    if not (declared.fvu <= max_fvu and declared.l0 > 0):
        raise SelfCheckFailed(f"{_name(dictionary)}: the declared reading does not fit. {_table(tried, max_fvu)}")
    if tried[0].score < BETTER * declared.score - SMALL:
        raise SelfCheckFailed(f"{_name(dictionary)}: another reading or place fits better. {_table(tried, max_fvu)}")
    reason = f"checked on {sum(map(len, texts[own]))} tokens in order: the declared reading fits, {_numbers(declared)}"
    fitted = {
        **dictionary.fitted,
        "notes": [*dictionary.fitted.get("notes", []), reason],
        "self_check": {"fvu": declared.fvu, "l0": declared.l0},
    }
    return dictionary.replace(fitted=fitted), _report(tried, declared, reason)


def check_sequences_on_model(
    dictionary: TemporalDictionary, model: Any, inputs: Any, max_fvu: float = MAX_FVU
) -> tuple[TemporalDictionary, Report]:
    """`check_sequences` on what flows through `model`, at its site and at the points it is mistaken for."""
    names = existing(model, [str(dictionary.site), *near(str(dictionary.site))])
    if str(dictionary.site) not in names:
        raise SiteNotFound(f"{_name(dictionary)}: the model has no such site. Give it with replace(site=...).")
    with torch.no_grad(), model.read(*names) as acts:
        model(inputs)
    mask = model.prepare(inputs)[1].get("attention_mask")
    keep = None if mask is None else mask.bool()
    texts = {
        name: list(acts[name]) if keep is None else [x[row] for x, row in zip(acts[name], keep, strict=True)]
        for name in names
    }
    return check_sequences(dictionary, texts, max_fvu)


def _texts(value: Texts) -> list[Tensor]:
    rows = [value] if isinstance(value, Tensor) and value.ndim == 2 else list(value)
    return [x.detach().flatten(1).float() if x.ndim == 3 else x.detach().float() for x in rows]


def _others(d: TemporalDictionary) -> dict[str, TemporalDictionary]:
    """The readings of the same tensors that compute without complaint."""
    name = "input not centred" if d.center else "input centred by the decoder bias"
    out = {name: d.replace(center=not d.center)}
    for norm in ("none", "layer_norm", "constant_norm"):
        if norm != d.normalize:
            out[f"normalised: {norm}"] = d.replace(normalize=norm, scale=1.0)
    if d.scale != 1:
        out["not scaled"] = d.replace(scale=1.0)
    if d.encoder.shape == d.decoder.shape:
        out["encoder transposed"] = d.replace(encoder=d.encoder.T.contiguous())
        out["decoder transposed"] = d.replace(decoder=d.decoder.T.contiguous())
    return out


@torch.no_grad()
def _measure(name: str, site: str, reading: TemporalDictionary, texts: Sequence[Tensor]) -> Tried:
    pairs = [(x, *reading.split(x)) for x in texts if len(x) > 1]
    left = torch.cat([(x - reading.decode(f + p, x))[1:] for x, f, p in pairs]).double()
    y = torch.cat([x[1:] for x, _, _ in pairs]).double()
    l0 = torch.cat([(f[1:] != 0).sum(-1) for _, f, _ in pairs]).double().mean()
    total = float((y - y.mean(0)).square().sum())
    fvu = float(left.square().sum()) / total if total else math.inf
    bias = max(len(y) * float(left.mean(0).square().sum()) / total - fvu / len(y), 0.0) if total else math.inf
    return Tried(name, site, "", reading, fvu, bias, float(l0))
