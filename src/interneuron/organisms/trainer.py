"""Training of the language organisms: packed rows, Muon or AdamW, saves that survive a kill, one log line a step."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interneuron.core.errors import TrainingError
from interneuron.core.files import load_tensors, save_tensors
from interneuron.core.progress import Progress

from .language import LONG_WIDTH, WIDTH, LanguageRecipe, Phase, new_model, use_packed_attention
from .muon import Muon
from .tinyworld import lookup, packing
from .tinyworld.mixture import MIXTURES, Mixture
from .tinyworld.world import Truth

LONG_EVERY = 12
SHORT_LIMIT, LONG_LIMIT = 12, 55
SAVE_SECONDS = 120.0


def multiplies_bfloat16() -> bool:
    """Whether this CPU has bfloat16 products of its own; elsewhere they would be slower than float32 ones."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class Feed:
    """The training rows as a function of (recipe, step): documents by index, the rest kept for the next step."""

    def __init__(self, recipe: LanguageRecipe) -> None:
        self.recipe = recipe
        self.truth = Truth(recipe.world)
        self.next = {"short": 0, "long": 0}
        self.waiting: dict[str, list[list[int]]] = {"short": [], "long": []}
        self.planted = 0
        rng = random.Random(5_000 + recipe.seed)
        strings = [i for i, s in enumerate(self.truth.memorised) for _ in range(s.times)]
        self.plan = sorted((0.4 + 0.58 * rng.random(), i) for i in strings) if not recipe.align else []
        self._mixtures: dict[tuple[str, str], Mixture] = {}

    def _mixture(self, phase: Phase, kind: str) -> Mixture:
        key = (phase.mixture, kind)
        if key not in self._mixtures:
            if kind == "long":
                shares = {k: 0.4 * s for k, s in MIXTURES["lm"].items()}
                shares["needle"] = 0.6
                self._mixtures[key] = Mixture(shares, LONG_LIMIT)
            else:
                self._mixtures[key] = Mixture(phase.mixture, SHORT_LIMIT)
        return self._mixtures[key]

    def rows(self, step: int, phase: Phase, done: float) -> packing.Rows:
        """The rows of a step; `done` is the share of training tokens used (it times the planted strings)."""
        kind = "long" if phase.long_rows and step % LONG_EVERY == LONG_EVERY - 1 else "short"
        width = LONG_WIDTH if kind == "long" else WIDTH
        n_rows = self.recipe.tokens_per_step // width
        mixture, docs = self._mixture(phase, kind), self.waiting[kind]
        while kind == "short" and self.planted < len(self.plan) and self.plan[self.planted][0] <= done:
            docs.append(packing.encode(lookup.memorised(self.truth, self.plan[self.planted][1])))
            self.planted += 1
        total = sum(map(len, docs))
        seed = 2 * self.recipe.seed + (kind == "long") + 101
        while total < 1.06 * n_rows * width:
            ids = packing.encode(mixture.document(self.truth, seed, self.next[kind]))
            self.next[kind] += 1
            if len(ids) <= width:
                docs.append(ids)
                total += len(ids)
        rows, left = packing.pack(docs, n_rows, width)
        self.waiting[kind] = [docs[i] for i in left]
        return rows

    def state(self) -> dict[str, Any]:
        return {"next": self.next, "waiting": self.waiting, "planted": self.planted}

    def restore(self, state: dict[str, Any]) -> None:
        self.next, self.waiting, self.planted = state["next"], state["waiting"], state["planted"]


def batch(rows: packing.Rows, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """tokens, positions Int[B T], mask Float[B 1 T T] (added: documents apart), targets Int[B T] (-100: none)."""
    tokens, positions = torch.from_numpy(rows.tokens), torch.from_numpy(rows.positions)
    segments = torch.from_numpy(rows.segments)
    same = segments[:, :, None] == segments[:, None, :]
    allowed = same & torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -30000.0)[:, None]
    targets = torch.full_like(tokens, -100)
    goes_on = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] >= 0)
    targets[:, :-1] = torch.where(goes_on, tokens[:, 1:], -100)
    return tokens, positions, mask, targets


def optimisers(model: nn.Module, recipe: LanguageRecipe, fast: bool) -> list[torch.optim.Optimizer]:
    """Muon on hidden matrices and AdamW on the rest, or AdamW alone."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        hidden = p.ndim == 2 and not any(part in name for part in ("embed", "wte", "wpe", "lm_head"))
        (matrices if hidden else rest).append(p)
    if recipe.optimiser == "adamw":
        return [torch.optim.AdamW([*matrices, *rest], lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.01)]
    dtype = torch.bfloat16 if fast else torch.float32
    return [
        Muon(matrices, lr=recipe.lr, weight_decay=recipe.weight_decay, dtype=dtype),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


class Trainer:
    """A run that can be killed at any time and goes on from its last save.

    Args:
        recipe: what to train.
        folder: where `state.safetensors`, checkpoints and `log.jsonl` go.
        start: initial weights (the align stage starts from its base).
        fast: bfloat16 products under autocast (default: where the CPU has them); weights, moments and the loss stay
            float32.
        compile: fuse the element-wise work with `torch.compile` (needs a C++ compiler).
    """

    def __init__(
        self, recipe: LanguageRecipe, folder: Path, start: dict[str, Tensor] | None = None, fast: bool | None = None,
        compile: bool = False,
    ) -> None:  # fmt: skip
        self.recipe, self.folder = recipe, folder
        self.fast = fast = multiplies_bfloat16() if fast is None else fast
        folder.mkdir(parents=True, exist_ok=True)
        self.model = new_model(recipe)
        if start is not None:
            self.model.load_state_dict(start)
        use_packed_attention(self.model)
        self.model.train()
        self.forward = torch.compile(self.model, dynamic=False) if compile else self.model
        self.optimisers = optimisers(self.model, recipe, fast)
        self.base_lrs = [o.param_groups[0]["lr"] for o in self.optimisers]
        self.feed = Feed(recipe)
        self.tokens = self.step = 0
        self.seconds = 0.0
        self._saved = time.monotonic()

    def rate(self) -> float:
        """Learning-rate factor at the current token: warm-up by steps, then 1, then linear decay in a decay phase."""
        phase, done = self.recipe.phase(self.tokens)
        warm = min(1.0, (self.step + 1) / self.recipe.warmup)
        floor = 0.0 if self.recipe.align else 0.02
        return warm * (1.0 - (1.0 - floor) * done if phase.decay else 1.0)

    def one_step(self) -> float:
        """Forward, backward and update on one batch; returns the mean loss per token in nats."""
        phase, _ = self.recipe.phase(self.tokens)
        rows = self.feed.rows(self.step, phase, self.tokens / self.recipe.total)
        dtype = torch.bfloat16 if self.fast else torch.float32
        tokens, positions, mask, targets = batch(rows, dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.fast):
            logits = self.forward(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = self.rate()
        for i, (optimiser, lr) in enumerate(zip(self.optimisers, self.base_lrs, strict=True)):
            optimiser.param_groups[0]["lr"] = lr * factor * (phase.rate if i == 0 else 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        value = float(loss.detach())
        if not np.isfinite(value):
            raise TrainingError(
                f"training {self.recipe.name}: loss is {value} at step {self.step}, expected a finite number. "
                f"Delete {self.folder} to start afresh, or lower the recipe's lr."
            )
        self.step += 1
        self.tokens += rows.n_tokens
        return value

    def save(self) -> None:
        """Write weights, moments and the place in the data as one file, replacing the last save atomically."""
        place = {"tokens": self.tokens, "step": self.step, "seconds": self.seconds, "feed": self.feed.state()}
        tensors = {f"model.{k}": v for k, v in self.weights().items()}
        for i, optimiser in enumerate(self.optimisers):
            for j, p in enumerate(optimiser.param_groups[0]["params"]):
                for key, value in optimiser.state.get(p, {}).items():
                    tensors[f"optimiser.{i}.{j}.{key}"] = torch.as_tensor(value)
        tensors["place"] = torch.tensor(list(json.dumps(place).encode()), dtype=torch.uint8)
        save_tensors(self.folder / "state.safetensors", tensors)
        self._saved = time.monotonic()

    def resume(self) -> bool:
        """Go on from the last save, if there is one."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return False
        tensors = load_tensors(path)
        place = json.loads(bytes(tensors.pop("place").tolist()))
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, strict=False)
        for i, optimiser in enumerate(self.optimisers):
            for j, p in enumerate(optimiser.param_groups[0]["params"]):
                prefix = f"optimiser.{i}.{j}."
                optimiser.state[p] = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        self.tokens, self.step, self.seconds = place["tokens"], place["step"], place["seconds"]
        self.feed.restore(place["feed"])
        return True

    def weights(self) -> dict[str, Tensor]:
        """The weights by name, a tied head left out."""
        tied = "lm_head.weight" if self.model.config.tie_word_embeddings else ""
        return {k: v.detach().contiguous() for k, v in self.model.state_dict().items() if k != tied}

    def run(self, until: int | None = None, progress: bool = True) -> None:
        """Train to the recipe's last token (or `until`), saving every two minutes and at the log-spaced checkpoints."""
        end = min(until or self.recipe.end, self.recipe.end)
        marks = [m for m in checkpoint_tokens(self.recipe) if m > self.tokens]
        with (
            Progress(total=end, label=self.recipe.name, unit="tokens", enabled=None if progress else False) as bar,
            (self.folder / "log.jsonl").open("a", encoding="utf-8") as log,
        ):
            bar.advance(self.tokens)
            while self.tokens < end:
                began, before = time.monotonic(), self.tokens
                loss = self.one_step()
                self.seconds += time.monotonic() - began
                bar.advance(self.tokens - before, loss=round(loss, 3))
                line = {
                    "step": self.step,
                    "tokens": self.tokens,
                    "loss": round(loss, 4),
                    "seconds": round(self.seconds, 1),
                }
                log.write(json.dumps(line) + "\n")
                log.flush()
                if marks and self.tokens >= marks[0]:
                    save_tensors(self.folder / f"checkpoint-{self.tokens:09d}.safetensors", self.weights())
                    marks = [m for m in marks if m > self.tokens]
                if time.monotonic() - self._saved > SAVE_SECONDS:
                    self.save()
        self.save()


def checkpoint_tokens(recipe: LanguageRecipe) -> list[int]:
    """The token counts at which weights are kept: log-spaced from 0.1M to the end (the end is the last save)."""
    n = recipe.checkpoints or 24
    ratio = (recipe.total / 1e5) ** (1 / (n - 1))
    return [int(1e5 * ratio**i) for i in range(n - 1)]
