"""`interneuron tour`: read, steer and patch a language model in one go; ends with one page, and its numbers as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from interneuron.artifacts import Report
    from interneuron.cli.report_page import Section
    from interneuron.model.model import Model


def tour(
    model: Annotated[str, typer.Option(help="A shipped model, a local folder or a Hugging Face id.")] = "lm",
    text: Annotated[
        Path | None, typer.Option(help="Plain text on which costs and statistics are measured (default: built in).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.html and report.json.")] = Path("tour"),
) -> None:
    """Read, steer and patch a language model, with controls; ends with one self-contained report.html.

    A shipped model is toured on data whose truth is known. Any other causal language model is toured on built-in
    English sentences; --text replaces the text on which costs and statistics are measured, not the contrast pairs.
    """
    from rich.console import Console

    console = Console(highlight=False)
    page, report = take_tour(model, text, console)
    target = write(page, report, out)
    console.print(f"\n[bold]report[/]  {target}\n[bold]numbers[/] {out / 'report.json'}")


def take_tour(name: str, text: Path | None, console: Console) -> tuple[str, Report]:
    """Run all steps; the page as HTML and the numbers as a Report.

    Raises InputError for a model that is no causal language model, or a text that cannot be read.
    """
    from interneuron.cli import tour_direction as towards
    from interneuron.cli import tour_methods as methods
    from interneuron.cli import tour_steps as steps
    from interneuron.parts.activity import activity

    started = time.monotonic()
    sections: list[Section] = []
    step = _narrator(console)
    with step("load and self-check"):
        model = open_model(name)
        sections.append(steps.self_check(model))
        budget = steps.Budget.of(sum(p.numel() for p in model.module.parameters()))
        material = material_for(model, text, budget)
    step.note(sections[-1])
    with step("sites"):
        sections.append(steps.list_sites(model, material.test))
    step.note(sections[-1])
    with step("read"):
        measured = activity(model, material.test)
        sections.append(steps.read_norms(model, measured, material.test.numel()))
    step.note(sections[-1])
    with step("direction"):
        found = towards.find_direction(model, material, budget)
        sections.append(found.section)
    step.note(sections[-1])
    with step("steer"):
        sections.append(towards.steering(model, material, found, budget))
    step.note(sections[-1])
    with step("locate"):
        sections.append(steps.patching(model, material.question, budget))
    step.note(sections[-1])
    with step("sparsity and outliers"):
        sections.append(steps.sparsity_and_outliers(model, measured, material.test, material.text_source))
    step.note(sections[-1])
    for key, title, run, given in (
        ("estimate", "The same effect, estimated", methods.relevance, (model, material.question, budget)),
        ("sparse features", "Sparse features", methods.features, (model, material, budget)),
        ("sparse decoding", "Sparse decoding", methods.sparse_decoding, (model, material, budget)),
    ):
        with step(key):
            sections.append(methods.attempt(run, title, *given))
        step.note(sections[-1])
    seconds = time.monotonic() - started
    return _page(name, model, sections, text, seconds), _report(name, model, sections, seconds)


def open_model(name: str) -> Model:
    """The model by name, quietly; refuses what is no causal language model with a tokenizer and mapped layers."""
    from transformers.utils import logging

    from interneuron.core.errors import InputError
    from interneuron.loading import load

    logging.disable_progress_bar()  # the bar of a model that loads in a second only clutters the output
    model = load(name)
    fits = model.tokenizer is not None and callable(getattr(model.module, "generate", None))
    if not fits or model.family is None or getattr(model.module.config, "is_encoder_decoder", False):
        raise InputError(
            f"{name!r} is {type(model.module).__name__}: this command needs a causal language model with a tokenizer, "
            "of "
            "an architecture that has canonical sites. `interneuron sites` lists what any model has."
        )
    return model


def material_for(model: Model, text: Path | None, budget: Any) -> Any:
    """Texts and questions for this model: of its own world when it has one, built-in English otherwise."""
    from interneuron.cli import tour_material, tour_world

    if tour_world.speaks_tinyworld(model):
        return tour_world.tinyworld(model, text, budget.windows, budget.length)
    return tour_material.generic(model, text, budget.windows, budget.length)


class _narrator:
    """Prints one line per step: its name, its result and its seconds."""

    def __init__(self, console: Console) -> None:
        self.console, self.count = console, 0
        self.line = ""

    @contextmanager
    def __call__(self, title: str) -> Iterator[None]:
        self.count += 1
        began = time.monotonic()
        with self.console.status(f"{self.count} {title} ..."):
            yield
        self.line = f"[bold blue]{self.count}[/] [bold]{title}[/] [dim]{time.monotonic() - began:.1f} s[/]"

    def note(self, section: Section) -> None:
        """The step's finding in plain text under its line."""
        from rich.padding import Padding
        from rich.text import Text

        self.console.print(self.line)
        self.console.print(Padding(Text(section.finding.replace("**", "").replace("`", "")), (0, 0, 0, 2)))


def write(page: str, report: Report, out: Path) -> Path:
    """Write report.html and report.json into a folder, each whole or not at all."""
    from interneuron.core.files import atomic_write_bytes

    out.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(out / "report.json", report.to_json().encode())
    atomic_write_bytes(out / "report.html", page.encode())
    return out / "report.html"


def _report(name: str, model: Model, sections: list[Section], seconds: float) -> Report:
    """All numbers, tables and plots of the page under the names of their steps."""
    from interneuron.artifacts import Report

    keys = ("check", "sites", "read", "direction", "steer", "patch", "activity", "relp", "features", "sparse")
    numbers: dict[str, Any] = {"model": name, "seconds": seconds}
    tables, plots = {}, {}
    for key, section in zip(keys, sections, strict=True):
        numbers |= {f"{key}.{k}": v for k, v in section.numbers.items()}
        tables |= {f"{key}: {title}": rows for title, rows in section.tables.items()}
        plots |= {f"{key}: {plot['title']}": plot for row in section.plots for plot in row}
        if section.samples:
            tables[f"{key}: samples"] = [
                {"prompt": s.prompt, "edit": label, "text": text}
                for s in section.samples
                for label, text, _ in s.continuations
            ]
    notes = "\n".join(section.finding for section in sections)
    return Report(
        title=f"interneuron tour: {name}", numbers=numbers, tables=tables, plots=plots, notes=notes,
        slug="tour", fingerprint=model.fingerprint,
    )  # fmt: skip


def _page(name: str, model: Model, sections: list[Section], text: Path | None, seconds: float) -> str:
    from importlib.metadata import version

    import torch

    from interneuron.cli.report_page import Page, render
    from interneuron.cli.report_svg import number

    check, sites, _, direction, steer, patch, *_ = (section.numbers for section in sections)
    title = Path(name).name if Path(name).is_dir() else name
    config: Any = model.module.config
    heads = getattr(config, "num_attention_heads", None) or getattr(config, "n_head", None)
    facts = (
        f"`{type(model.module).__name__}` · {check['parameters']:,} parameters · {model.n_layers} layers · width "
        f"{model.d_model}" + (f" · {heads} heads" if heads else "") + f" · {str(model.dtype).removeprefix('torch.')}"
        f" on {model.device.type}"
    )
    worst, shuffled = check["worst_relative_error"], direction["auc_shuffled_mean"]
    control = number(patch["control_at_peak"], True)
    tiles = [
        (f"{sites['sites']}", f"named sites, {check['identities']} identities checked, worst error {worst:.0e}"),
        (f"{direction['auc']:.2f}", f"AUC of the direction on unseen pairs; shuffled labels {shuffled:.2f}"),
        (f"{steer['effect']:+.2f}", f"nats of preference by steering; random directions {steer['random']:+.2f}"),
        (number(patch["peak_recovery"], True), f"of the answer restored by one activation; random change {control}"),
    ]  # fmt: skip
    options = f" --model {name}" + (f" --text {text}" if text else "")
    return render(
        Page(
            over="interneuron tour",
            title=title,
            lead="A language model opened up: its activations read, a direction found and steered with, an effect "
            "located. "
            "Every effect stands beside a control that should show nothing, and is measured on data that chose "
            "nothing.",
            facts=facts,
            tiles=tiles,
            sections=sections,
            code=_code(name, direction, model),
            footer=f"Made by `interneuron tour{options}` in {seconds:.0f} s on {torch.get_num_threads()} thread(s) · "
            f"interneuron {version('interneuron')}, torch {torch.__version__}, transformers {version('transformers')} "
            "· "
            "seed 0 · the same numbers are in report.json beside this page.",
        )
    )


def _code(name: str, direction: dict[str, Any], model: Model) -> str:
    site, dose = direction["site"], direction["dose"]
    return f"""import interneuron as inn

model = inn.load({name!r})
direction = inn.steer.MeanDifference().fit(model, positive_texts, negative_texts, site={site!r})

run = model.run("any text", read={site!r})
size = float(run.acts[{site!r}].detach().norm(dim=-1).mean())   # the stream's typical length here
with model.edit(direction.edit(alpha={dose} * size / float(direction.norm))):
    print(model.generate("any text", max_new_tokens=30))"""
