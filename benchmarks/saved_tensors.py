"""Activation memory: one training step of a 12-layer Llama (d = 512, batch 4 x 128), plain and with less memory.

    python benchmarks/saved_tensors.py            # bytes, gradients, time and peak memory
    python benchmarks/saved_tensors.py --peak     # peak memory alone

Ratios to the plain step of the same run: CPU seconds of one thread, the cases in alternation; bytes autograd keeps,
each storage once; error of the gradient; and, in a process of its own for each case, the peak of resident memory over
the start of the step. These processes let glibc give blocks above 64 kB back at once (MALLOC_MMAP_THRESHOLD_), every
case alike: by default the peak shows its free lists and not what is in use. Bars: 8-bit copies <= 0.27x bytes,
<= 1.10x time and <= 1 % gradient error; bf16 on disk <= 0.5x peak memory and <= 1.10x time, for which the last four of
the twelve blocks stay in memory (all but the last may go: less memory, more time).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import alternate, table
from torch import Tensor

from interneuron.memory import ActivationOffload, Mesa
from interneuron.parts.quantisers import dequantise_groups, quantise_groups
from interneuron.parts.saved_tensors import SavedBytes

MESA, DISK = "8-bit copies, blocks", "disk, bf16, last four blocks in memory"
ROUNDS = 11


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

    def contexts(self) -> dict[str, Any]:
        """The cases by name."""
        return {
            "plain": None,
            MESA: Mesa(self.model, groups="blocks", rounding="nearest"),
            "8-bit copies, blocks, stochastic": Mesa(self.model, groups="blocks"),
            "8-bit copies, heads (paper)": Mesa(self.model),
            DISK: ActivationOffload(self.model, min_bytes=1 << 16, dtype=torch.bfloat16, keep_last=4),
            "disk, bf16": ActivationOffload(self.model, min_bytes=1 << 16, dtype=torch.bfloat16),
            "disk, fp32": ActivationOffload(self.model, min_bytes=1 << 16),
        }


def costs() -> dict[str, dict[str, float]]:
    """Bytes, gradient error and time of every case."""
    step = Step()
    with SavedBytes(step.model) as meter:
        loss = step.loss()
    plain_bytes = meter.live
    loss.backward()
    cases = step.contexts()
    found: dict[str, dict[str, float]] = {}
    exact = torch.zeros(0)
    for name, context in cases.items():
        step.run(context)
        exact = step.gradient() if context is None else exact
        kept = (
            plain_bytes if context is None else (context.saved if isinstance(context, Mesa) else context.resident).peak
        )
        error = float((step.gradient() - exact).norm() / exact.norm())
        found[name] = {"bytes": kept / plain_bytes, "error": error}
    runs: dict[str, Callable[[], object]] = {name: lambda c=context: step.run(c) for name, context in cases.items()}
    for name, seconds in alternate(runs, rounds=ROUNDS).items():
        found[name]["seconds"] = seconds["median"]
    print(f"\nplain saves {plain_bytes / 1e6:.0f} MB for the backward pass")
    return found


def peak(name: str) -> None:
    """Print the peak of resident memory of one step over its start; run in a process of its own."""
    step = Step()
    context = step.contexts()[name]
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
    """Peak bytes of every case, each in its own process."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    found = {}
    for name in names:
        done = subprocess.run(
            [sys.executable, __file__, "--one", name], env=environment, capture_output=True, text=True, check=True
        )
        found[name] = float(done.stdout.split()[-1])
    return found


def main() -> int:
    """Measure, print, and return 0 when the bars are met."""
    torch.set_num_threads(1)
    if "--one" in sys.argv:
        peak(sys.argv[-1])
        return 0
    names = ["plain", MESA, DISK, "disk, bf16", "disk, fp32"]
    memory = peaks(names)
    table("peak memory over the start", ["case", "MB", "over plain"],
          [[name, value / 1e6, value / memory["plain"]] for name, value in memory.items()])  # fmt: skip
    if "--peak" in sys.argv:
        return 0
    found = costs()
    base = found["plain"]["seconds"]
    rows = [[name, row["bytes"], row["error"], row["seconds"], row["seconds"] / base] for name, row in found.items()]
    table("one training step", ["case", "saved bytes in memory", "gradient error", "s", "over plain"], rows)
    mesa, disk = found[MESA], found[DISK]
    met = {
        "8-bit copies": mesa["bytes"] <= 0.27 and mesa["seconds"] <= 1.1 * base and mesa["error"] <= 0.01,
        "disk": (not memory or memory[DISK] <= 0.5 * memory["plain"]) and disk["seconds"] <= 1.1 * base,
    }
    print("\n" + ", ".join(f"{name}: bar {'met' if ok else 'missed'}" for name, ok in met.items()))
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
