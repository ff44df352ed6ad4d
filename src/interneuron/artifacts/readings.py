"""The ways a dictionary's tensors can be meant: what a foreign file leaves open, spelled out as dictionaries to
compare.

A file says W_enc, W_dec, b_enc, b_dec. Whether the encoder is [D F] or [F D], whether decoder norms were folded,
whether the input is centred, scaled or normalised is convention, and the wrong convention computes without complaint.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from interneuron.artifacts.dictionary import Dictionary

Change = Callable[[Dictionary], Dictionary]
DECLARED = "as declared"
ANOTHER_K = "k"


def readings(dictionary: Dictionary, x: Tensor, depth: int = 1) -> dict[str, Dictionary]:
    """The declared reading first, then every plausible other one, up to `depth` changes at a time.

    x  [N D] activations, from which the scale factors that training tools use are computed
    """
    changes = _changes(dictionary, x)
    found: dict[str, Dictionary] = {DECLARED: dictionary}
    layer: dict[str, tuple[Dictionary, frozenset[str]]] = {"": (dictionary, frozenset())}
    for _ in range(depth):
        grown: dict[str, tuple[Dictionary, frozenset[str]]] = {}
        for label, (base, used) in layer.items():
            for name, (group, change) in changes.items():
                key = " and ".join(sorted([*filter(None, label.split(" and ")), name]))
                if group in used or key in found:
                    continue
                grown[key] = (change(base), used | {group})
        found.update({key: value for key, (value, _) in grown.items()})
        layer = grown
    return found


def _changes(d: Dictionary, x: Tensor) -> dict[str, tuple[str, Change]]:
    """Name -> (group, change); of one group only one change is made at a time."""
    out: dict[str, tuple[str, Change]] = {}
    square = d.encoder.shape[0] == d.encoder.shape[1]
    if square and d.activation != "pursuit":
        out["encoder transposed"] = ("encoder", lambda v: v.replace(encoder=v.encoder.T.contiguous()))
    if d.decoder.shape[0] == d.decoder.shape[1]:
        out["decoder transposed"] = ("decoder", lambda v: v.replace(decoder=v.decoder.T.contiguous()))
    norm = d.decoder.norm(dim=1)
    if bool(((norm - 1).abs() > 1e-3).any()):
        out["decoder rows divided by their norms"] = ("norm", _unit_decoder)
        if d.activation != "pursuit":
            out["encoder divided by decoder norms"] = ("norm", _divided_encoder)
            out["encoder multiplied by decoder norms"] = ("norm", _multiplied_encoder)
        if d.activation in ("topk", "abstopk"):
            out["features chosen by their norms"] = ("norm", lambda v: _unit_decoder(_multiplied_encoder(v)))
        if d.threshold is not None:
            out["threshold multiplied by decoder norms"] = ("norm", _multiplied_threshold)
            out["threshold divided by decoder norms"] = ("norm", _divided_threshold)
    if d.decoder.shape[1] == d.d_in and not d.target:
        name = "input not centred" if d.center else "input centred by the decoder bias"
        out[name] = ("center", lambda v: v.replace(center=not v.center))
        for kind in ("none", "layer_norm", "constant_norm"):
            if kind != d.normalize:
                out[f"normalised: {kind}"] = ("scale", lambda v, kind=kind: v.replace(normalize=kind, scale=1.0))
    for k in (d.k * 2**n for n in range(1, 6) if d.activation in ("topk", "abstopk")):
        if k <= d.n_features:
            out[f"{ANOTHER_K} = {k}"] = ("k", lambda v, k=k: v.replace(k=k))
    if d.scale != 1:
        out["not scaled"] = ("scale", lambda v: v.replace(scale=1.0))
    for name, factor in _factors(x).items():
        if abs(factor / d.scale - 1) > 0.05:
            out[f"scaled by {name} = {factor:.4g}"] = (
                "scale",
                lambda v, s=factor: v.replace(scale=s, normalize="none"),
            )
    return out


def _factors(x: Tensor) -> dict[str, float]:
    """The scale factors that training tools divide activations to."""
    norms = x.double().norm(dim=-1)
    mean, size = float(norms.mean()), x.shape[-1] ** 0.5
    rms = float(norms.square().mean().sqrt())
    return {"sqrt(D)/mean|x| of these rows": size / max(mean, 1e-12), "1/rms|x| of these rows": 1 / max(rms, 1e-12)}


def _norm(d: Dictionary) -> Tensor:
    return d.decoder.norm(dim=1).clamp_min(1e-8)


def _unit_decoder(d: Dictionary) -> Dictionary:
    return d.replace(decoder=d.decoder / _norm(d)[:, None])


def _divided_encoder(d: Dictionary) -> Dictionary:
    return d.replace(encoder=d.encoder / _norm(d), encoder_bias=d.encoder_bias / _norm(d))


def _multiplied_encoder(d: Dictionary) -> Dictionary:
    return d.replace(encoder=d.encoder * _norm(d), encoder_bias=d.encoder_bias * _norm(d))


def _multiplied_threshold(d: Dictionary) -> Dictionary:
    return d if d.threshold is None else d.replace(threshold=d.threshold * _norm(d))


def _divided_threshold(d: Dictionary) -> Dictionary:
    return d if d.threshold is None else d.replace(threshold=d.threshold / _norm(d))


def same_output(a: Dictionary, b: Dictionary, x: Tensor) -> bool:
    """Whether two readings reconstruct x alike, so that choosing between them is no choice."""
    return bool(torch.allclose(a.reconstruct(x), b.reconstruct(x), rtol=1e-3, atol=1e-4 * float(x.abs().max())))


@torch.no_grad()
def gain_refit(d: Dictionary, x: Tensor, y: Tensor, n_features: int = 512) -> tuple[float, float, float]:
    """The gain that suits all features, and FVU on held-out rows with it and with one for each, fitted on the others.

    Decoder norms that were lost (rows made unit without telling the encoder) cannot be read off any tensor, but they
    show here: the gains that explain the activations differ from feature to feature. That all are above 1 together
    says only that a penalty shrank the features. Least squares over the features active in at least 8 of the fitting
    rows, the most active first:  min_g |r + sum_i (g_i - c) f_i d_i|^2, r what is unexplained with the gain c for all.
    """
    f = d.encode(x).double()
    rest = d.decode(f.to(d.decoder.dtype) * 0, x).double()  # what is there without any feature
    made = d.decode(f.to(d.decoder.dtype), x).double() - rest
    half = len(x) // 2
    gain = ((y[:half].double() - rest[:half]) * made[:half]).sum() / made[:half].square().sum().clamp_min(1e-30)
    left = y.double() - rest - gain * made
    usual = (f[:half] != 0).sum(0)
    chosen = usual.argsort(descending=True)[: min(n_features, half // 2)]
    chosen = chosen[usual[chosen] >= 8]
    total = (y[half:].double() - y[half:].double().mean(0)).square().sum()
    before = float(left[half:].square().sum() / total)
    if not len(chosen) or d.normalize != "none":
        return float(gain), before, before
    rows = d.decoder[chosen].double() / d.scale
    part = f[:half, chosen]
    gram = (part.T @ part) * (rows @ rows.T)
    gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(chosen), dtype=gram.dtype)
    gains = torch.linalg.solve(gram, ((left[:half] @ rows.T) * part).sum(0))
    after = left[half:] - (f[half:, chosen] * gains) @ rows
    return float(gain), before, float(after.square().sum() / total)
