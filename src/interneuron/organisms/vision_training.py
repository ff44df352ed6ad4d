"""Training and checking of the image organisms: one loop, exactly resumable, whose data is a function of the step.

Idea. Batch number s of a recipe is `recipe.batch(s)`, a pure function, so a run that was killed continues from its last
save and ends with the same weights as one that was not. The learning rate is a function of the step too.

Equations. lr(s) = peak s / warm-up, then peak (1 + cos(pi r)) / 2 with r the share of the remaining steps done.

Use.
    from interneuron.organisms import vision_training as vt
    from interneuron.organisms.recipes import cnn
    vt.train(cnn.RECIPE, "runs/cnn"); vt.check(cnn.RECIPE, "runs/cnn")
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import math
import os
import platform
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interneuron.core.errors import TrainingError
from interneuron.core.files import atomic_write_bytes, load_tensors, make_folder, save_tensors
from interneuron.core.progress import Progress

from .muon import Muon

Batch = tuple[Tensor, Tensor]
SAVE_SECONDS = 60.0
_NOT_TRAINING = ("about", "minutes", "required", "artefacts")  # words and gates change no weight


@dataclass(frozen=True)
class Row:
    """One line of a capability table. `rule` is '>=', '<=' or 'report' (no gate)."""

    task: str
    n: int
    values: tuple[float, ...]
    rule: str = "report"
    required: float | None = None
    note: str = ""

    @property
    def value(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def passed(self) -> bool | None:
        """Whether the mean over sampling seeds meets the requirement; None for a line that is only reported."""
        if self.required is None or self.rule == "report":
            return None
        return self.value >= self.required if self.rule == ">=" else self.value <= self.required

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "values": list(self.values), "value": self.value, "passed": self.passed}


@dataclass(frozen=True)
class VisionRecipe:
    """Everything that decides an image organism.

    build      () -> a Hugging Face image model with fresh weights (the caller seeds torch around it)
    batch      (step, batch_size) -> images Float[B 3 H W] in [0, 1] and targets
    loss       (logits, targets) -> scalar
    measure    (model, sampling seed) -> {task: (n, value)}
    required   {task: (rule, threshold)}; tasks without an entry are reported
    """

    name: str
    about: str
    minutes: float
    steps: int
    batch_size: int
    lr: float
    build: Callable[[], nn.Module]
    batch: Callable[[int, int], Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    measure: Callable[[nn.Module, int], dict[str, tuple[int, float]]]
    required: dict[str, tuple[str, float]]
    muon_lr: float = 0.0
    weight_decay: float = 0.05
    warmup: int = 200
    seed: int = 0
    size: int = 32
    artefacts: tuple[str, ...] = ()
    hyper: dict[str, Any] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Twelve hex digits over the recipe's numbers and the source of its functions."""
        numbers = {k: v for k, v in self.__dict__.items() if not callable(v) and k not in _NOT_TRAINING}
        source = "".join(_code(f) for f in (self.build, self.batch, self.loss))
        return hashlib.sha256((json.dumps(numbers, sort_keys=True, default=str) + source).encode()).hexdigest()[:12]


def _code(function: Callable[..., Any]) -> str:
    """The syntax tree of a function without its docstring: comments and layout change no hash."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    return "".join(map(ast.dump, body))


def schedule(recipe: VisionRecipe, step: int) -> float:
    """The share of the peak learning rate at a step: linear warm-up, then cosine to zero."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(recipe.steps - recipe.warmup, 1)
    return 0.5 * (1.0 + math.cos(math.pi * done))


def _optimisers(recipe: VisionRecipe, model: nn.Module) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices of the encoder blocks when the recipe gives it a rate."""
    named = list(model.named_parameters())
    hidden = [p for name, p in named if recipe.muon_lr > 0 and p.dim() == 2 and "classifier" not in name]
    taken = set(map(id, hidden))
    matrices = [p for _, p in named if p.dim() > 1 and id(p) not in taken]
    vectors = [p for _, p in named if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    out: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))]
    if hidden:
        out.append(Muon(hidden, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, dtype=torch.bfloat16))
    return out


def _save_state(
    path: Path, model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], step: int, seconds: float
) -> None:
    tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for optimiser in optimisers:
            for key, value in optimiser.state.get(parameter, {}).items():
                tensors[f"moment.{key}.{name}"] = torch.as_tensor(value).contiguous()
    tensors["progress"] = torch.tensor([float(step), seconds], dtype=torch.float64)
    save_tensors(path, tensors)


def _load_state(path: Path, model: nn.Module, optimisers: Sequence[torch.optim.Optimizer]) -> tuple[int, float]:
    tensors = load_tensors(path)
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    moments = [key.removeprefix("moment.").partition(".")[::2] for key in tensors if key.startswith("moment.")]
    parameters = dict(model.named_parameters())
    owner = {id(p): o for o in optimisers for group in o.param_groups for p in group["params"]}
    for key, name in moments:
        parameter = parameters[name]
        owner[id(parameter)].state[parameter][key] = tensors[f"moment.{key}.{name}"]
    step, seconds = tensors["progress"].tolist()
    return int(step), seconds


def fresh_model(recipe: VisionRecipe) -> nn.Module:
    """The recipe's model before training, the same weights at every call; the caller's random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return recipe.build()


def train(recipe: VisionRecipe, folder: str | Path, *, steps: int | None = None) -> list[float]:
    """Train into `folder`, continuing a run found there. Returns the losses of the steps done in this call.

    The folder receives `run/state.safetensors` (every minute), `run/log.jsonl` (every 50 steps) and, at the end, the
    model in Hugging Face form. `steps` stops early; the schedule stays that of the whole run.
    """
    folder, digest = Path(folder), recipe.hash  # of the source as it runs: the file may change meanwhile
    run = make_folder(folder / "run")
    state = run / "state.safetensors"
    model = fresh_model(recipe)
    optimisers = _optimisers(recipe, model)
    peaks = [optimiser.defaults["lr"] for optimiser in optimisers]
    first, before = _load_state(state, model, optimisers) if state.exists() else (0, 0.0)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    last = recipe.steps if steps is None else min(steps, recipe.steps)
    started = saved = time.monotonic()
    losses: list[float] = []
    model.train()
    with Progress(total=last - first, label=f"training {recipe.name}", unit="steps") as bar:
        for step in range(first, last):
            losses.append(_step(recipe, model, optimisers, peaks, step))
            seconds = before + time.monotonic() - started
            bar.advance(1, loss=losses[-1])
            if step % 50 == 49 or step == last - 1:
                _log(run, step + 1, losses[-1], seconds)
            if time.monotonic() - saved > SAVE_SECONDS or step == last - 1:
                _save_state(state, model, optimisers, step + 1, seconds)
                saved = time.monotonic()
    if last == recipe.steps:
        export(recipe, model, folder, before + time.monotonic() - started, digest)
    return losses


def _step(
    recipe: VisionRecipe,
    model: nn.Module,
    optimisers: Sequence[torch.optim.Optimizer],
    peaks: Sequence[float],
    step: int,
) -> float:
    for optimiser, peak in zip(optimisers, peaks, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = peak * schedule(recipe, step)
        optimiser.zero_grad(set_to_none=True)
    images, targets = recipe.batch(step, recipe.batch_size)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images.contiguous(memory_format=torch.channels_last)).logits
    loss = recipe.loss(logits.float(), targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser in optimisers:
        optimiser.step()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(f"{recipe.name}: the loss of step {step} is {value}. Lower the learning rate {recipe.lr}.")
    return value


def _log(run: Path, step: int, loss: float, seconds: float) -> None:
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": step, "loss": round(loss, 5), "seconds": round(seconds, 1)}) + "\n")


def export(recipe: VisionRecipe, model: Any, folder: Path, seconds: float, digest: str) -> None:
    """Write the model as a plain Hugging Face folder: fp16 weights, a config that loads fp32, a preprocessor."""
    model.eval()
    model.config.dtype = torch.float32
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous().clone()
        for name, value in model.state_dict().items()
    }
    save_tensors(folder / "model.safetensors", tensors, metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": [type(model).__name__], "dtype": "float32"}
    atomic_write_bytes(folder / "config.json", (json.dumps(config, indent=1, sort_keys=True) + "\n").encode())
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": recipe.size, "width": recipe.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
        "do_convert_rgb": True,
    }
    atomic_write_bytes(folder / "preprocessor_config.json", (json.dumps(preprocessor, indent=1) + "\n").encode())
    training = {"images": recipe.steps * recipe.batch_size, "minutes": round(seconds / 60, 2), "recipe": digest}
    training |= {"threads": torch.get_num_threads(), "processor": platform.machine(), "torch": torch.__version__}
    atomic_write_bytes(folder / "training.json", (json.dumps(training, indent=1) + "\n").encode())


def load(folder: str | Path) -> Any:
    """The model of an organism folder, in evaluation mode and fp32."""
    from transformers import AutoModelForImageClassification

    return AutoModelForImageClassification.from_pretrained(os.fspath(folder), dtype=torch.float32).eval()


def check(
    recipe: VisionRecipe, folder: str | Path, seeds: Sequence[int] = (1, 2, 3), *, write: bool = True
) -> dict[str, Any]:
    """Recompute the capability table from the stored weights and write it to `card.json`.

    The caller's gates are the recipe's `required`; a missed one is listed under `short`, never dropped.
    """
    import transformers

    folder = Path(folder)
    model = load(folder)
    tables = [recipe.measure(model, seed) for seed in seeds]
    rows = []
    for task, (n, _) in tables[0].items():
        rule, required = recipe.required.get(task, ("report", None))
        rows.append(Row(task, n, tuple(round(table[task][1], 5) for table in tables), rule, required))
    training = json.loads((folder / "training.json").read_text()) if (folder / "training.json").exists() else {}
    config = json.loads((folder / "config.json").read_text())
    card = {
        "name": recipe.name,
        "purpose": recipe.about,
        "class": config["architectures"][0],
        "parameters": sum(p.numel() for p in model.parameters()),
        "world": "shapes",
        "recipe": recipe.hash,
        "seeds": list(seeds),
        "training": training,
        "capabilities": [row.as_dict() for row in rows],
        "short": [row.task for row in rows if row.passed is False],
        "artefacts": list(recipe.artefacts),
        "licence": "same as the package",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    if write:
        atomic_write_bytes(folder / "card.json", (json.dumps(card, indent=1) + "\n").encode())
    return card


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """Logits Float[N C] of many images, batch by batch."""
    return torch.cat([model(part).logits.float() for part in images.split(batch_size)])
