"""The self-check: the identities a canonical map promises, evaluated on a few tokens.

    resid_pre + attn.contribution + mlp.contribution = resid_post        (pre-norm and parallel blocks)
    resid_pre + attn.contribution = resid_mid                            (sequential blocks)
    resid_post = next.resid_pre                                          (what leaves a layer enters the next)
    sum attn.pattern = 1            rows of a pattern that is read from the model itself are distributions
    top router.logits = router.experts        the experts chosen are those with the largest logits

Terms are canonical names of a layer or tap addresses relative to it; `a * b` is a product, b of shape [B, D] or [D].

Post-norm families state theirs. A violated identity means that a name points at the wrong tensor, so it is an error.
The check leaves no trace: no gradients, modules put in eval mode one by one and put back, random state restored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interneuron.core.errors import InputError, InterneuronError, SelfCheckFailed, SiteDidNotFire
from interneuron.model.activations import Activations
from interneuron.model.engine import Session, StopForward
from interneuron.model.inputs import example_inputs
from interneuron.model.points import ReadSpec

if TYPE_CHECKING:
    from interneuron.model.model import Model


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards every module's mode and the random state are as before."""
    modes = [(part, part.training) for part in module.modules()]
    devices = sorted({p.device.index or 0 for p in module.parameters() if p.device.type == "cuda"})
    try:
        for part, _ in modes:
            part.training = False
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def check(model: Model, inputs: Any = None) -> dict[str, float]:
    """Largest relative error of every identity of the map; see the module docstring. Raises SelfCheckFailed."""
    layout = model._resolver.layout
    if not layout.equations:
        return {}
    equations = [
        (name, sites, text)
        for name, path, text in layout.equations
        if (sites := _sites(model, name, path, text)) is not None
    ]
    wanted = list(dict.fromkeys(site for _, terms, _ in equations for term in terms for site in term))
    if not wanted:
        return {}
    given = inputs is not None
    args, named = model.prepare(inputs) if given else ((), _example(model.module))
    if not args and not named:
        return {}
    places = model._resolver.resolve(wanted)
    copies = ReadSpec(to="cpu", copy=True)
    session = Session(model._engine, reads=places, spec=copies, canonical=model._resolver.canonical)
    with undisturbed(model.module), model._engine.paused():
        try:
            with session as acts:
                model.module(*args, **named)
        except SiteDidNotFire:
            pass  # a part the example does not reach, such as the vision tower of a model that also runs on text alone
        except (InterneuronError, StopForward):
            raise
        except Exception as error:
            if given:
                raise
            # An architecture that needs more than tokens or an image is checked by model.check(inputs) instead.
            return {"unchecked": float("nan"), f"{type(error).__name__}": float("nan")}
    return {
        f"{name}: {text}": _compare(model, name, text, [_product(acts, name, term) for term in terms])
        for name, terms, text in equations
        if all(site in acts for term in terms for site in term)
    }


def _product(acts: Activations, name: str, sites: list[str]) -> Tensor:
    """The product of the sites of one term; of a module that several layers share, this layer's call."""
    factors = []
    for site in sites:
        calls = acts.calls(site)
        factors.append(calls[int(name.rsplit(".", 1)[1])] if len(calls) > 1 else calls[0])
    out = factors[0]
    for factor in factors[1:]:
        out = out * (factor.unsqueeze(1) if factor.ndim == out.ndim - 1 > 1 else factor)
    return out


def _example(module: nn.Module) -> dict[str, Tensor]:
    try:
        return example_inputs(module)
    except InputError:
        return {}


def _sites(model: Model, name: str, path: str, text: str) -> list[list[str]] | None:
    """The sites of every term of an equation, or None when this layer lacks one of them."""
    left, right = text.removeprefix("sum ").removeprefix("top ").split(" = ")
    terms: list[list[str]] = []
    for term in (*left.split(" + "), right):
        if term == "1":
            continue
        factors: list[str] = []
        for factor in term.split(" * "):
            inner, colon, rest = factor.partition(":")
            site = f"{path}.{inner}:{rest}" if colon and inner else f"{path}:{rest}" if colon else _name(name, factor)
            known = model._resolver.modules if colon else model._resolver.layout.entries
            if (site.split(":")[0] if colon else site) not in known:
                return None
            factors.append(site)
        terms.append(factors)
    return terms


def _name(layer: str, suffix: str) -> str:
    """`layers.3`, `next.resid_pre` -> `layers.4.resid_pre`."""
    stem, _, number = layer.rpartition(".")
    ahead = suffix.removeprefix("next.")
    return f"{stem}.{int(number) + 1}.{ahead}" if ahead != suffix else f"{layer}.{suffix}"


def _compare(model: Model, name: str, text: str, terms: list[Tensor]) -> float:
    """The relative error of one equation on captured tensors. Raises SelfCheckFailed."""
    kind = type(model.module).__name__
    if text.startswith("sum "):
        total, right = terms[0].double().sum(-1), torch.ones(terms[0].shape[:-1])
    elif text.startswith("top "):
        logits, chosen = terms[0].double(), terms[1].long()
        total = logits.gather(-1, chosen).sort(-1, descending=True).values
        right = logits.topk(chosen.shape[-1], dim=-1).values
    else:
        total, right = sum((term.double() for term in terms[1:-1]), terms[0].double()), terms[-1]
    if total.shape != right.shape:
        raise SelfCheckFailed(
            f"{name} of {kind}: {text} compares shapes {tuple(total.shape)} and {tuple(right.shape)}, so the family "
            f"map {model.family!r} is wrong here: use module paths, and report it."
        )
    dtype = min((term.dtype for term in terms if term.is_floating_point()), key=lambda d: -torch.finfo(d).eps)
    size = max(float(t.double().abs().max()) for t in (*terms, right)) or 1.0
    error = float((total - right.double()).abs().max()) / size
    limit = 16 * len(terms) * torch.finfo(dtype).eps
    if not error <= limit:
        raise SelfCheckFailed(
            f"{name} of {kind}: {text} is off by {error:.1e} of the largest term (limit {limit:.0e}), so the family "
            f"map {model.family!r} points at wrong tensors here: use module paths such as 'a.b:out' for this model, "
            "and report it."
        )
    return error
