"""Modules of odd shapes: reads and edits find their tensor, put it back in the same kind of output, or say why not."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from typing import Any, NamedTuple

import pytest
import torch
from tiny_models import shared, tiny_llama, tokens, vector
from torch import Tensor, nn

import interneuron as inn
from interneuron.core.errors import InputError, ShapeError, SiteDidNotFire, UnsupportedModel

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(5))


class Pair(NamedTuple):
    name: str
    hidden: Tensor


@dataclasses.dataclass(frozen=True)
class Box:
    name: str
    hidden: Tensor


def defaulted(x: Tensor) -> Any:
    out: Any = collections.defaultdict(list)
    out.update(name="n", hidden=x)
    return out


OUTPUTS: dict[str, Any] = {
    "tensor": lambda x: x,
    "tuple": lambda x: ("n", x, None),
    "list": lambda x: [None, x],
    "namedtuple": lambda x: Pair("n", x),
    "dataclass": lambda x: Box("n", x),
    "dict": lambda x: {"name": "n", "hidden": x},
    "ordered": lambda x: collections.OrderedDict(name="n", hidden=x),
    "default": defaulted,
    "struct": lambda x: torch.return_types.max((x, x.argmax(-1, keepdim=True))),
}


def tensor_in(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    parts = value.values() if isinstance(value, dict) else vars(value).values() if isinstance(value, Box) else value
    return next(part for part in parts if isinstance(part, Tensor))


class Inner(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        return OUTPUTS[self.kind](x * 2)


class Outer(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner = Inner(kind)
        self.kinds: list[type] = []

    def forward(self, x: Tensor) -> Tensor:
        value = self.inner(x)
        self.kinds.append(type(value))
        return tensor_in(value) + 1


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_tensor_of_any_output_is_read_and_replaced(kind: str) -> None:
    module = Outer(kind)
    model = inn.wrap(module)
    with model.read("inner:out", "inner:in") as acts:
        assert torch.equal(model(X), X * 2 + 1)
    assert torch.equal(acts["inner"], X * 2)
    assert acts["inner:in"] is X
    with model.read("inner:out") as outer, model.edit(inn.Scale("inner:out", 3.0)), model.read("inner:out") as inner:
        assert torch.equal(model(X), X * 6 + 1)
    assert torch.equal(outer["inner:out"], X * 6)
    assert outer["inner:out"] is inner["inner:out"]
    assert torch.equal(model.run(X, edit=inn.Add("inner:in", torch.ones(3))).output, (X + 1) * 2 + 1)
    assert len(set(module.kinds)) == 1, "an edit changed the type of the output"
    assert torch.equal(model(X), X * 2 + 1)


def test_named_and_numbered_parts() -> None:
    for kind, key in (
        ("namedtuple", "hidden"),
        ("namedtuple", 1),
        ("dataclass", "hidden"),
        ("dict", "hidden"),
        ("tuple", 1),
    ):
        model = inn.wrap(Outer(kind))
        with model.read(f"inner:out.{key}") as acts, model.edit(inn.Scale(f"inner:out.{key}", 0.0)):
            assert torch.equal(model(X), torch.ones(2, 3))
        assert not acts[f"inner:out.{key}"].any()
    with (
        pytest.raises(SiteDidNotFire, match=r"inner:out.other did not fire"),
        inn.wrap(Outer("dict")).read("inner:out.other") as acts,
    ):
        inn.wrap(Outer("dict"))(X)


class Opaque:
    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def test_an_output_nothing_can_be_put_into_is_refused() -> None:
    class Hide(nn.Module):
        def forward(self, x: Tensor) -> Opaque:
            return Opaque(x)

    model = inn.wrap(nn.Sequential(Hide()))
    assert torch.equal(model.run(X, read="0:out.hidden").acts["0:out.hidden"], X)
    with pytest.raises(ShapeError, match=r"cannot put a tensor into an output of type Opaque: edit an inner module"):
        model.run(X, edit=inn.Scale("0:out.hidden", 2.0))


def test_arguments_by_name_and_by_position() -> None:
    class Named(nn.Module):
        def forward(self, *, scale: float, x: Tensor, shift: Tensor) -> Tensor:
            return x * scale + shift

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.named = Named()

        def forward(self, x: Tensor) -> Tensor:
            return self.named(scale=2.0, x=x, shift=torch.ones(3))

    model = inn.wrap(Net())
    with model.read("named:in", "named:in.shift") as acts:
        model(X)
    assert acts["named:in"] is X
    assert torch.equal(acts["named:in.shift"], torch.ones(3))
    assert torch.equal(model.run(X, edit=inn.Scale("named:in.shift", 5.0)).output, X * 2 + 5)
    assert torch.equal(model.run(X, edit=inn.Scale("named:in.x", 0.0)).output, torch.ones(2, 3))


def test_in_place_modules_do_not_overwrite_what_was_read() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 3))
    model = inn.wrap(module)
    want = module[0](X)
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context(), model.read("0:out", "1:out") as acts:
            out = model(X)
        assert torch.equal(acts["0:out"], want)
        assert torch.equal(acts["1:out"], want.relu())
        assert torch.equal(out, module(X))
    with model.read("0:out", grad=True) as acts:
        model(X).sum().backward()
    hidden = want.detach().requires_grad_()
    module[2](hidden.relu()).sum().backward()
    assert torch.equal(acts.grad["0:out"], hidden.grad)
    assert torch.equal(model.run(X, edit=inn.Scale("0:out", -1.0)).output, module[2]((-want).relu()))


class Overwriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y += 100
        return y


def test_a_value_that_was_overwritten_is_an_error_and_a_copy_is_right() -> None:
    module = Overwriting()
    model = inn.wrap(module)
    with torch.no_grad(), model.read("first:out") as acts:
        model(X)
    with pytest.raises(ShapeError, match=r"first:out: the model overwrote this tensor in place.*to='cpu'"):
        acts["first:out"]
    want = module.first(X)
    with torch.no_grad(), model.read("first:out", to="cpu") as acts:
        model(X)
    assert torch.equal(acts["first:out"], want)
    with torch.inference_mode(), model.read("first:out") as acts:
        model(X)
    assert torch.equal(acts["first:out"], want)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step, self.unused, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.tied = self.step

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tied(self.step(x)))


def test_a_module_called_twice_gives_both_tensors() -> None:
    module = Twice()
    model = inn.wrap(module)
    with model.read("step:out", "tied:out") as acts:
        model(X)
    first, second = acts.calls("step:out")
    assert torch.equal(second, module.step(module.step(X)))
    assert torch.equal(first, module.step(X))
    assert all(a is b for a, b in zip(acts.calls("tied:out"), (first, second), strict=True))
    with pytest.raises(SiteDidNotFire, match=r"step:out gave 2 tensors in one pass.*acts.calls\('step:out'\)"):
        acts["step:out"]
    assert torch.equal(model.run(X, edit=inn.Scale("step:out", 0.0)).output, module.head(torch.zeros(2, 3)))
    with (
        pytest.raises(ShapeError, match="its buffer holds one"),
        model.read("step:out", to={"step:out": torch.empty(2, 3)}),
    ):
        model(X)
    with model.read("step:out", grad=True) as acts:
        model(X).sum().backward()
    with pytest.raises(SiteDidNotFire, match="2 gradients"):
        acts.grad["step:out"]


def test_a_module_never_called_is_an_error() -> None:
    model = inn.wrap(Twice())
    with pytest.raises(SiteDidNotFire, match="unused:out did not fire"), model.read("unused:out", "head:out"):
        model(X)
    with (
        pytest.raises(SiteDidNotFire, match="Scale at unused:out never fired"),
        model.edit(inn.Scale("unused:out", 2.0)),
    ):
        model(X)


def test_tied_weights_are_not_tied_activations() -> None:
    model = inn.wrap(shared("gpt2"))
    assert model.module.lm_head.weight is model.module.transformer.wte.weight
    with torch.no_grad(), model.read("embed", "lm_head:out") as acts:
        model(tokens())
    assert acts["embed"].shape == (2, 7, 32)
    assert acts["lm_head:out"].shape == (2, 7, 50)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_modules_are_read_once_and_edited_also_in_the_second_run(reentrant: bool) -> None:
    ids, site = tokens(), "layers.0.resid_post"
    edit = inn.Scale("layers.0.mlp.out", 0.5)
    plain = tiny_llama().train()
    with inn.wrap(plain).edit(edit):
        inn.wrap(plain)  # a second wrap of an idle module disturbs nothing
        plain(ids).logits.sum().backward()
    module = tiny_llama().train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        module.enable_input_require_grads()
    model = inn.wrap(module)
    with model.edit(edit), model.read("layers.0.mlp.hidden", site) as acts:
        model({"input_ids": ids, "use_cache": False}).logits.sum().backward()
    assert len(acts.calls(site)) == 1
    assert len(acts.calls("layers.0.mlp.hidden")) == 1
    for a, b in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


def test_half_precision_and_inference_mode() -> None:
    module = tiny_llama().to(torch.bfloat16)
    model = inn.wrap(module)
    with torch.inference_mode():
        want = module(tokens()).logits
        with model.read("*") as acts, model.edit(inn.Scale("layers.0.resid_post", 1.0)):
            assert torch.equal(model(tokens()).logits, want)
    assert all(acts[name].dtype == torch.bfloat16 for name in acts)
    with torch.no_grad(), model.edit(inn.Add("layers.0.resid_post", vector())):
        assert model(tokens()).logits.dtype == torch.bfloat16
    with (
        pytest.raises(InputError, match=r"read\(grad=True\) inside torch.no_grad"),
        torch.inference_mode(),
        model.read("embed", grad=True),
    ):
        pass


def test_compiled_modules_are_refused_whenever_they_were_compiled() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(UnsupportedModel, match="is compiled by torch.compile"):
        inn.wrap(torch.compile(module))
    with pytest.raises(UnsupportedModel, match=r"^1 is compiled"):
        inn.wrap(nn.Sequential(nn.Linear(3, 3), torch.compile(nn.Linear(3, 3))))
    model = inn.wrap(module)
    with model.read("0:out"):
        model(X)
    compiled = model.read("0:out")
    module.compile()
    with pytest.raises(UnsupportedModel, match="Sequential is compiled"):
        model.read("1:out")
    with pytest.raises(UnsupportedModel, match="Sequential is compiled"), compiled:  # known before, silent now
        pass


def test_a_module_spread_over_devices_by_accelerate_is_read_and_edited() -> None:
    accelerate = pytest.importorskip("accelerate")
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).eval()
    want = module(X)
    accelerate.dispatch_model(module, device_map={"0": "cpu", "1": "cpu"}, force_hooks=True)
    model = inn.wrap(module)
    with model.read("0:out") as acts:
        assert torch.equal(model(X), want)
    assert acts["0:out"].shape == (2, 3)


# -- reading --------------------------------------------------------------------------------------------------------


def test_buffers_take_what_was_read_in_their_own_dtype_without_new_memory() -> None:
    model = inn.wrap(shared("llama"))
    sites = ["layers.0.resid_post", "layers.1.attn.z"]
    with torch.no_grad(), model.read(sites) as plain:
        model(tokens())
    buffers = {name: torch.empty_like(plain[name], dtype=torch.float64) for name in sites}
    addresses = {name: buffer.data_ptr() for name, buffer in buffers.items()}
    for _ in range(2):
        with torch.no_grad(), model.read(sites, to=buffers) as acts:
            model(tokens())
        for name in sites:
            assert acts[name] is buffers[name]
            assert buffers[name].data_ptr() == addresses[name]
            assert torch.equal(acts[name], plain[name].double())
    with torch.no_grad(), model.read(sites, dtype=torch.bfloat16) as acts:
        model(tokens())
    assert torch.equal(acts[sites[0]], plain[sites[0]].bfloat16())
    with torch.no_grad(), model.read(sites) as acts, model.read(sites) as again:
        model(tokens())
    assert acts[sites[0]] is again[sites[0]], "a read without to= must not copy"


def test_gradients_equal_those_of_hand_hooked_tensors() -> None:
    for kind in ("llama", "gpt2"):
        module = shared(kind)
        model = inn.wrap(module)
        base = module.model if kind == "llama" else module.transformer
        block = (base.layers if kind == "llama" else base.h)[0]
        sites = {
            "layers.0.resid_post": block,
            "layers.0.mlp.out": block.mlp,
            "embed": base.embed_tokens if kind == "llama" else base.wte,
        }
        kept: dict[str, Tensor] = {}
        handles = [
            part.register_forward_hook(
                lambda m, a, out, name=name, kept=kept: kept.update({name: out[0] if isinstance(out, tuple) else out})
            )
            for name, part in sites.items()
        ]
        loss = module(tokens()).logits[:, -1, 7].sum()
        want = dict(zip(sites, torch.autograd.grad(loss, [kept[name] for name in sites]), strict=True))
        for handle in handles:
            handle.remove()
        with model.read(*sites, "layers.0.attn.z", "layers.0.attn.q_proj", grad=True) as acts:
            out = model(tokens()).logits
        out[:, -1, 7].sum().backward()
        module.zero_grad()
        for name in sites:
            assert torch.equal(acts.grad[name], want[name]), name
        assert acts.grad["layers.0.attn.z"].shape == acts["layers.0.attn.z"].shape
        frozen = [p for p in module.parameters() if p.requires_grad]
        for p in frozen:
            p.requires_grad_(False)
        with model.read(model.site("embed").at(pos=[0, 2]), grad=True) as acts:  # a model that needs no gradient itself
            model(tokens()).logits[:, -1, 7].sum().backward()
        for p in frozen:
            p.requires_grad_(True)
        torch.testing.assert_close(acts.grad["embed"], want["embed"][:, [0, 2]])


def test_integers_have_no_gradient_and_say_so() -> None:
    class Route(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argsort(-1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.route, self.line = Route(), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.line(x).gather(-1, self.route(x))

    model = inn.wrap(Net())
    with model.read("route:out", "line:out", grad=True) as acts:
        model(X).sum().backward()
    assert torch.equal(acts.grad["line:out"], torch.ones(2, 3))
    with pytest.raises(SiteDidNotFire, match="route:out has no gradient"):
        acts.grad["route:out"]
