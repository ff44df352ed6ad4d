"""Subspace patching and DAS, with the test that tells a real feature from an illusion through a dormant pathway.

Paper: Makelov, Lange, Nanda: Is This the Subspace You Are Looking for? An Interpretability Illusion for Subspace
    Activation Patching (2023), https://arxiv.org/abs/2311.17030. DAS: Geiger et al. (2023),
    https://arxiv.org/abs/2303.02536.

Idea: a subspace found by optimising the effect of patching need not be one the model uses. It can combine a direction
    that follows the feature but is read by nothing with one that is read but does not vary on data: patching pushes the
    second. Splitting the subspace at the output weights shows it: neither half does anything alone.

Equations:
    (1)  h' = h + V V' (h_source - h)                    V with orthonormal columns
    (2)  V = argmin mean_i m(base_i under eq. 1)         DAS; m > 0 where the answer of the base prompt wins
    (3)  FLDD = 1 - m(patched) / m(base)                 0 no effect, 1 the preference is gone, above 1 it flipped
    (4)  v = v_null + v_row,  W_out v_null = 0           split by the kernel of the output map
    (5)  patching v at h equals the rank-one edit  W_out + W_out v (h_source - h)'v h' / |h|^2  on that input

Shapes: h [B D], V [D K], W_out [out D].

Cost: DAS one forward and one backward pass above the site per step; the test four forward passes.

Departures: the basis is kept orthonormal by a QR factor of the learned matrix. The objective is a metric of the
    caller's choice, such as a difference of logits [inferred]. A verdict needs an effect of a tenth at least, and calls
    a subspace faithful where its row part keeps half of the effect. Comparing with a direction predicted by a known
    circuit is a cosine, left to the caller.

Use:
    model = inn.load("lm")
    base, source = model.tokenizer(["she felt happy", "he felt happy"], return_tensors="pt")["input_ids"][:, None]
    patch = inn.circuit.DAS(steps=3).fit(model, "layers.2.mlp.hidden", base, source, lambda logits: logits[:, -1, 3])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.artifacts import Artifact, Report, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError, TrainingError
from interneuron.core.progress import track
from interneuron.core.seeds import generator
from interneuron.model.edits import Apply, Clamp, Edit, Edits, Replace
from interneuron.model.model import Model

CARD = Card(
    id=12,
    slug="subspace_illusion",
    family="circuit",
    kind="fitter",
    exports=("DAS", "SubspacePatch", "illusion_test", "rank_one_edit"),
    paper="Is This the Subspace You Are Looking for? An Interpretability Illusion for Subspace Activation Patching",
    authors="Makelov, Aleksandar and Lange, Georg and Nanda, Neel",
    year=2023,
    link="https://arxiv.org/abs/2311.17030",
    purpose="Find a subspace that carries a feature by patching (DAS), and test whether it is real or an illusion",
    claim="DAS at an MLP layer steers IOI strongly, yet its part in the row space of the output weights does nothing",
)

Metric = Callable[[Any], Tensor]
WEAK = 0.1


class SubspacePatch(Artifact):
    """A subspace of one site that is exchanged between inputs.

    basis  [D K], orthonormal columns       pos  position patched; None: every position

    Raises:
        ShapeError: no [D K] matrix for one site, or columns that are not orthonormal.
    """

    basis: Tensor
    pos: int | None = -1

    def validate(self) -> None:
        """One site, and a basis that is one."""
        shape = list(self.basis.shape)
        if len(shape) != 2 or len(self.sites) != 1 or not 0 < shape[1] <= shape[0]:
            raise ShapeError(f"SubspacePatch: basis of shape {shape} at {self.site!r}. Give one site and a [D K] basis")
        gap = self.basis.double().T @ self.basis.double() - torch.eye(shape[1], dtype=torch.float64)
        if not float(gap.abs().max()) <= 1e-4:
            raise ShapeError(
                "SubspacePatch: the columns of the basis are not orthonormal. Use torch.linalg.qr(basis).Q"
            )

    def coordinates(self, activations: Float[Tensor, "*N D"]) -> Float[Tensor, "*N K"]:
        """V' h of activations at the site."""
        if activations.shape[-1] != len(self.basis):
            raise ShapeError(
                f"activations {list(activations.shape)}, expected width {len(self.basis)}. Read {self.site}"
            )
        return activations @ self.basis.to(activations)

    def edit(self, source: Tensor | None = None) -> Edit | Edits:
        """The edit of eq. 1.

        source  activations at the site and position on the other inputs, [B D] ([B T D] where pos is None);
                without them the subspace is emptied
        """
        values = None if source is None else self.coordinates(source)
        edits = []
        for j, direction in enumerate(self.basis.T):
            edit = Clamp(self.sites[0], direction, 0.0 if values is None else values[..., j])
            edits.append(edit if self.pos is None else edit.at(pos=self.pos))
        return edits[0] if len(edits) == 1 else Edits(edits)

    def plot(self) -> dict[str, Any]:
        """How evenly the subspace is spread over the units of the site: sorted share of each unit."""
        share = self.basis.square().sum(1).sort(descending=True).values / self.basis.shape[1]
        x = list(range(1, len(share) + 1))
        return plots.lines("Share of the subspace by unit", x, {"share": share.tolist()}, x_label="unit by rank")


@dataclass(frozen=True)
class DAS:
    """Distributed alignment search: the subspace whose exchange changes the answer most.

    rank   dimensions of the subspace           pos  position patched; None: every position
    steps  optimiser steps (Adam), each on all pairs, since the metric may know the answer of each row
    """

    rank: int = 1
    steps: int = 200
    lr: float = 0.02
    pos: int | None = -1
    seed: int = 0

    def fit(self, model: Model, site: str, base: Tensor, source: Tensor, metric: Metric) -> SubspacePatch:
        """Learn the subspace at `site` (eq. 2) on pairs of prompts.

        base, source  inputs of equal shape, row by row the two versions
        metric        the module's logits (or its output, where that is a tensor) -> one number per row, larger the more
                      the answer of the base prompt is preferred

        Raises:
            ShapeError: pairs of different shape.
            TrainingError: the objective became NaN or infinite.
        """
        if base.shape != source.shape or not len(base):
            raise ShapeError(
                f"base {list(base.shape)} and source {list(source.shape)} prompts, expected equal. Give aligned pairs"
            )
        place = model.site(site)
        noise = generator(self.seed)
        wanted = _read(model, place.name, source, self.pos)
        raw = torch.randn(wanted.shape[-1], self.rank, generator=noise).to(wanted).requires_grad_()
        optimiser = torch.optim.Adam([raw], lr=self.lr)
        losses: list[float] = []
        for _ in track(range(self.steps), label="DAS", unit="step"):
            basis = torch.linalg.qr(raw).Q
            with torch.enable_grad():
                loss = metric(_patched(model, place.name, base, wanted, basis, self.pos)).mean()
            if not torch.isfinite(loss):
                value = float(loss.detach())
                raise TrainingError(f"DAS at {place.name}: the metric became {value}. Look at it, or lower lr")
            # Only the basis is asked for, so that the weights get no gradient.
            (raw.grad,) = torch.autograd.grad(loss, [raw])
            optimiser.step()
            losses.append(float(loss.detach()))
        basis = torch.linalg.qr(raw.detach().double()).Q
        fitted = {**asdict(self), "first": losses[0], "last": losses[-1], "pairs": len(base)}
        return SubspacePatch(
            basis=basis.to(wanted.dtype), pos=self.pos, site=place.name, slug=CARD.slug, fitted=fitted,
            fingerprint=model.fingerprint,
        )  # fmt: skip


def illusion_test(
    model: Model, patch: SubspacePatch, base: Tensor, source: Tensor, metric: Metric, seed: int = 0
) -> Report:
    """Split a subspace at the output weights behind its site and patch each half alone (eq. 3 and 4).

    The report's numbers: fldd of the whole subspace, of its row part and null part (each renormalised), of a random
    subspace and of the whole site; interchange accuracy; how far patching moves the row part beyond its spread on data;
    the verdict, "faithful", "illusion" or "weak".

    Raises:
        InputError: the site is not the input of a linear layer, or the metric is 0 on the base prompts.
    """
    w_out = output_weights(model, patch.sites[0])
    row, null = _split(patch.basis.double(), w_out.double())
    g = torch.randn(patch.basis.shape, generator=generator(seed), dtype=torch.float64)
    halves = {"row": row, "null": null, "random": torch.linalg.qr(g).Q}
    with torch.no_grad():
        wanted, own = (_read(model, patch.sites[0], x, patch.pos) for x in (source, base))
        clean = metric(_output(model(base)))
        after = metric(_run(model, base, patch.edit(wanted)))
        results = {"fldd": _fldd(after, clean)}
        for name, basis in halves.items():
            results[f"fldd_{name}"] = 0.0
            if basis.shape[1]:
                part = patch.replace(basis=basis.to(patch.basis.dtype))
                results[f"fldd_{name}"] = _fldd(metric(_run(model, base, part.edit(wanted))), clean)
        whole = Replace(patch.sites[0], wanted)
        results["fldd_whole_site"] = _fldd(
            metric(_run(model, base, whole if patch.pos is None else whole.at(pos=patch.pos))), clean
        )
    results["accuracy"] = float((after < 0).float().mean())
    if row.shape[1]:
        spread = _spread(own, wanted, patch.basis.double(), row)
        results |= {"row spread on data": spread[0], "row spread after patching": spread[1]}
    verdict = "faithful" if results["fldd_row"] >= 0.5 * results["fldd"] else "illusion"
    verdict = "weak" if results["fldd"] < WEAK else verdict
    names = ["fldd", "fldd_row", "fldd_null", "fldd_random", "fldd_whole_site"]
    labels = ["subspace", "row part", "null part", "random", "whole site"]
    plot = plots.bars("Effect of patching", labels, [results[n] for n in names], y_label="FLDD")
    return Report(
        title="Is the subspace real?", site=patch.site, slug=CARD.slug, numbers={**results, "verdict": verdict},
        plots={"effect": plot}, fingerprint=patch.fingerprint, fitted={"pairs": len(base), "seed": seed},
    )  # fmt: skip


def rank_one_edit(
    w_out: Float[Tensor, "out D"], v: Float[Tensor, " D"], h: Float[Tensor, " D"], source: Float[Tensor, " D"]
) -> Float[Tensor, "out D"]:
    """The change of the output weights that does on input h what patching the unit direction v does (eq. 5)."""
    if not w_out.shape[-1] == len(v) == len(h) == len(source):
        raise ShapeError(f"widths {w_out.shape[-1]}, {len(v)}, {len(h)}, {len(source)} differ. Read one site for all")
    return torch.outer(w_out @ v, h) * ((source - h) @ v) / h.square().sum()


def output_weights(model: Model, site: str) -> Float[Tensor, "out D"]:
    """The weights that read a site: those of the linear layer whose input it is. Raises InputError for another site."""
    path, _, side = model.site(site).path.partition(":")
    module: Any = model.module.get_submodule(path)
    weight = getattr(module, "weight", None)
    if not side.startswith("in") or not isinstance(weight, Tensor) or weight.ndim != 2:
        raise InputError(
            f"{site} is not the input of a linear layer, so there is no output map to split at: expected a site like "
            "layers.3.mlp.hidden. In the residual stream every direction is read directly; compare effects instead"
        )
    return (weight if isinstance(module, torch.nn.Linear) else weight.T).detach()


def _split(basis: Float[Tensor, "D K"], w_out: Float[Tensor, "out D"]) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of the parts of the subspace in the row space and in the kernel of W_out (eq. 4)."""
    _, s, vh = torch.linalg.svd(w_out, full_matrices=False)
    rows = vh[s > 1e-6 * s[0]]
    inside = rows.T @ (rows @ basis)
    return _orthonormal(inside), _orthonormal(basis - inside)


def _orthonormal(x: Float[Tensor, "D K"]) -> Float[Tensor, "D M"]:
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    return u[:, s > 1e-6]


def _spread(own: Tensor, source: Tensor, basis: Tensor, row: Tensor) -> tuple[float, float]:
    """Standard deviation of the row part's coordinates on data, and behind the patch."""
    h, other = own.double().flatten(0, -2), source.double().flatten(0, -2)
    patched = h + (other - h) @ basis @ basis.T
    return float(((h - h.mean(0)) @ row).square().mean().sqrt()), float(
        ((patched - h.mean(0)) @ row).square().mean().sqrt()
    )


def _fldd(patched: Tensor, clean: Tensor) -> float:
    if float(clean.mean().abs()) < 1e-9:
        raise InputError("the metric is 0 on the base prompts, so no share of it can be lost. Choose another metric")
    return 1.0 - float(patched.mean() / clean.mean())  # eq. 3


def _patched(model: Model, site: str, base: Tensor, source: Tensor, basis: Tensor, pos: int | None) -> Tensor:
    target = source if pos is None or source.ndim > 2 or base.ndim < 2 else source[:, None]

    def exchange(h: Tensor) -> Tensor:
        other = target if h.ndim == target.ndim else target.reshape(h.shape[0], *[1] * (h.ndim - 2), h.shape[-1])
        return h + ((other - h) @ basis) @ basis.T  # eq. 1

    edit = Apply(site, exchange)
    return _run(model, base, edit if pos is None else edit.at(pos=pos))


def _read(model: Model, site: str, inputs: Tensor, pos: int | None) -> Tensor:
    with torch.no_grad():
        place = model.site(site)
        return model.run(inputs, read=[place if pos is None else place.at(pos=pos)]).acts[site]


def _run(model: Model, inputs: Tensor, edit: Any) -> Tensor:
    with model.edit(edit):
        return _output(model(inputs))


def _output(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits
