"""Steps of a tour: each calls the library and turns what came back into one section of the report."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

from interneuron.artifacts import plots
from interneuron.cli.report_page import Section
from interneuron.cli.report_svg import number
from interneuron.cli.tour_material import token_text

if TYPE_CHECKING:
    from torch import Tensor

    from interneuron.cli.tour_material import Question
    from interneuron.model.model import Model
    from interneuron.parts.activity import Activity


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much a tour measures: less on models with many parameters, so that it stays a matter of a minute or two.

    windows of `length` tokens of text, `controls` random directions, `doses` among which strength is chosen, at most
    `layers` layers, `rows` prompts for patching, and `tokens` of text for a dictionary of features.
    """

    windows: int
    length: int
    controls: int
    doses: tuple[float, ...]
    layers: int
    rows: int
    tokens: int

    @staticmethod
    def of(n_parameters: int) -> Budget:
        """The budget for a model of this size."""
        if n_parameters < 30e6:
            return Budget(6, 128, 6, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), 64, 8, 60_000)
        return Budget(3, 64, 4, (0.1, 0.2, 0.3, 0.4, 0.6, 0.8), 6, 4, 8_000)


def spread(n_layers: int, at_most: int) -> list[int]:
    """At most so many layers, evenly spread, first and last included.

    >>> spread(4, 6), spread(24, 4)
    ([0, 1, 2, 3], [0, 8, 15, 23])
    """
    if n_layers <= at_most:
        return list(range(n_layers))
    return sorted({round(k * (n_layers - 1) / (at_most - 1)) for k in range(at_most)})


def self_check(model: Model) -> Section:
    """Step 1: the identities every layer must satisfy."""
    errors = {name: error for name, error in model.check().items() if math.isfinite(error)}
    worst = max(errors.values(), default=float("nan"))
    rows: list[dict[str, Any]] = []
    for name, error in errors.items():
        layer, _, equation = name.partition(": ")
        rows.append({"layer": layer, "identity": f"`{equation}`", "largest relative error": error})
    n = sum(p.numel() for p in model.module.parameters())
    finding = (
        f"All **{len(errors)}** identities hold. The worst relative error is **{worst:.1e}**, the rounding of "
        f"{str(model.dtype).removeprefix('torch.')} arithmetic."
        if errors
        else "No family maps this architecture, so there is nothing to check: its sites are module paths."
    )
    return Section(
        title="Load and self-check",
        shows="Before any number is trusted, the names are tested: what attention and the MLP write must add up to "
        "what "
        "the layer passes on. A name that points at the wrong tensor would break the sum and stop the tour here.",
        finding=finding,
        numbers={"identities": len(errors), "worst_relative_error": worst, "parameters": n, "family": model.family},
        tables={"Identities": rows},
    )


MEANING = {
    "embed": "token embeddings", "resid_pre": "stream entering the layer",
    "resid_mid": "stream between attention and MLP", "resid_post": "stream leaving the layer",
    "norm1": "input of attention, normalised", "norm2": "input of the MLP, normalised",
    "attn.q": "queries, as compared", "attn.k": "keys, as compared", "attn.v": "values, as mixed",
    "attn.q_proj": "queries before position is mixed in", "attn.k_proj": "keys before position is mixed in",
    "attn.v_proj": "values as projected", "attn.scores": "attention before the softmax",
    "attn.pattern": "attention weights",
    "attn.z": "what each head gathered", "attn.out": "raw output of attention",
    "attn.contribution": "what attention adds to the stream", "mlp.pre": "MLP before the nonlinearity",
    "mlp.gate": "MLP gate before the nonlinearity", "mlp.hidden": "neurons, input of the down projection",
    "mlp.out": "raw output of the MLP", "mlp.contribution": "what the MLP adds to the stream",
    "final_norm": "stream after the last normalisation", "logits": "scores of the next token",
}  # fmt: skip


def site_rows(model: Model, pattern: str = "*") -> list[dict[str, Any]]:
    """Sites in groups that differ in the layer alone: name with N, layers, axes, shape once seen, meaning."""
    groups: dict[str, list[Any]] = {}
    for site in model.sites(pattern):
        groups.setdefault(re.sub(r"layers\.\d+\.", "layers.N.", site.name), []).append(site)
    rows = []
    for name, sites in groups.items():
        seen = next((site.shape for site in sites if site.shape), None)
        suffix = name.split("layers.N.")[-1]
        rows.append(
            {
                "site": f"`{name}`",
                "how many": len(sites),
                "axes": ", ".join(sites[0].axes),
                "shape here": " × ".join(str(n) for n in seen) if seen else "",
                "what it is": MEANING.get(suffix, ""),
            }
        )
    return rows


def list_sites(model: Model, tokens: Tensor) -> Section:
    """Step 2: every canonical name, with the shape it has on one window of text."""
    import torch

    with torch.no_grad():
        model.run(tokens[:1], read="*")
    rows = site_rows(model)
    n = sum(row["how many"] for row in rows)
    return Section(
        title="Sites: where one can read and write",
        shows="Every tensor that flows through the network has a name, the same in every architecture. N stands for "
        "the "
        "layer; the shape is that of one window of text.",
        finding=f"**{n} sites** in {model.n_layers} layers were read in one pass. Any module path works as a name too.",
        numbers={"sites": n},
        tables={"Sites": rows},
        fold=60,
    )


def read_norms(model: Model, activity: Activity, n_tokens: int) -> Section:
    """Step 3: lengths of the stream and of what is written to it."""
    layers = [layer.layer for layer in activity.layers]
    series: dict[str, list[Any]] = {"residual stream": [layer.stream_norm for layer in activity.layers]}
    series["stream at the first token"] = [layer.first_norm for layer in activity.layers]
    for name, key in (("added by attention", "attn_norm"), ("added by the MLP", "mlp_norm")):
        if all(getattr(layer, key) is not None for layer in activity.layers):
            series[name] = [getattr(layer, key) for layer in activity.layers]
    plot = plots.lines("Length of activations by layer", layers, series, x_label="layer", y_label="mean length")
    plot["ticks"] = [str(layer) for layer in layers]
    first, last = activity.layers[0].stream_norm, activity.layers[-1].stream_norm
    return Section(
        title="Read: how the signal grows",
        shows=f"Mean Euclidean length of the vectors on {n_tokens:,} tokens of text: the stream that leaves each "
        "layer, and "
        "what attention and the MLP add to it.",
        reading="The stream is a running sum, so it usually gets longer. A layer that adds little compared with the "
        "stream "
        "changes little. A first token far longer than the rest often serves as a resting place for attention.",
        finding=f"The stream grows from length **{number(first)}** after the first layer to **{number(last)}** after "
        "the last.",
        numbers={"stream_norm_first_layer": first, "stream_norm_last_layer": last},
        plots=[[plot]],
    )


def patching(model: Model, question: Question, budget: Budget) -> Section:
    """Step 6: where the difference between two prompts lives, by layer and position."""
    from interneuron.parts.patching import logit_difference, patch_grid

    layers = spread(model.n_layers, budget.layers)
    rows = slice(0, budget.rows)
    metric = logit_difference(question.answer[rows], question.wrong[rows])
    grids = {}
    for part in ("resid_post", "attn.contribution", "mlp.contribution"):
        names = [f"layers.{i}.{part}" for i in layers]
        if all(_has(model, name) for name in names):
            grids[part] = patch_grid(model, question.clean[rows], question.corrupt[rows], metric, names)
    stream = grids["resid_post"]
    labels = [str(i) for i in layers]
    titles = {
        "resid_post": "Residual stream",
        "attn.contribution": "What attention adds",
        "mlp.contribution": "What the MLP adds",
    }
    maps = {part: _map(titles[part], grid.recovery, labels, question.labels) for part, grid in grids.items()}
    control = _map("Control: a random change of the same size", stream.control, labels, question.labels)
    path = [int(row.argmax()) for row in stream.recovery]
    where = [
        {"layer": i, "position of the largest recovery": question.labels[p], "recovery": float(stream.recovery[k, p]),
         "random change there": float(stream.control[k, p])}
        for k, (i, p) in enumerate(zip(layers, path, strict=True))
    ]  # fmt: skip
    moved = next((layers[k] for k, p in enumerate(path) if p == len(question.labels) - 1), layers[-1])
    before = max((row for row in where if row["layer"] < moved), key=lambda r: r["recovery"], default=where[0])
    place = f"“{before['position of the largest recovery']}” after layer {before['layer']}"
    then = f"By layer **{moved}** it has moved to the last token. " if before["layer"] < moved else ""
    caveat = (
        ""
        if stream.clean > 0 > stream.corrupt
        else " The model does not answer both correctly, so read the map with care."
    )
    return Section(
        title="Locate an effect",
        shows=f"{question.title} Clean: “{question.examples[0]}”. Corrupt: “{question.examples[1]}”. While the "
        "corrupt prompt "
        f"runs, one activation at a time is replaced by the clean one; the figure shows how much of the clean answer "
        f"(**{question.answers[0]}** against **{question.answers[1]}**) comes back. Mean over "
        f"{len(question.clean[rows])} "
        f"prompt{'s' if len(question.clean[rows]) != 1 else ''} ({question.source}; * marks a word that varies).",
        reading="Numbers are per cent: 0 means that place carries nothing of the difference, 100 all of it. Start at "
        "the "
        "bottom row, at the word that differs, and follow the colour up to the last token, where the answer is given. "
        "The control moves each activation equally far in a random direction; it recovers something only where "
        "blurring the "
        "corrupt word already helps.",
        finding=f"The difference sits at {place}: putting that one activation back restores "
        f"**{number(before['recovery'], True)}** of the answer (a random change as large: "
        f"{number(before['random change there'], True)}). {then}The answer's lead is {stream.clean:+.1f} logits on "
        "clean and "
        f"{stream.corrupt:+.1f} on corrupt prompts.{caveat}",
        numbers={"clean": stream.clean, "corrupt": stream.corrupt, "peak_recovery": before["recovery"],
                 "peak_layer": before["layer"], "peak_position": before["position of the largest recovery"],
                 "control_at_peak": before["random change there"], "moved_to_last_at_layer": moved},
        plots=[[maps.pop("resid_post")], *([list(maps.values())] if maps else []), [control]],
        tables={"Where the difference is": where},
    )  # fmt: skip


def _has(model: Model, name: str) -> bool:
    from interneuron.core.errors import SiteNotFound

    try:
        return bool(model.sites(name))
    except SiteNotFound:
        return False


def _map(title: str, values: Tensor, rows: list[str], columns: list[str]) -> dict[str, Any]:
    plot = plots.heatmap(title, values, [f"layer {row}" for row in rows], columns, x_label="token", y_label="")
    return plot | {"percent": True, "high": 1.0}


def sparsity_and_outliers(model: Model, activity: Activity, tokens: Tensor, source: str) -> Section:
    """Step 7: how sparse the MLPs are, the largest activations, and where attention rests."""
    from interneuron.parts.activity import NORMAL_FOR_90, NORMAL_NEAR_ZERO

    labels = [str(layer.layer) for layer in activity.layers]
    figures: list[list[dict[str, Any]]] = []
    largest = max(activity.layers, key=lambda layer: layer.ratio)
    numbers: dict[str, Any] = {"largest_over_median": largest.ratio, "largest_layer": largest.layer}
    token = _token_at(model, tokens, largest)
    words = [
        f"The largest activation is **{number(largest.ratio)} times** the median one (layer {largest.layer}, channel "
        f"{largest.channel}, token “{token}” at position {largest.position})."
    ]
    if all(layer.for_90 is not None for layer in activity.layers):
        near, need = ([getattr(layer, key) for layer in activity.layers] for key in ("near_zero", "for_90"))
        a = plots.bars("MLP values near zero", labels, near, x_label="layer", y_label="share of values")
        b = plots.bars("Neurons that carry 90 % of a token", labels, need, x_label="layer", y_label="share of neurons")
        a |= {"percent": True, "reference": [NORMAL_NEAR_ZERO, "bell curve: 8 %"]}
        b |= {"percent": True, "reference": [NORMAL_FOR_90, "bell curve: 65 %"], "high": max(*need, NORMAL_FOR_90)}
        figures.append([a, b])
        numbers |= {"near_zero_mean": sum(near) / len(near), "neurons_for_90_mean": sum(need) / len(need)}
        words.insert(0, f"On average **{number(sum(near) / len(near), True)}** of MLP values are near zero and "
                     f"**{number(sum(need) / len(need), True)}** of the neurons carry 90 % of a token's activity."
                     )  # fmt: skip
    ratio = plots.bars(
        "Largest over median activation",
        labels,
        [layer.ratio for layer in activity.layers],
        x_label="layer",
        y_label="ratio",
    )
    figures.append([ratio])
    if activity.sink is not None:
        figures[-1].append(_sink_map(activity.sink, labels))
        top = float(activity.sink.max())
        numbers |= {"sink_max": top, "sink_mean": float(activity.sink.mean()), "sink_if_even": activity.even}
        words.append(f"The strongest sink head sends **{number(top, True)}** of its attention to the first token (even "
                     f"attention: {number(activity.even, True)}).")  # fmt: skip
    rows = [
        {"layer": layer.layer, "largest |x|": layer.largest, "median |x|": layer.median, "ratio": layer.ratio,
         "token": _token_at(model, tokens, layer), "position": layer.position, "channel": layer.channel}
        for layer in activity.layers
    ]  # fmt: skip
    return Section(
        title="Sparsity, massive activations, attention sinks",
        shows=f"{tokens.numel():,} tokens of {source}. Top: how many MLP hidden values are near zero (below a tenth "
        "of the "
        "layer's root mean square), and how few neurons add up to 90 % of a token's activity. Bottom: outliers of the "
        "residual stream, and how much attention rests on the first token.",
        reading="The dashed lines are what normally distributed numbers would give; more near zero and fewer neurons "
        "mean a "
        "sparser layer, the room that pruning methods use. Ratios of 100 and more are called massive activations. In "
        "the map, "
        "100 is a head that looks at the first token only.",
        finding=" ".join(words),
        numbers=numbers,
        plots=figures,
        tables={"Largest activations of the residual stream": rows},
    )


def _sink_map(sink: Tensor, labels: list[str]) -> dict[str, Any]:
    """Attention to the first token, layer by head."""
    heads = [str(h) for h in range(sink.shape[1])]
    plot = plots.heatmap(
        "Attention paid to the first token", sink, [f"layer {i}" for i in labels], heads, x_label="head", y_label=""
    )
    return plot | {"percent": True, "high": 1.0}


def _token_at(model: Model, tokens: Tensor, layer: Any) -> str:
    return token_text(model, int(tokens[layer.row, layer.position]))
