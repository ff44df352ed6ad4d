"""Activation memory: one training step of a 12-layer Llama (d = 512, batch 4 x 128), plain and with less memory.

    python benchmarks/saved_tensors.py            # bytes, gradients, time and peak memory
    python benchmarks/saved_tensors.py --peak     # peak memory alone

Ratios to the plain step of the same run, every case in a process of its own: CPU seconds of one thread, in alternation
with plain steps there; bytes autograd keeps, each storage once; error of the gradient; and, in a second process, the
peak of resident memory over the start of the step. In one process the cases change each other: what one of them frees
decides how much glibc keeps, and so how many page faults the others have. The processes of the peaks let glibc give
blocks above 64 kB back at once (MALLOC_MMAP_THRESHOLD_), every case alike: by default the peak shows its free lists and
not what is in use. Bars: 8-bit copies <= 0.27x bytes, <= 1.10x time and <= 1 % gradient error; bf16 on disk <= 0.5x
peak memory and <= 1.10x time, for which the last four of the twelve blocks stay in memory (all but the last may go:
less memory, more time).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import alternate, table
from torch import Tensor, nn

from interneuron.memory import ActivationOffload, Mesa
from interneuron.parts.quantisers import dequantise_groups, quantise_groups
from interneuron.parts.saved_tensors import SavedBytes

MESA, DISK = "8-bit copies, blocks", "disk, bf16, last four blocks in memory"
ROUNDS = 11

_offload = partial(ActivationOffload, min_bytes=1 << 16)
CASES: dict[str, Callable[[nn.Module], Any]] = {
    MESA: partial(Mesa, groups="blocks", rounding="nearest"),
    "8-bit copies, blocks, stochastic": partial(Mesa, groups="blocks"),
    "8-bit copies, heads (paper)": Mesa,
    DISK: partial(_offload, dtype=torch.bfloat16, keep_last=4),
    "disk, bf16": partial(_offload, dtype=torch.bfloat16),
    "disk, fp32": _offload,
}
"""What makes the context of each case around a model."""


class Step:
    """The model, its batch and one training step."""

    def __init__(self) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=512, intermediate_size=1408, num_hidden_layers=12, num_attention_heads=8,
            num_key_value_heads=8, vocab_size=8192, max_position_embeddings=512, use_cache=False,
        )  # fmt: skip
        self.model = LlamaForCausalLM(config)
        self.ids = torch.randint(0, 8192, (4, 128))

    def loss(self) -> Tensor:
        """The forward pass."""
        loss: Tensor = self.model(self.ids, labels=self.ids).loss
        return loss

    def run(self, context: Any = None) -> None:
        """Forward and backward, inside a context or plain."""
        self.model.zero_grad(set_to_none=False)
        if context is None:
            self.loss().backward()
            return
        with context:
            self.loss().backward()

    def gradient(self) -> Tensor:
        """All gradients as one vector."""
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])


def cost(name: str) -> None:
    """Print what a case saves, its gradient error and time, and the time of plain steps; in a process of its own."""
    step = Step()
    with SavedBytes(step.model) as meter:
        loss = step.loss()
    plain_bytes = meter.live
    loss.backward()
    step.run()
    exact = step.gradient()
    context = CASES[name](step.model)
    step.run(context)
    kept = (context.saved if isinstance(context, Mesa) else context.resident).peak
    error = float((step.gradient() - exact).norm() / exact.norm())
    runs = {"plain": step.run, name: lambda: step.run(context)}
    seconds = {key: row["median"] for key, row in alternate(runs, rounds=ROUNDS).items()}
    print(json.dumps({"bytes": kept / plain_bytes, "error": error, "plain": seconds["plain"], "s": seconds[name]}))


def peak(name: str) -> None:
    """Print the peak of resident memory of one step over its start; run in a process of its own."""
    step = Step()
    context = CASES[name](step.model) if name in CASES else None
    step.model.zero_grad(set_to_none=False)
    for parameter in step.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with torch.no_grad():
        step.loss()
    dequantise_groups(quantise_groups(torch.ones(1, 1, 8)))  # compiled once a machine, loaded once a process
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = _status("VmRSS")
    step.run(context)
    print(_status("VmHWM") - start)


def _status(field: str) -> int:
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(rows[field].split()[0]) * 1024


def peaks(names: list[str]) -> dict[str, float]:
    """Peak bytes of every case."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    return {name: float(_alone("--one-peak", name, MALLOC_MMAP_THRESHOLD_="65536")) for name in names}


def _alone(flag: str, name: str, **environment: str) -> str:
    """The last line that a process of its own prints about a case."""
    command = [sys.executable, __file__, flag, name]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def main() -> int:
    """Measure, print, and return 0 when the bars are met."""
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--one-peak"]:
        peak(sys.argv[-1])
        return 0
    if sys.argv[1:2] == ["--one-cost"]:
        cost(sys.argv[-1])
        return 0
    names = ["plain", MESA, DISK, "disk, bf16", "disk, fp32"]
    memory = peaks(names)
    table("peak memory over the start", ["case", "MB", "over plain"],
          [[name, value / 1e6, value / memory["plain"]] for name, value in memory.items()])  # fmt: skip
    if "--peak" in sys.argv:
        return 0
    found = {name: json.loads(_alone("--one-cost", name)) for name in CASES}
    rows = [[name, row["bytes"], row["error"], row["plain"], row["s"], row["s"] / row["plain"]]
            for name, row in found.items()]  # fmt: skip
    table("one training step", ["case", "saved bytes in memory", "gradient error", "plain s", "s", "over plain"], rows)
    mesa, disk = found[MESA], found[DISK]
    met = {
        "8-bit copies": mesa["bytes"] <= 0.27 and mesa["s"] <= 1.1 * mesa["plain"] and mesa["error"] <= 0.01,
        "disk": (not memory or memory[DISK] <= 0.5 * memory["plain"]) and disk["s"] <= 1.1 * disk["plain"],
    }
    print("\n" + ", ".join(f"{name}: bar {'met' if ok else 'missed'}" for name, ok in met.items()))
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
