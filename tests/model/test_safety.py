"""The caller's model after anything that can go wrong inside a context: as it was before."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import pytest
import torch
from tiny_models import BUILD, attention_modules, installed_hooks, shared, tokens, vector
from torch import Tensor, nn

import interneuron as inn

IDS = tokens(2, 6)


class Boom(Exception):
    pass


class State:
    """Everything of a module and of the process that a context must leave alone."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before = self.now()

    def now(self) -> dict[str, Any]:
        module = self.module
        return {
            "weights": {name: (id(p), p._version, p.clone()) for name, p in module.state_dict(keep_vars=True).items()},
            "grads": {name: (p.requires_grad, p.grad is None) for name, p in module.named_parameters()},
            "modes": [part.training for part in module.modules()],
            "hooks": installed_hooks(module),
            "configs": [id(part.config) for part in attention_modules(module)],
            "keys": [sorted(vars(part)) for part in module.modules()],
            "rng": torch.get_rng_state().clone(),
            "grad mode": torch.is_grad_enabled(),
        }

    def check(self) -> None:
        now = self.now()
        for key, value in self.before.items():
            if key == "weights":
                for name, (identity, version, tensor) in value.items():
                    assert now[key][name][:2] == (identity, version), name
                    assert torch.equal(now[key][name][2], tensor), name
            elif key == "rng":
                assert torch.equal(now[key], value)
            else:
                assert now[key] == value, key


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: Any) -> Any:
    module = BUILD[request.param]()
    part = attention_modules(module)[1]
    part.train()
    next(module.parameters()).requires_grad_(False)
    model = inn.wrap(module)
    model.module.eval()
    attention_modules(module)[1].train()
    return model


def explode(error: type[BaseException], after: int = 0) -> Any:
    """A function for Apply that fails at its call number `after`."""
    calls = iter(range(after))

    def fn(x: Tensor) -> Tensor:
        if next(calls, None) is None:
            raise error("boom")
        return x

    return fn


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt, SystemExit])
def test_an_exception_at_any_site_leaves_nothing_behind(model: Any, error: type[BaseException]) -> None:
    state = State(model.module)
    want = model.module(IDS).logits
    for site in model.sites():
        bad = inn.Apply(site.name, explode(error))
        with pytest.raises(error), model.edit(bad):
            model(IDS)
        state.check()
        outer, inner = (model.read("*"), inn.Scale(site.name, 1.0)), (model.edit(bad), model.read(site.name, to="cpu"))
        with pytest.raises(error), outer[0] as acts, model.edit(outer[1]), inner[0], inner[1]:
            model(IDS)
        assert acts is not None
        state.check()
    assert torch.equal(model.module(IDS).logits, want)
    state.check()


def test_an_exception_in_generate_sweep_and_run(model: Any) -> None:
    state = State(model.module)
    for site in ("embed", "layers.0.attn.pattern", "layers.1.attn.k", "layers.1.mlp.out", "logits"):
        for after in (0, 2):
            with pytest.raises(Boom), model.edit(inn.Apply(site, explode(Boom, after))):
                model.generate(IDS, max_new_tokens=4)
            state.check()
        bad = inn.Apply(site, explode(Boom))
        with pytest.raises(Boom):
            model.sweep(IDS, [None, bad], lambda x: x.mean())
        with pytest.raises(Boom):
            model.run(IDS, read="logits", edit=bad)
        with pytest.raises(Boom):
            model.run(IDS, edit=bad)
        state.check()
    with pytest.raises(Boom):
        model.sweep(IDS, [inn.Ablate("embed")], explode(Boom))
    state.check()
    assert all(anchor.stream.rows is None for anchor in model._engine.anchors)
    got = model.generate(IDS, max_new_tokens=3)
    assert torch.equal(got, model.module.generate(IDS, max_new_tokens=3))


def test_an_exception_in_the_body_the_gate_the_selection_or_on_entering(model: Any) -> None:
    state = State(model.module)
    edit = inn.Add("layers.0.resid_post", vector())
    with pytest.raises(Boom), model.read("*"), model.edit(edit):
        raise Boom
    with pytest.raises(Boom), model.edit(edit.when(explode(Boom))):
        model(IDS)
    with pytest.raises(ValueError, match="before the start"), model.edit(edit.at(pos=-9)):
        model(IDS)
    with pytest.raises(ValueError, match="width"), model.edit(inn.Add("layers.0.resid_post", vector(3))):
        model(IDS)
    with pytest.raises(RuntimeError, match="fire"), model.read("*"):
        pass
    with pytest.raises(ValueError, match="no_grad"), torch.no_grad(), model.read("*", grad=True):
        pass
    state.check()
    context = model.edit(edit)
    with pytest.raises(ValueError, match="already open"), context, context:
        pass
    state.check()
    with context:  # a context that has been left may be entered again
        model(IDS)
    with model.read("*") as acts:
        model(IDS)
    assert len(acts) > 30
    state.check()


def test_a_backward_pass_that_fails_leaves_nothing_behind(model: Any) -> None:
    state = State(model.module)
    with pytest.raises(Boom), model.read("layers.0.resid_post", "layers.1.attn.pattern", grad=True):
        loss = model(IDS).logits.sum()
        loss.register_hook(lambda g: explode(Boom)(g))
        loss.backward()
    state.check()


def test_an_early_stop_leaves_nothing_behind_and_later_modules_unused(model: Any) -> None:
    calls = []
    base = model.module.model if hasattr(model.module, "model") else model.module.transformer
    late = (base.layers if hasattr(base, "layers") else base.h)[1]
    handle = late.register_forward_pre_hook(lambda *a: calls.append(1))
    model.module.eval()
    state = State(model.module)
    run = model.run(IDS, read=["layers.0.resid_post", "layers.0.attn.pattern"])
    assert not calls
    state.check()
    with model.read("layers.0.resid_post", "layers.0.attn.pattern") as acts:
        want = model(IDS).logits
    for name in acts:
        assert torch.equal(run.acts[name], acts[name])
    calls.clear()
    assert torch.equal(run.output.logits, want)
    assert calls == [1]
    state.check()
    handle.remove()


def test_an_early_stop_never_cuts_off_what_others_need(model: Any) -> None:
    from transformers import DynamicCache

    model.module.eval()
    with model.read("logits") as outer, torch.no_grad():
        model.run(IDS, read="embed")
    assert outer["logits"].shape == (2, 6, 50)
    cache = DynamicCache()
    with torch.no_grad():
        run = model.run({"input_ids": IDS, "past_key_values": cache}, read="embed")
        assert cache.get_seq_length() == 6
        assert torch.equal(run.output.logits, model(IDS).logits)
    assert cache.get_seq_length() == 6


def test_a_module_called_twice_in_a_pass_is_not_cut_off() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.again(self.again(self.first(x))))

    module = Twice().eval()
    model, x, calls = inn.wrap(module), torch.randn(2, 3), []
    module.last.register_forward_pre_hook(lambda *a: calls.append(1))
    for expected in (1, 1, 1):  # the first run learns how often it is called, the next ones stop after that many
        run = model.run(x, read="again:out")
        assert len(run.acts.calls("again:out")) == 2
        assert len(calls) == expected
    assert torch.equal(run.output, module(x))


def test_a_thousand_contexts_leak_nothing(model: Any) -> None:
    edit = inn.Add("layers.0.resid_post", vector()).at(pos=-1)
    sites = ["layers.0.resid_post", "layers.1.attn.pattern", "layers.0.attn.q"]
    state = State(model.module)
    hooks = installed_hooks(model.module)

    def cycles(n: int) -> None:
        for i in range(n):
            with torch.no_grad(), model.read(sites) as acts, model.edit(edit):
                if i % 50 == 0:
                    model.module(IDS)
                else:  # as if the model had run: a thousand passes under tracemalloc would take minutes
                    for bound in [bound for point in model._engine.points.values() for bound in point.edits]:
                        bound.fired = bound.matched = True
                    for name in sites:
                        acts.box(name).values.append(IDS)
            if i % 50 == 0:
                assert installed_hooks(model.module) == hooks

    def held() -> tuple[int, int]:
        """Live objects of the process, and bytes that code of the engine allocated and still holds."""
        gc.collect()
        ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/interneuron/model/*")])
        return len(gc.get_objects()), sum(trace.size for trace in ours.traces)

    tracemalloc.start()
    try:
        cycles(20)  # what is made once, and kept for good reason
        before = held()
        cycles(1000)
        objects, size = (now - then for now, then in zip(held(), before, strict=True))
    finally:
        tracemalloc.stop()
    assert objects < 200, f"{objects} objects more after 1,000 contexts"
    assert size < 15_000, f"{size} bytes more after 1,000 contexts"
    assert not model._engine.points
    assert not model._engine.sinks
    assert model._engine.sessions == 0
    state.check()


def test_what_was_read_is_freed_with_the_activations(model: Any) -> None:
    """At once, by their last reference: a capture of many batches must not wait for the garbage collector."""
    import weakref

    model.run(IDS, read="layers.*")  # what is done once per model is behind us
    gc.collect()
    gc.disable()
    try:
        with torch.no_grad(), model.read("layers.*") as acts:
            model(IDS)
        run = model.run(IDS, read="layers.*")
        marks = [weakref.ref(found[name]) for found in (acts, run.acts) for name in found]
        assert marks
        del acts, run
        alive = [mark for mark in marks if mark() is not None]
    finally:
        gc.enable()
    assert not alive


def test_two_models_work_at_the_same_time_in_two_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    models = [inn.wrap(BUILD[kind](seed)) for kind, seed in (("llama", 0), ("llama", 1), ("gpt2", 2))]
    edits = [inn.Add("layers.0.resid_post", vector(seed=i)).at(pos=-1) for i in range(3)]

    def work(i: int) -> list[Tensor]:
        out = []
        for _ in range(10):
            with torch.no_grad(), models[i].edit(edits[i]), models[i].read("layers.*.attn.pattern", "logits") as acts:
                models[i](IDS)
            out += [acts[name] for name in acts]
        return out

    alone = [work(i) for i in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(work, range(3)))
    for a, b in zip(alone, together, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_self_check_disturbs_no_open_context() -> None:
    model = inn.wrap(BUILD["llama"]())
    path = "model.layers.0:out"
    with torch.no_grad(), model.read(path) as acts, model.edit(inn.Scale(path, 2.0).at(pos=-1)):
        model(IDS)
        before = acts[path]
        state = State(model.module)
        assert model.read("layers.0.attn.pattern", "layers.0.resid_post") is not None  # the first canonical use
        state.check()
        assert model._checked
        assert acts[path] is before
        model(IDS[:1])
        assert acts[path].shape[0] == 1


def test_wrapping_runs_nothing_and_a_closed_wrap_is_the_module_itself() -> None:
    module = BUILD["gpt2"]()
    state = State(module)
    model = inn.wrap(module)
    assert model.module is module
    state.check()
    assert torch.equal(model(IDS).logits, module(IDS).logits)
    model.check()
    state.check()


def test_hooks_of_the_caller_stay_where_they_are() -> None:
    module = shared("llama")
    model = inn.wrap(module)
    seen: list[Tensor] = []
    first = module.model.layers[0].register_forward_hook(
        lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad(), model.edit(inn.Scale("layers.0.resid_post", 2.0)), model.read("layers.0.resid_post") as acts:
        model(IDS)
    torch.testing.assert_close(acts["layers.0.resid_post"], seen[-1] * 2)
    assert len(module.model.layers[0]._forward_hooks) == 1
    first.remove()
