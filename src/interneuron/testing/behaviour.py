"""Checks of what a method does: determinism, an untouched model, saving, neutral edits, awkward tensors."""

from __future__ import annotations

import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from interneuron.artifacts import load_artifact
from interneuron.core.errors import InterneuronError
from interneuron.testing.state import snapshot
from interneuron.testing.statements import sections
from interneuron.testing.subject import Subject

HALF_TOLERANCE = 0.05
PROMPT_TOKENS = 6


class InjectedError(Exception):
    """Raised by the suite in the middle of a forward pass."""


def same_seed_gives_same_bits(subject: Subject) -> None:
    """Two runs of the example agree in every bit."""
    first, second = subject.example.replace(fitted={}), subject.run_example().replace(fitted={})
    assert first.same_bits(second), f"two runs of the example differ: {first} and {second}"


def leaves_everything_as_it_was(subject: Subject) -> None:
    """Weights, modes, hooks, gradients and the global generators are the same before and after the example."""
    module = subject.model.module if subject.takes_model else None
    before = snapshot(module)
    subject.run_example()
    changed = before.differences(snapshot(module))
    assert not changed, "the example left changes behind: " + "; ".join(changed)


def leaves_no_hook_after_an_error(subject: Subject) -> None:
    """An exception in the middle of a forward pass comes out as it is and leaves no hook and no change."""
    if not subject.takes_model:
        return
    leaves = [module for module in subject.model.module.modules() if not list(module.children())]
    calls = 0
    fail_at = 0  # a count no call reaches: the first run only counts

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise InjectedError

    subject.example  # noqa: B018  (so that one-time work of the model is behind us)
    before = snapshot(subject.model.module)
    handles = [leaf.register_forward_pre_hook(fail) for leaf in leaves]
    try:
        subject.run_example()
        assert calls, "the example takes a model and never ran it"
        calls, fail_at = 0, calls // 2 + 1
        subject.run_example()
    except InjectedError:
        raised = True
    else:
        raised = False
    finally:
        for handle in handles:
            handle.remove()
    assert raised, "an exception inside the model was swallowed"
    changed = [line for line in before.differences(snapshot(subject.model.module)) if "rng" not in line]
    assert not changed, f"an exception left changes behind: {'; '.join(changed)}"


def survives_saving(subject: Subject) -> None:
    """Save and load give the same artifact, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        path = subject.example.save(Path(folder) / "artifact")
        loaded = load_artifact(path)
    assert subject.example.same_bits(loaded), f"loading gave {loaded}, saved was {subject.example}"


def edit_of_strength_zero_changes_nothing(subject: Subject) -> None:
    """The artifact's edit with strength 0 leaves the model's output bit-identical."""
    make = getattr(subject.example, "edit", None)
    if make is None or not subject.takes_model:
        return
    model = subject.model
    ids = torch.arange(1, 1 + PROMPT_TOKENS)[None]
    with torch.no_grad():
        plain = model(ids)
        with model.edit(0.0 * make()):
            edited = model(ids)
    assert torch.equal(_first(plain), _first(edited)), "an edit of strength 0 changed the output"


def use_lines_run(subject: Subject) -> None:
    """The lines under Use run as they stand, with the organism in place of the model they load."""
    run_use_lines(subject, lambda: subject.model)


def use_lines(subject: Subject) -> list[str]:
    """The lines of code under Use, without the import of the package."""
    code = textwrap.dedent(sections(subject)["Use"].strip("\n"))
    return [line for line in code.splitlines() if line.strip() and not line.startswith("import interneuron")]


def run_use_lines(subject: Subject, model: Callable[[], Any]) -> None:
    """Run the lines under Use with what `model()` returns in place of every model they load."""
    lines = use_lines(subject)
    assert len(lines) <= 4, f"Use has {len(lines)} lines, expected three"
    import interneuron

    stand_in = SimpleNamespace()
    stand_in.__dict__.update({name: getattr(interneuron, name) for name in _names_used("\n".join(lines))})

    def load(*_: Any, **__: Any) -> Any:
        return model()

    stand_in.load = load
    exec(compile("\n".join(lines), f"<Use of {subject.card.slug}>", "exec"), {"inn": stand_in, "torch": torch})


def inputs_are_not_changed(subject: Subject) -> None:
    """Tensors given to the method hold the same bits afterwards, and a second call gives the same result."""
    tensors = subject.tensors()
    copies = {name: t.clone() for name, t in tensors.items()}
    first, second = subject.apply(tensors), subject.apply(tensors)
    changed = [name for name in tensors if not torch.equal(tensors[name], copies[name])]
    assert not changed, f"the method wrote into its input {', '.join(changed)}"
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    assert not differing, f"two calls on the same tensors differ in {', '.join(differing)}"


def layout_does_not_matter(subject: Subject) -> None:
    """Non-contiguous tensors give what contiguous ones give."""
    tensors = subject.tensors()
    strided = {name: _strided(t) for name, t in tensors.items()}
    _assert_close(subject.apply(strided), subject.apply(tensors), 1e-5, "non-contiguous tensors")


def few_rows_work_or_teach(subject: Subject) -> None:
    """One row and no row give finite results or an error of the library."""
    for n in (1, 0):
        result = _answer(subject, subject.tensors(n=n), f"{n} rows")
        for name, value in (result or {}).items():
            assert torch.isfinite(value.double()).all(), f"{n} rows: {name} is not finite and no error was raised"


def nan_is_never_hidden(subject: Subject) -> None:
    """A NaN in any input gives an error of the library, or shows in the result."""
    for name in _floats(subject.tensors()):
        tensors = subject.tensors()
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[0] = float("nan")
        result = _answer(subject, tensors, f"NaN in {name}")
        if result is not None:
            shown = any(not torch.isfinite(value.double()).all() for value in result.values())
            assert shown, f"NaN in {name} vanished: the result is finite and no error was raised"


def wrong_width_teaches(subject: Subject) -> None:
    """Two inputs of different width give an error of the library."""
    tensors = subject.tensors()
    wide = {name: t for name, t in subject.tensors(width=len("unlikely width")).items() if t.dim() > 1}
    if len(wide) < 2:
        return
    name = next(iter(wide))
    result = _answer(subject, {**tensors, name: wide[name]}, f"{name} of another width")
    assert result is None, f"{name} of another width was accepted"


def other_dtypes_work_or_teach(subject: Subject) -> None:
    """float64, half precision and integers give the float32 result to their precision, or an error of the library."""
    reference = subject.apply(subject.tensors())
    for dtype, tolerance in ((torch.float64, 1e-4), (torch.bfloat16, HALF_TOLERANCE), (torch.float16, HALF_TOLERANCE)):
        given = subject.tensors()
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in given.items()}
        result = _answer(subject, tensors, str(dtype))
        if result is not None:
            _assert_close(result, reference, tolerance, str(dtype))


CHECKS: tuple[Callable[[Subject], None], ...] = (
    same_seed_gives_same_bits,
    leaves_everything_as_it_was,
    leaves_no_hook_after_an_error,
    survives_saving,
    edit_of_strength_zero_changes_nothing,
    use_lines_run,
)

TENSOR_CHECKS: tuple[Callable[[Subject], None], ...] = (
    inputs_are_not_changed,
    layout_does_not_matter,
    few_rows_work_or_teach,
    nan_is_never_hidden,
    wrong_width_teaches,
    other_dtypes_work_or_teach,
)


def _answer(subject: Subject, tensors: dict[str, Tensor], what: str) -> dict[str, Tensor] | None:
    """The result, or None when the library refused with one of its own errors in one line."""
    try:
        return subject.apply(tensors)
    except InterneuronError as error:
        several = "\n" in str(error)
    except Exception as error:
        raise AssertionError(
            f"{what}: raised {type(error).__name__} ({str(error)[:80]!r}); expected an answer or an InterneuronError"
        ) from error
    assert not several, f"{what}: the error has several lines; errors are one line"
    return None


def _assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float, what: str) -> None:
    assert got.keys() == wanted.keys(), f"{what}: results are {sorted(got)}, expected {sorted(wanted)}"
    for name, value in wanted.items():
        error = (got[name].double() - value.double()).norm() / value.double().norm().clamp_min(1e-12)
        assert error <= tolerance, f"{what}: {name} differs by {float(error):.2g} of its norm, allowed {tolerance}"


def _floats(tensors: dict[str, Tensor]) -> list[str]:
    return [name for name, t in tensors.items() if t.is_floating_point() and t.numel()]


def _strided(tensor: Tensor) -> Tensor:
    if tensor.dim() == 0:
        return tensor
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def _first(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else output[0]


def _names_used(code: str) -> set[str]:
    import re

    return set(re.findall(r"\binn\.([A-Za-z_]+)", code)) - {"load"}
