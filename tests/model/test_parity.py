"""Reading every site of every architecture changes no bit, and what is read is what flowed.

Each tiny model of `architectures_more.ALL` is built once; a test may use it but must leave it as it was.
"""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from architectures_more import ALL, Architecture

from interneuron.model.load import wrap
from interneuron.model.model import Model

EVERY = pytest.mark.parametrize("name", [a.name for a in ALL])
TABLE: dict[str, Architecture] = {a.name: a for a in ALL}


@functools.cache
def made(name: str) -> Model:
    """The wrapped tiny model of an architecture."""
    return wrap(TABLE[name].build())


def tensors(value: Any) -> list[Tensor]:
    """Every tensor of an output, in order; key-value caches left out."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in tensors(item)] if isinstance(value, (list, tuple)) else []


def same(first: Any, second: Any) -> bool:
    """Bit for bit, every tensor."""
    one, two = tensors(first), tensors(second)
    return len(one) == len(two) > 0 and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def hooks(module: nn.Module) -> int:
    """How many hooks a module and its parts carry."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in module.modules())


def first_tensor(value: Any, key: int | str | None = None) -> Tensor:
    """The tensor an independent hook finds: a named or numbered part, or the first tensor."""
    if isinstance(key, str):
        return value[key]
    parts = tensors(value)
    return parts[key or 0]


def scalar(output: Any) -> Tensor:
    """A scalar that depends on every entry of the output differently."""
    parts = [t for t in tensors(output) if t.is_floating_point() and t.requires_grad]
    return sum((t * torch.linspace(-1, 1, t.numel()).view_as(t)).sum() for t in parts)  # type: ignore[return-value]


def gradients(model: Model, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of all parameters; cleared from the module afterwards."""
    scalar(model.module(**inputs)).backward()
    out = {n: p.grad for n, p in model.module.named_parameters() if p.grad is not None}
    model.module.zero_grad(set_to_none=True)
    return out


@EVERY
def test_reading_every_site_changes_no_bit_of_the_output(name: str) -> None:
    model, inputs = made(name), TABLE[name].inputs()
    assert model.family == TABLE[name].family
    with torch.no_grad():
        expected = model.module(**inputs)
        before_hooks = hooks(model.module)  # some models install their own on their first pass
        with model.read("*") as acts:
            assert same(model.module(**inputs), expected)
        sites = model.sites()
        assert len(sites) >= 20
        for site in sites:  # every one fired, once, with as many axes as it names
            (tensor,) = acts.calls(site.name)
            assert tensor.numel() > 0, site.name
            assert tensor.ndim == len(site.axes), (site.name, site.axes, tuple(tensor.shape))
            assert len(set(site.axes)) == len(site.axes), site.name
        assert hooks(model.module) == before_hooks
        assert same(model.module(**inputs), expected)


@EVERY
def test_every_identity_holds(name: str) -> None:
    model = made(name)
    errors = model.check(TABLE[name].inputs())
    assert all(error < 1e-6 for error in errors.values())
    if name not in ("unet2d", "autoencoder-kl"):  # those two have convolutions and no layers with a residual sum
        assert len(errors) >= 2


@pytest.mark.parametrize("name", [n for n in TABLE if n != "rwkv"])  # its own backward pass fails, hooks or none
def test_reading_every_site_changes_no_bit_of_the_gradients(name: str) -> None:
    model, inputs = made(name), TABLE[name].inputs()
    expected = gradients(model, inputs)
    assert len(expected) > 10
    with model.read("*"):
        read = gradients(model, inputs)
    assert read.keys() == expected.keys()
    assert [n for n in expected if not torch.equal(read[n], expected[n])] == []
    with model.read("*", grad=True) as acts:
        read = gradients(model, inputs)
    assert [n for n in expected if not torch.equal(read[n], expected[n])] == []
    without = [s.name for s in model.sites() if not any(g is not None for g in acts.box(s.name).grads)]
    # Indices have no gradient; a contrastive tower's last states and a captioner's pooled state reach no output.
    assert [n for n in without if not re.search(r"router\.experts$|^vision\.final_norm$", n)] == []
    assert same(gradients(model, inputs), expected)


@EVERY
def test_sites_equal_what_a_plain_hook_sees(name: str) -> None:
    model, inputs = made(name), TABLE[name].inputs()
    plain = [e for e in model._resolver.layout.entries.values() if not e.tap.views and e.tap.side != "attention"]
    assert len(plain) >= 5
    seen: dict[str, list[Tensor]] = {}
    handles = []
    for entry in plain:
        module = model.module.get_submodule(entry.tap.path)

        def note(_: nn.Module, args: Any, kwargs: Any, output: Any = None, e: Any = entry) -> None:
            value = output if e.tap.side == "out" else (*args, *kwargs.values())
            seen.setdefault(e.name, []).append(first_tensor(value, e.tap.key))

        if entry.tap.side == "out":
            handles.append(module.register_forward_hook(note, with_kwargs=True))
        else:
            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        with torch.no_grad():
            model.module(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad(), model.read("*") as acts:
        model.module(**inputs)
    for entry in plain:
        assert torch.equal(acts[entry.name], seen[entry.name][entry.tap.call or 0]), entry.name


def states(output: Any) -> dict[str, tuple[Tensor, ...]]:
    """Hidden states by the prefix of our names."""
    found = {"": "hidden_states", "encoder.": "encoder_hidden_states", "decoder.": "decoder_hidden_states"}
    return {prefix: output[key] for prefix, key in found.items() if output.get(key) is not None}


# Models of stages return other states; the diffusion models return none.
STATEFUL = [
    n for n in TABLE if n not in ("swin", "convnext", "resnet", "unet2d", "unet2d-condition", "dit", "autoencoder-kl")
]
LATE = ("mamba", "mamba2", "falcon_mamba", "rwkv")  # these list a layer's output first, the others its input


@pytest.mark.parametrize("name", STATEFUL)
def test_residual_stream_equals_output_hidden_states(name: str) -> None:
    model, inputs = made(name), TABLE[name].inputs()
    with torch.no_grad(), model.read("*") as acts:
        output = model.module(**inputs, output_hidden_states=True)
    found = states(output)
    if not found:  # a contrastive model returns its towers' outputs
        found = {"vision.": output.vision_model_output.hidden_states, "text.": output.text_model_output.hidden_states}
    for prefix, hidden in found.items():
        prefix = "text." if f"{prefix}layers.0.resid_pre" not in acts.names else prefix
        n = sum(bool(re.fullmatch(re.escape(prefix) + r"layers\.\d+\.resid_post", s)) for s in acts.names)
        assert len(hidden) == n + 1
        for i in range(n):
            side = "resid_post" if name in LATE else "resid_pre"
            assert torch.equal(acts[f"{prefix}layers.{i}.{side}"], hidden[i]), (prefix, i)
        for i in range(n - 1):
            assert torch.equal(acts[f"{prefix}layers.{i}.resid_post"], acts[f"{prefix}layers.{i + 1}.resid_pre"])


ATTENTIVE = [a.name for a in ALL if a.name not in (
    "falcon", "falcon-new", "falcon-sequential", "falcon-alibi", "mpt", "xglm", "mamba", "mamba2", "falcon_mamba",
    "rwkv", "swin",
    "convnext", "resnet", "unet2d", "unet2d-condition", "dit", "autoencoder-kl")]  # fmt: skip


@pytest.mark.parametrize("name", ATTENTIVE)
def test_pattern_equals_the_eager_model(name: str) -> None:
    """The pattern read under the default kernel is the eager attention's, and pattern times values is z."""
    model, inputs = made(name), TABLE[name].inputs()
    assert [s.name for s in model.sites("*") if s.name.endswith("attn.pattern")], name
    with torch.no_grad(), model.read("*") as acts:
        model.module(**inputs)
    expected = eager_weights(name, model, inputs)
    patterns = [n for n in acts.names if n.endswith("attn.pattern")]
    for site in patterns:
        pattern, stem = acts[site], site.removesuffix("pattern")
        torch.testing.assert_close(pattern, expected[site], atol=1e-5, rtol=0)
        values = acts[stem + "v"] if stem + "v" in acts.names else acts[stem + "v_proj"]
        values = values.repeat_interleave(pattern.shape[1] // values.shape[2], dim=2)
        z = torch.einsum("bhqk,bkhd->bqhd", pattern, values)
        torch.testing.assert_close(acts[stem + "z"], z, atol=1e-5, rtol=1e-5)
        if stem + "v" in acts.names and stem + "v_proj" in acts.names:
            assert torch.equal(acts[stem + "v"], acts[stem + "v_proj"])
        if stem + "scores" in acts.names and name != "gpt_oss":  # there a sink takes part of the mass
            torch.testing.assert_close(acts[stem + "scores"].softmax(-1), pattern, atol=1e-6, rtol=0)


def eager_weights(name: str, model: Model, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """By site, the attention weights that the attention modules of an eager twin return."""
    twin = TABLE[name].build()
    if hasattr(twin, "set_attn_implementation") and getattr(twin, "_supports_sdpa", False):
        twin.set_attn_implementation("eager")
    found: dict[str, list[Tensor]] = {}
    entries = {n: e for n, e in model._resolver.layout.entries.items() if n.endswith("attn.pattern")}
    for site, entry in entries.items():
        path = entry.tap.path.rsplit(".", 1)[0] if "dropout" in entry.tap.path else entry.tap.path

        def note(_: nn.Module, args: Any, output: Any, site: str = site) -> None:
            found.setdefault(site, []).extend(t for t in tensors(output)[1:] if t.ndim == 4)

        twin.get_submodule(path).register_forward_hook(note)
    needs = any("dropout" in e.tap.path for e in entries.values())
    with torch.no_grad():
        twin(**inputs, **({"output_attentions": True} if needs else {}))
    return {site: weights[-1] if entries[site].tap.call is None else weights[entries[site].tap.call]
            for site, weights in found.items()}  # fmt: skip
