"""The self-check: the identities a canonical map promises, evaluated on a few tokens.

    resid_pre + attn.contribution + mlp.contribution = resid_post        (pre-norm and parallel blocks)
    resid_pre + attn.contribution = resid_mid                            (sequential blocks)
    sum attn.pattern = 1            rows of a pattern that is read from the model itself are distributions
    top router.logits = router.experts        the experts chosen are those with the largest logits

Post-norm families state theirs. A violated identity means that a name points at the wrong tensor, so it is an error.
The check leaves no trace: no gradients, modules put in eval mode one by one and put back, random state restored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interneuron.core.errors import InputError, InterneuronError, SelfCheckFailed
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
    wanted = list(dict.fromkeys(site for _, sites, _ in equations for site in sites))
    if not wanted:
        return {}
    given = inputs is not None
    args, named = model.prepare(inputs) if given else ((), _example(model.module))
    if not args and not named:
        return {}
    places = model._resolver.resolve(wanted)
    session = Session(model._engine, reads=places, spec=ReadSpec(to="cpu", copy=True), canonical=model._resolver.canonical)
    with undisturbed(model.module):
        try:
            with session as acts:
                model.module(*args, **named)
        except (InterneuronError, StopForward):
            raise
        except Exception as error:
            if given:
                raise
            # An architecture that needs more than tokens or an image is checked by model.check(inputs) instead.
            return {"unchecked": float("nan"), f"{type(error).__name__}": float("nan")}
    return {
        f"{name}: {text}": _compare(model, name, text, [acts[site] for site in sites]) for name, sites, text in equations
    }


def _example(module: nn.Module) -> dict[str, Tensor]:
    try:
        return example_inputs(module)
    except InputError:
        return {}


def _sites(model: Model, name: str, path: str, text: str) -> list[str] | None:
    """The sites an equation speaks of, or None when this layer lacks one of them."""
    left, right = text.removeprefix("sum ").removeprefix("top ").split(" = ")
    sites = []
    for term in (*left.split(" + "), right):
        term = term.strip()
        if ":" in term:
            inner = term.split(":", 1)
            full = f"{path}.{inner[0]}:{inner[1]}" if inner[0] else f"{path}:{inner[1]}"
            if full.split(":", maxsplit=1)[0] not in model._resolver.modules:
                return None
            sites.append(full)
        elif f"{name}.{term}" in model._resolver.layout.entries:
            sites.append(f"{name}.{term}")
        elif term != "1":
            return None
    return sites


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
            f"{name} of {kind}: {text} compares shapes {tuple(total.shape)} and {tuple(right.shape)}, so the family map "
            f"{model.family!r} is wrong here: use module paths, and report it."
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
