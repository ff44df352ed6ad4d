"""Wrong uses: each gives one line that says what and where, what was expected and got, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import Letters, shared, tokens, vector
from torch import nn

import interneuron as inn
from interneuron.core import errors as e

SITE = "layers.0.resid_post"
IDS = tokens(2, 6)


@pytest.fixture(scope="module")
def model() -> Any:
    return inn.wrap(shared("llama"), tokenizer=Letters())


@pytest.fixture(scope="module")
def plain() -> Any:
    return inn.wrap(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))


@pytest.fixture(scope="module")
def vision() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    return inn.wrap(ViTForImageClassification(config).eval())


def read(m: Any, *sites: Any, inputs: Any = IDS, **options: Any) -> Any:
    with m.read(*sites, **options) as acts:
        m(inputs)
    return acts


def edit(m: Any, *edits: Any, inputs: Any = IDS) -> Any:
    with m.edit(*edits):
        return m(inputs)


Use = Callable[[Any, Any, Any, Path], Any]
ADD = inn.Add(SITE, vector())
# name: (use of model, plain module, vision model and folder), type, pieces of the message
WRONG: dict[str, tuple[Use, type[Exception], list[str]]] = {
    "unknown layer": (
        lambda m, p, v, f: m.read("layers.12.resid_post"),
        e.SiteNotFound,
        [
            "'layers.12.resid_post'",
            "LlamaForCausalLM (layers 0-1)",
            "Did you mean 'layers.1.resid_post'",
            "model.sites()",
        ],
    ),
    "misspelt site": (
        lambda m, p, v, f: m.read("layers.0.resid_pots"),
        e.SiteNotFound,
        ["Did you mean 'layers.0.resid_post'"],
    ),
    "glob of nothing": (
        lambda m, p, v, f: m.read("layers.*.nothing"),
        e.SiteNotFound,
        ["'layers.*.nothing' matches no site"],
    ),
    "range outside": (lambda m, p, v, f: m.read("layers.7-9.resid_post"), e.SiteNotFound, ["'layers.7-9.resid_post'"]),
    "bad address": (lambda m, p, v, f: m.read("model.layers.0:inside"), e.SiteNotFound, ["expected PATH:in, PATH:out"]),
    "no family": (lambda m, p, v, f: p.read(SITE), e.SiteNotFound, ["No family maps this module", "'0:out'"]),
    "no site": (lambda m, p, v, f: m.read(), e.SiteNotFound, ["give at least one"]),
    "wrong axis": (
        lambda m, p, v, f: m.site(SITE).at(head=0),
        e.AxisError,
        ["no axis 'head'", "('batch', 'pos', 'd_model')"],
    ),
    "pos of a map": (
        lambda m, p, v, f: m.site("layers.0.attn.pattern").at(pos=0),
        e.AxisError,
        ["'query' and 'key' instead of 'pos'"],
    ),
    "head outside": (
        lambda m, p, v, f: edit(m, inn.Scale("layers.0.attn.z", 2.0).at(head=4)),
        e.AxisError,
        ["head=4 is outside 0..3", "choose one inside"],
    ),
    "phase of an image": (
        lambda m, p, v, f: edit(p, inn.Scale("0:out", 2.0).at(phase="prompt"), inputs=torch.ones(1, 3)),
        e.AxisError,
        ["no position axis", "phase='prompt'"],
    ),
    "unknown phase": (
        lambda m, p, v, f: ADD.at(phase="later"),
        e.PositionError,
        ["'later' is unknown", "('all', 'prompt', 'generated')"],
    ),
    "before the start": (lambda m, p, v, f: edit(m, ADD.at(pos=-9)), e.PositionError, ["pos=-9", "row 0", "6 tokens"]),
    "text not in the prompt": (
        lambda m, p, v, f: edit(m, ADD.at(pos="qqq"), inputs="abc"),
        e.PositionError,
        ["'qqq'", "'abc'"],
    ),
    "two-token Token": (
        lambda m, p, v, f: edit(m, ADD.at(pos=inn.Token("ab"))),
        e.PositionError,
        ["'ab' is 2 tokens", "use Span('ab')"],
    ),
    "ragged read": (
        lambda m, p, v, f: read(m, m.site(SITE).at(pos=inn.Token(inn_first()))),
        e.PositionError,
        ["do not stack", "read the whole site"],
    ),
    "edit never fired": (
        lambda m, p, v, f: close(m),
        e.SiteDidNotFire,
        ["Add at layers.0.resid_post never fired", "Run the model inside"],
    ),
    "position never matched": (
        lambda m, p, v, f: edit(m, ADD.at(pos=30)),
        e.SiteDidNotFire,
        ["never matched", "pos=30", "Choose positions"],
    ),
    "read before running": (lambda m, p, v, f: early(m), e.SiteDidNotFire, ["has not fired yet: run the model"]),
    "a site not read": (lambda m, p, v, f: read(m, SITE)["embed"], e.SiteNotFound, ["'embed' was not read here", SITE]),
    "gradient without grad": (
        lambda m, p, v, f: read(m, SITE).grad[SITE],
        e.SiteDidNotFire,
        ["no gradient", "grad=True"],
    ),
    "gradient under no_grad": (
        lambda m, p, v, f: no_grad_read(m),
        e.InputError,
        ["inside torch.no_grad()", "Leave no_grad"],
    ),
    "vector of another width": (
        lambda m, p, v, f: edit(m, inn.Add(SITE, vector(16))),
        e.ShapeError,
        ["width 16, the site 32", "use one made for this site"],
    ),
    "basis of another width": (
        lambda m, p, v, f: edit(m, inn.Project(SITE, vector(16))),
        e.ShapeError,
        ["basis has width 16, the site 32"],
    ),
    "value of another shape": (
        lambda m, p, v, f: edit(m, inn.Replace(SITE, torch.zeros(3, 5, 32))),
        e.ShapeError,
        ["(3, 5, 32)", "(2, 6, 32)"],
    ),
    "clamp of another shape": (
        lambda m, p, v, f: edit(m, inn.Clamp(SITE, vector(), torch.ones(3))),
        e.ShapeError,
        ["fits neither the site (2, 6, 32)"],
    ),
    "oblong weight": (
        lambda m, p, v, f: inn.Transport(SITE, torch.ones(3, 2)),
        e.ShapeError,
        ["(3, 2)", "expected [D, D] or [D]"],
    ),
    "bias of another width": (
        lambda m, p, v, f: inn.Transport(SITE, torch.ones(3), torch.ones(2)),
        e.ShapeError,
        ["(2,)", "expected [3]"],
    ),
    "NaN vector": (
        lambda m, p, v, f: inn.Add(SITE, torch.tensor([1.0, torch.nan])),
        e.EditError,
        ["vector of Add holds NaN", "Check how"],
    ),
    "NaN strength": (
        lambda m, p, v, f: float("nan") * inn.Ablate(SITE),
        e.EditError,
        ["the strength is nan", "finite"],
    ),
    "dependent basis": (
        lambda m, p, v, f: inn.Project(SITE, torch.ones(2, 4)),
        e.EditError,
        ["2 rows", "not independent", "drop"],
    ),
    "more rows than width": (
        lambda m, p, v, f: inn.Project(SITE, torch.randn(5, 4)),
        e.EditError,
        ["5 rows", "width 4"],
    ),
    "empty basis": (
        lambda m, p, v, f: inn.Project(SITE, torch.ones(0, 4)),
        e.ShapeError,
        ["(0, 4)", "at least one row"],
    ),
    "zero direction": (lambda m, p, v, f: inn.Clamp(SITE, torch.zeros(4), 1.0), e.ShapeError, ["(4,)", "non-zero [D]"]),
    "unknown ablation": (
        lambda m, p, v, f: inn.Ablate(SITE, "average"),
        e.EditError,
        ["'average'", "'zero', 'mean' or 'resample'"],
    ),
    "value ignored": (
        lambda m, p, v, f: inn.Ablate(SITE, "zero", vector()),
        e.EditError,
        ["would be ignored", "how='mean' or Replace"],
    ),
    "resample one row": (
        lambda m, p, v, f: edit(m, inn.Ablate(SITE, "resample"), inputs=IDS[:1]),
        e.EditError,
        ["batch of 1", "give value="],
    ),
    "mean of one": (
        lambda m, p, v, f: edit(m, inn.Ablate(SITE, "mean"), inputs=IDS[:1, :1]),
        e.EditError,
        ["averages over one position", "give value="],
    ),
    "gate of wrong shape": (
        lambda m, p, v, f: edit(m, ADD.when(lambda x: torch.ones(3, dtype=torch.bool))),
        e.EditError,
        ["the gate at layers.0.resid_post", "(3,)", "(2, 6, 32)"],
    ),
    "gate of numbers": (
        lambda m, p, v, f: edit(m, ADD.when(lambda x: x[..., 0])),
        e.EditError,
        ["torch.float32", "expected booleans"],
    ),
    "two gates": (
        lambda m, p, v, f: ADD.when(inn.Above(vector())).when(inn.Above(vector())),
        e.EditError,
        ["already has a gate", "combine"],
    ),
    "function of wrong shape": (
        lambda m, p, v, f: edit(m, inn.Apply(SITE, lambda x: x[:, 0])),
        e.ShapeError,
        ["(2, 32)", "(2, 6, 32)", "keep the shape"],
    ),
    "function of wrong dtype": (
        lambda m, p, v, f: edit(m, inn.Apply(SITE, lambda x: x.double())),
        e.EditError,
        ["float64", "float32", "cast inside"],
    ),
    "function of nothing": (
        lambda m, p, v, f: edit(m, inn.Apply(SITE, lambda x: (x,))),
        e.EditError,
        ["returned tuple", "Tensor of shape (2, 6, 32)"],
    ),
    "not an edit": (lambda m, p, v, f: m.edit("layers.0"), e.EditError, ["got str", "inn.Add(site, v)"]),
    "site with a selection": (
        lambda m, p, v, f: m.edit(inn.Scale(m.site(SITE).at(pos=0), 2.0)),
        e.InputError,
        ["put it on the edit", ".at(...)"],
    ),
    "lambda saved": (
        lambda m, p, v, f: inn.Apply(SITE, torch.tanh).save(f),
        e.EditError,
        ["cannot be saved", "run code", "Express it with Add"],
    ),
    "no edit there": (
        lambda m, p, v, f: inn.load_edit(f / "none"),
        e.ArtifactError,
        ["no edit can be read", "edit.json"],
    ),
    "pickle for safetensors": (lambda m, p, v, f: pickled(f), e.UnsafeFile, [".safetensors", "pickle"]),
    "buffer of another shape": (
        lambda m, p, v, f: read(m, SITE, to={SITE: torch.empty(2, 5, 32)}),
        e.ShapeError,
        ["(2, 5, 32)", "(2, 6, 32)", "one buffer per batch shape"],
    ),
    "buffer of another name": (
        lambda m, p, v, f: m.read(SITE, to={"embed": torch.empty(1)}),
        e.ShapeError,
        ["['embed']", f"['{SITE}']", "one buffer per site"],
    ),
    "two selections": (
        lambda m, p, v, f: m.read(SITE, m.site(SITE).at(pos=0)),
        e.AxisError,
        ["named twice with different selections", "nested reads"],
    ),
    "text for a vision model": (
        lambda m, p, v, f: v("a cat"),
        e.InputError,
        ["takes images, got text 'a cat'", "[batch, channel, height, width]"],
    ),
    "tokens for a vision model": (lambda m, p, v, f: v(IDS), e.InputError, ["takes images, got torch.int64"]),
    "image for a language model": (
        lambda m, p, v, f: m(torch.zeros(1, 3, 8, 8)),
        e.InputError,
        ["takes token ids", "(1, 3, 8, 8)"],
    ),
    "text without a tokenizer": (
        lambda m, p, v, f: inn.wrap(shared("gpt2"))("abc"),
        e.InputError,
        ["no tokenizer", "inn.wrap(module, tokenizer=...)"],
    ),
    "empty text": (lambda m, p, v, f: m(""), e.InputError, ["has no tokens", "at least one"]),
    "one row of ids": (lambda m, p, v, f: m(IDS[0]), e.InputError, ["(6,)", "Use ids[None]"]),
    "a number for input": (lambda m, p, v, f: m(3.5), e.InputError, ["was given float", "expected text"]),
    "generate without a head": (
        lambda m, p, v, f: p.generate(IDS),
        e.InputError,
        ["Sequential cannot generate", "head"],
    ),
    "a mask twice": (
        lambda m, p, v, f: m.generate(["ab"], attention_mask=torch.ones(1, 2)),
        e.InputError,
        ["['attention_mask'] twice"],
    ),
    "compiled": (
        lambda m, p, v, f: inn.wrap(torch.compile(nn.Linear(2, 2))),
        e.UnsupportedModel,
        ["torch.compile", "Wrap the original module"],
    ),
    "compiled inside": (
        lambda m, p, v, f: inn.wrap(nn.Sequential(torch.compile(nn.Linear(2, 2)))),
        e.UnsupportedModel,
        ["0 is compiled", "_orig_mod"],
    ),
    "two wraps at once": (
        lambda m, p, v, f: twice(m),
        e.UnsupportedModel,
        ["another wrap of the same module", "wrap a module once"],
    ),
    "no such folder": (lambda m, p, v, f: inn.load(str(f / "none")), e.InputError, ["no such folder", "config.json"]),
    "no facts": (lambda m, p, v, f: p.d_model, e.InputError, ["Sequential does not say its d_model"]),
}


def inn_first() -> int:
    """A token that the first row holds and the second does not."""
    return next(int(t) for t in IDS[0] if t not in IDS[1])


def close(m: Any) -> None:
    """Open and leave a context without running anything."""
    with m.edit(ADD):
        pass


def early(m: Any) -> Any:
    with m.read(SITE) as acts:
        return acts[SITE]


def no_grad_read(m: Any) -> Any:
    with torch.no_grad():
        return read(m, SITE, grad=True)


def pickled(folder: Path) -> Any:
    ADD.save(folder)
    next(folder.glob("*.safetensors")).write_bytes(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.")
    return inn.load_edit(folder)


def twice(m: Any) -> Any:
    with m.read("layers.0.attn.pattern"), inn.wrap(m.module).read("layers.0.attn.pattern"):
        pass


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_use_is_taught(model: Any, plain: Any, vision: Any, tmp_path: Path, name: str) -> None:
    use, error, pieces = WRONG[name]
    with pytest.raises(error) as caught:
        use(model, plain, vision, tmp_path)
    message = str(caught.value)
    assert "\n" not in message, "one line"
    assert len(message) < 500
    for piece in pieces:
        assert piece in message, message
    assert isinstance(caught.value, e.InterneuronError)
    assert model._engine.sessions == 0


def test_there_are_enough_of_them() -> None:
    assert len(WRONG) >= 60
