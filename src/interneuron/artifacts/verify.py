"""One artifact, many runtimes: the gap between the logits each of them gives, measured and reported.

    report = direction.verify(model, "The cat sat", runtimes=["eager", "sdpa", "generate", "file", "gguf"])
    rich.print(report.table("runtimes"))

The reference is the model as it stands, with the artifact's edit, in one pass without a cache. A gap is only worth
something beside what the artifact itself does, so the report has both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interneuron.artifacts import formats
from interneuron.artifacts.dictionary import Dictionary
from interneuron.artifacts.direction import Direction
from interneuron.artifacts.load import load_artifact
from interneuron.artifacts.report import Report
from interneuron.core.errors import InputError, InterneuronError, did_you_mean

ATTENTION = ("eager", "sdpa")
BUILTIN = (*ATTENTION, "generate", "file")
TOLERANCE = 1e-3
SUFFIX = {"gguf": ".gguf", "lm_eval": ".pt", "vllm_lens": ".json", "transformer_lens": ".json", "easysteer": ".json",
          "circuit_tracer": ".safetensors"}  # fmt: skip


def verify(
    artifact: Any,
    model: Any,
    inputs: Any,
    runtimes: Sequence[str] = BUILTIN,
    edit: Any = None,
    alpha: float = 1.0,
    new_tokens: int = 4,
    tolerance: float = TOLERANCE,
) -> Report:
    """Run `artifact` on `model` in each runtime and compare logits.

    runtimes  "eager", "sdpa"  the attention implementation of the model
              "generate"       greedy generation with the KV cache, each step against one pass over the same tokens
              "file"           saved by interneuron and loaded again
              a format's name  exported to it and imported again ("gguf", "saelens", ...)
    edit      what the artifact does; by default a direction is added alpha times, and a dictionary's reconstruction
              replaces its target
    tolerance largest gap between logits that passes

    Returns a report with the table "runtimes" (largest and mean gap, verdict) and the numbers `effect` (largest change
    of a logit by the artifact itself) and `passed`.

    Raises InputError: unknown runtime, or an artifact that has no edit.
    """
    known = [*BUILTIN, *formats.all_formats()]
    for name in runtimes:
        if name not in known:
            raise InputError(
                f"runtime {name!r} is unknown, expected one of {', '.join(known)}.{did_you_mean(name, known)}"
            )
    make = _maker(artifact, edit, alpha)
    with torch.no_grad():
        plain = model(inputs).logits
        reference = _logits(model, make(artifact), inputs)
        rows = [
            _row(name, _runtime(name, artifact, model, inputs, make, new_tokens), reference, tolerance)
            for name in runtimes
        ]
    effect = float((reference - plain).abs().max())
    passed = all(row["verdict"] == "same" for row in rows)
    return Report(
        title="Parity of runtimes",
        numbers={"effect": effect, "passed": passed, "tolerance": tolerance},
        tables={"runtimes": rows},
        notes=f"Gaps between logits; the artifact itself moves a logit by up to {effect:.4g}.",
    )


def _maker(artifact: Any, edit: Any, alpha: float) -> Callable[[Any], Any]:
    """From an artifact (this one, or itself after a round trip) to the edit that is compared."""
    if edit is not None:
        return edit if callable(edit) and not hasattr(edit, "site") else lambda _: edit
    if isinstance(artifact, Direction):
        return lambda value: value.edit(alpha) if isinstance(value, Direction) else alpha * value
    if isinstance(artifact, Dictionary) and not artifact.target:
        from interneuron.model.edits import Apply

        return lambda value: Apply(value.site, lambda x: value.reconstruct(x).reshape(x.shape).to(x.dtype))
    raise InputError(
        f"a {type(artifact).__name__} has no edit of its own to compare. Pass edit=, a function of the artifact."
    )


def _logits(model: Any, edit: Any, inputs: Any) -> Tensor:
    with model.edit(edit):
        return model(inputs).logits


def _runtime(
    name: str, artifact: Any, model: Any, inputs: Any, make: Callable[[Any], Any], new_tokens: int
) -> Tensor | tuple[Tensor, Tensor] | str:
    """Logits to compare with the reference, or a pair of tensors to compare with each other, or why there are none."""
    try:
        if name in ATTENTION:
            with _attention(model.module, name):
                return _logits(model, make(artifact), inputs)
        if name == "generate":
            return _generated(model, make(artifact), inputs, new_tokens)
        with tempfile.TemporaryDirectory() as folder:
            return _logits(model, make(_round_trip(name, artifact, model, Path(folder))), inputs)
    except (InterneuronError, ValueError, ImportError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


@contextmanager
def _attention(module: Any, name: str) -> Iterator[None]:
    """The module with another attention implementation, put back afterwards."""
    config = getattr(module, "config", None)
    before = getattr(config, "_attn_implementation", None)
    if before is None or not hasattr(module, "set_attn_implementation"):
        raise InputError(f"{type(module).__name__} has no choice of attention implementation.")
    module.set_attn_implementation(name)
    try:
        yield
    finally:
        module.set_attn_implementation(before)


def _generated(model: Any, edit: Any, inputs: Any, new_tokens: int) -> tuple[Tensor, Tensor]:
    """Logits of each step of cached generation, and those of one pass over the finished tokens, both edited."""
    if new_tokens < 1:
        raise InputError(f"new_tokens={new_tokens}, expected at least 1.")
    named = model.prepare(inputs, padding_side="left")[1]
    tokens = {key: value for key, value in named.items() if key in ("input_ids", "attention_mask")}
    with model.edit(edit):
        out = model.generate(
            tokens, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, use_cache=True,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    steps = torch.stack(out.logits, 1)
    mask = tokens.get("attention_mask")
    whole = {"input_ids": out.sequences}
    if mask is not None:
        whole["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), out.sequences.shape[1] - mask.shape[1])], 1)
    once = _logits(model, edit, whole)
    return steps, once[:, -steps.shape[1] - 1 : -1]


def _round_trip(name: str, artifact: Any, model: Any, folder: Path) -> Any:
    if name == "file":
        return load_artifact(artifact.save(folder / "artifact"))
    path = folder / (f"export{SUFFIX[name]}" if name in SUFFIX else "export")
    if name == "sparsify":
        path = folder / str(artifact.site).replace(".resid_post", "")
    options = {"model": model} if name == "lm_eval" else {}
    return formats.read(formats.write(artifact, path, name, **options), name).value


def _row(name: str, found: Tensor | tuple[Tensor, Tensor] | str, reference: Tensor, tolerance: float) -> dict[str, Any]:
    if isinstance(found, str):
        return {"runtime": name, "largest": None, "mean": None, "verdict": "not run", "why": found}
    a, b = found if isinstance(found, tuple) else (found, reference)
    gap = (a.double() - b.double()).abs()
    largest = float(gap.max())
    return {
        "runtime": name, "largest": largest, "mean": float(gap.mean()),
        "verdict": "same" if largest <= tolerance else "differs",
        "why": "",
    }  # fmt: skip
