"""What reading and steering cost: microseconds per site and per context, beside plain hooks and the peers installed.

    python benchmarks/capture.py

The price of the mechanism is taken on 24 modules that do nothing else, so that it is not lost in a model's own noise.
Bars: <= 6 us per site read while the context is open, <= 60 us to enter and leave a context (plus <= 8 us a site),
an unhooked call exactly the module's own, steering <= 15 us per token and site.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from timing import alternate, table
from torch import nn

import interneuron as inn

SITES = 24


class Tiny(nn.Module):
    """A module whose work is negligible."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


class Net(nn.Module):
    """A stack of tiny modules."""

    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList(Tiny() for _ in range(SITES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.h:
            x = block(x)
        return x


def mechanism() -> bool:
    """The fixed price of a context and the price of each site in it."""
    x = torch.zeros(1, 4)
    plain, hooked, ours = Net(), Net(), inn.wrap(Net())
    kept: dict[int, Any] = {}
    for i, block in enumerate(hooked.h):
        block.register_forward_hook(lambda _m, _a, out, i=i: kept.__setitem__(i, out))
    names = [f"h.{i}:out" for i in range(SITES)]
    buffers = {name: torch.empty(1, 4, dtype=torch.float16) for name in names}
    opened, copied = inn.wrap(Net()), inn.wrap(Net())
    opened.read(*names).__enter__()
    copied.read(*names, to=buffers).__enter__()
    steered = inn.wrap(Net())
    steered.edit(inn.Add("h.*:out", torch.ones(4), 0.5)).__enter__()
    one, all_ = names[:1], tuple(names)

    def enter(chosen: Any) -> None:
        session = ours.read(*chosen)
        session._check_fired = lambda: None  # the benchmark leaves without a pass
        with session:
            pass

    cases = {
        "plain module": lambda: plain(x),
        "wrapped module, no context": lambda: ours.module(x),
        "model(x), no context": lambda: ours(x),
        "raw hooks, left registered": lambda: hooked(x),
        "read, open": lambda: opened.module(x),
        "read into fp16 buffers, open": lambda: copied.module(x),
        "steer (Add), open": lambda: steered.module(x),
        "enter and leave, 1 site": lambda: enter(one),
        "enter and leave, 24 sites": lambda: enter(all_),
    }
    try:
        from nnsight import NNsight

        traced = NNsight(Net())

        def nnsight_trace() -> None:
            with traced.trace(x):
                saved = list().save()  # noqa: C408 - the tracer turns the call into a proxy
                for block in traced.h:
                    saved.append(block.output)

        cases["nnsight trace, 24 sites"] = nnsight_trace
    except ImportError:
        pass
    r = alternate(cases)
    base = r["plain module"]["fastest"]
    rows: list[list[object]] = []
    for name, t in r.items():
        extra = t["fastest"] - (0 if name.startswith("enter") else base)
        rows.append([name, t["fastest"] * 1e6, extra * 1e6, extra * 1e6 / SITES])
    table(f"Mechanism, {SITES} tiny modules", ["case", "CPU us", "extra us", "extra us/site"], rows)
    read = (r["read, open"]["fastest"] - base) / SITES * 1e6
    steer = (r["steer (Add), open"]["fastest"] - base) / SITES * 1e6
    first, many = r["enter and leave, 1 site"]["fastest"], r["enter and leave, 24 sites"]["fastest"]
    per_site = (many - first) / (SITES - 1) * 1e6
    return verdicts(
        ("us per site read while open", read, 6.0),
        ("us to enter and leave a context, 1 site", first * 1e6, 60.0),
        ("us per further site entering and leaving", per_site, 8.0),
        ("us per token and site of steering", steer, 15.0),
        ("unhooked call / the module's own", r["wrapped module, no context"]["fastest"] / base, 1.05),
    )


def verdicts(*bars: tuple[str, float, float]) -> bool:
    """Print each bar with its figure; True when all hold."""
    print()
    for what, value, limit in bars:
        print(f"  {'ok  ' if value <= limit else 'MISS'} {value:8.2f} (bar {limit:g})  {what}")
    return all(value <= limit for _, value, limit in bars)


def llama(width: int = 256, layers: int = 4) -> Any:
    """A small Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=4, vocab_size=1000
    )
    return LlamaForCausalLM(config).eval()


def whole_passes(batch: int, length: int) -> None:
    """Whole forward passes, as ratios to the plain module (noise: several per cent)."""
    module = llama()
    ids = torch.randint(0, 1000, (batch, length), generator=torch.Generator().manual_seed(0))
    model = inn.wrap(module)
    sites = ["layers.*.resid_post", "layers.*.mlp.hidden"]
    with model.read(*sites) as acts:
        model(ids)
    buffers = {name: torch.empty(acts[name].shape, dtype=torch.float16) for name in acts.names}
    hooked = llama()
    kept = []
    for block in hooked.model.layers:
        block.register_forward_hook(lambda _m, _a, out: kept.append(out))
        block.mlp.down_proj.register_forward_hook(lambda _m, a, _o: kept.append(a[0]))

    def raw() -> None:
        kept.clear()
        hooked(input_ids=ids)

    def read(**kwargs: Any) -> None:
        with model.read(*sites, **kwargs):
            model(ids)

    cases = {
        "plain": lambda: module(input_ids=ids),
        "raw hooks": raw,
        "read": read,
        "read into fp16 buffers": lambda: read(to=buffers),
        **peers(module, ids),
    }
    r = alternate(cases, rounds=7, sample=0.2)
    base = r["plain"]["median"]
    table(
        f"Forward of a 4-layer d=256 Llama, {batch} x {length} tokens, resid_post and mlp.hidden of every layer",
        ["case", "CPU ms", "ratio to plain"],
        [[name, t["median"] * 1e3, t["median"] / base] for name, t in r.items()],
    )


def generation() -> None:
    """Steering while generating, as a ratio to the plain module."""
    module = llama()
    model = inn.wrap(module)
    prompt = torch.randint(0, 1000, (1, 8), generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"max_new_tokens": 48, "do_sample": False, "pad_token_id": 0}
    edit = inn.Add("layers.2.resid_post", torch.randn(256), 0.1)

    def steer() -> None:
        with model.edit(edit):
            model.generate(prompt, **options)

    cases = {"plain": lambda: module.generate(prompt, **options), "steered": steer}
    r = alternate(cases, rounds=7, sample=0.2)
    base = r["plain"]["median"]
    table(
        "Generation of 48 tokens, batch 1, KV cache",
        ["case", "CPU ms/token", "ratio to plain"],
        [[name, t["median"] * 1e3 / 48, t["median"] / base] for name, t in r.items()],
    )


def peers(module: Any, ids: torch.Tensor) -> dict[str, Any]:
    """The same read by other tools, when they are installed."""
    cases: dict[str, Any] = {}
    try:
        from nnsight import NNsight

        wrapped = NNsight(module)

        def nnsight_trace() -> None:
            with wrapped.trace(input_ids=ids):
                saved = list().save()  # noqa: C408 - the tracer turns the call into a proxy
                for block in wrapped.model.layers:
                    saved.append(block.mlp.down_proj.input)
                    saved.append(block.output)

        cases["nnsight"] = nnsight_trace
    except ImportError:
        print("nnsight is not installed: left out", file=sys.stderr)
    try:
        bridge = transformer_lens_bridge(module)
        wanted = {f"blocks.{i}.{hook}" for i in range(4) for hook in ("hook_resid_post", "mlp.out.hook_in")}
        cases["TransformerLens bridge, plain"] = lambda: bridge(ids)
        cases["TransformerLens bridge, run_with_cache"] = lambda: bridge.run_with_cache(
            ids, names_filter=lambda name: name in wanted
        )
    except ImportError:
        print("transformer-lens is not installed: left out", file=sys.stderr)
    return cases


def transformer_lens_bridge(module: Any) -> Any:
    """A TransformerLens bridge over a copy of the module, with a stand-in tokenizer written to a temporary folder."""
    import copy
    import tempfile

    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({str(i): i for i in range(module.config.vocab_size)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1", bos_token="2")
    with tempfile.TemporaryDirectory() as folder:
        module.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        return TransformerBridge.boot_transformers(
            folder, device="cpu", tokenizer=tokenizer, hf_model=copy.deepcopy(module)
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    fine = mechanism()
    if "--quick" not in sys.argv:
        whole_passes(8, 128)
        whole_passes(1, 8)
        generation()
    sys.exit(0 if fine else 1)
