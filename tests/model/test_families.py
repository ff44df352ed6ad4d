"""The family files: small, all tried, and guarded: a wrong map is an error, never a wrong number."""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from architectures_more import ALL, Architecture

from interneuron.core.errors import EditError, SelfCheckFailed, SiteNotFound
from interneuron.model import families
from interneuron.model.edits import Add, Replace
from interneuron.model.family import Family, Stack, all_families, family_of
from interneuron.model.load import wrap
from interneuron.model.sites import AXES

FOLDER = Path(next(iter(families.__path__)))
TABLE: dict[str, Architecture] = {a.name: a for a in ALL}
DOCS = Path(__file__).resolve().parents[2] / "docs" / "families.md"


@pytest.mark.parametrize(
    "path", sorted(p for p in FOLDER.glob("*.py") if p.name != "__init__.py"), ids=lambda p: p.stem
)
def test_a_family_file_is_small_and_declares_families(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert ast.get_docstring(ast.parse(text))
    assert "FAMILIES" in text


def test_names_are_unique_and_types_are_served_once_per_variant() -> None:
    found = all_families()
    assert len({f.name for f in found}) == len(found)
    keys = [(kind, str(dict(f.when))) for f in found for kind in (*f.model_types, *f.classes)]
    assert len(set(keys)) == len(keys)


def test_every_family_type_and_equation_is_tried_on_some_architecture() -> None:
    served: set[str] = set()
    kinds: set[str] = set()
    checked: set[tuple[str, str]] = set()
    for architecture in ALL:
        module = architecture.build()
        model = wrap(module)
        for part in (module, *module.modules()):
            family = family_of(part)
            if family is not None:
                served.add(family.name)
                kinds.add(getattr(getattr(part, "config", None), "model_type", None) or type(part).__name__)
        checked |= {(str(model.family), name.split(": ", 1)[1]) for name in model.check(architecture.inputs())}
    assert {f.name for f in all_families()} - served == set()
    assert {kind for f in all_families() for kind in f.model_types} - kinds == set()
    stated = {(f.name, e) for f in all_families() for s in f.stacks for e in s.equations}
    inside = {
        (f.name, e)
        for f in all_families()
        for s in f.stacks
        for e in s.equations
        if f.name.startswith(("clip", "siglip"))
    }
    assert stated - checked - inside == set()


def test_the_table_of_axes_holds_no_name_that_no_family_uses() -> None:
    used = {n for f in all_families() for s in f.stacks for n in s.layer} | {
        n.split(".")[-1] for f in all_families() for n in f.root
    }
    used |= {n.replace("xattn.", "attn.") for n in used} | {f"attn.{x}" for x in ("q", "k", "v", "scores", "pattern")}
    assert set(AXES) - used <= {"conv", "class_logits"}


def swapped(family: Family, site: str, tap: Any) -> Family:
    """The family with one site of its stacks pointing somewhere else."""
    stacks = tuple(
        dataclasses.replace(s, layer={**s.layer, site: tap} if site in s.layer else s.layer) for s in family.stacks
    )
    return dataclasses.replace(family, stacks=stacks)


RESIDUAL = [a.name for a in ALL if a.family in (
    "llama", "granite", "olmo2", "gemma2", "glm4", "gpt2", "gpt_neox", "gptj", "bloom", "falcon", "mpt", "opt", "bert",
    "deberta-v2", "mixtral", "deepseek_v3", "bamba", "t5", "bart", "mbart", "vit", "beit", "dinov2",
    "modernbert")]  # fmt: skip


@pytest.mark.parametrize("name", RESIDUAL)
@pytest.mark.parametrize("site", ["attn.contribution", "mlp.contribution", "resid_mid", "resid_post", "resid_pre"])
def test_a_wrong_map_is_an_error(name: str, site: str) -> None:
    module = TABLE[name].build()
    family = family_of(module)
    assert family is not None
    if not any(site in s.layer for s in family.stacks):
        pytest.skip("this block has no such tensor")
    other = {"resid_pre": "norm1", "attn.contribution": "mlp.out", "mlp.contribution": "attn.out",
             "resid_mid": "resid_pre",
             "resid_post": "mlp.out"}[site]  # fmt: skip
    layer = next(s.layer for s in family.stacks if site in s.layer)
    tap = layer.get(other, layer["mlp.out"])
    model = wrap(module, family=swapped(family, site, tap))
    with pytest.raises(SelfCheckFailed, match="family"):
        model.check(TABLE[name].inputs())


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo2", "olmo3", "glm4", "exaone4", "granite", "beit", "dinov2"])
def test_the_raw_output_is_not_taken_for_the_contribution(name: str) -> None:
    module, inputs = TABLE[name].build(), TABLE[name].inputs()
    model = wrap(module)
    with torch.no_grad(), model.read("layers.*.attn.*", "layers.*.mlp.*") as acts:
        module(**inputs)
    assert not torch.allclose(acts["layers.0.attn.out"], acts["layers.0.attn.contribution"], atol=1e-3)
    assert not torch.allclose(acts["layers.0.mlp.out"], acts["layers.0.mlp.contribution"], atol=1e-3)
    family = family_of(module)
    assert family is not None
    raw = family.stacks[0].layer["attn.out"]
    wrong = wrap(TABLE[name].build(), family=swapped(family, "attn.contribution", raw))
    with pytest.raises(SelfCheckFailed), wrong.read("layers.0.attn.contribution"):  # by itself, on first use
        pass


def test_wrong_experts_and_wrong_patterns_are_errors() -> None:
    module = TABLE["mixtral"].build()
    family = family_of(module)
    assert family is not None
    wrong = wrap(module, family=swapped(family, "router.logits", "mlp.gate:out.1 | tokens"))
    with pytest.raises((SelfCheckFailed, RuntimeError)):
        wrong.check()
    module = TABLE["gptj"].build()
    family = family_of(module)
    assert family is not None
    wrong = wrap(module, family=swapped(family, "attn.pattern", "attn.q_proj:out | heads"))
    with pytest.raises(SelfCheckFailed, match=r"sum attn\.pattern"):
        wrong.check()


def test_a_bare_base_model_has_the_same_names() -> None:
    whole = TABLE["llama"].build()
    base = wrap(whole.model)
    names = {s.name for s in base.sites()}
    assert names == {s.name for s in wrap(whole).sites()} - {"logits"}
    with torch.no_grad(), base.read("*") as acts:
        whole.model(**TABLE["llama"].inputs())
    assert acts["layers.1.mlp.hidden"].shape == (2, 7, 48)


def test_a_read_only_site_refuses_edits_and_a_copied_one_takes_them() -> None:
    model = wrap(TABLE["mamba"].build())
    inputs = TABLE["mamba"].inputs()
    with pytest.raises(EditError, match="read but not edited"), model.edit(Add("layers.0.ssm.x", torch.ones(64))):
        model(inputs)
    falcon = wrap(TABLE["falcon"].build())
    inputs = TABLE["falcon"].inputs()
    with torch.no_grad():
        before = falcon(inputs).logits
        with falcon.read("layers.0.mlp.out") as acts:
            falcon(inputs)
        with falcon.edit(Replace("layers.0.mlp.out", acts["layers.0.mlp.out"])):
            assert torch.equal(falcon(inputs).logits, before)
        with falcon.edit(Add("layers.0.mlp.out", torch.ones(32))):
            assert not torch.allclose(falcon(inputs).logits, before)


@pytest.mark.parametrize(
    "name",
    [
        "gpt_bigcode",
        "gpt_neox",
        "codegen",
        "falcon-new",
        "phi3",
        "deepseek_v2",
        "opt",
        "mixtral",
        "dinov2",
        "beit",
        "granite",
    ],
)
def test_replacing_every_site_by_itself_changes_nothing(name: str) -> None:
    model, inputs = wrap(TABLE[name].build()), TABLE[name].inputs()
    with torch.no_grad():
        expected = model(inputs).logits
        with model.read("*") as acts:
            model(inputs)
        with model.edit(*(Replace(s, acts[s]) for s in acts.names if not s.endswith("router.experts"))):
            assert torch.equal(model(inputs).logits, expected)


def test_edits_through_views_reach_only_their_part() -> None:
    """An edit of head 1 of the keys leaves queries, values and the other heads of a fused projection alone."""
    for name in ("gpt_bigcode-heads", "gpt_neox", "codegen", "falcon-new", "phi3", "bloom"):
        model, inputs = wrap(TABLE[name].build()), TABLE[name].inputs()
        parts = [f"layers.0.attn.{x}_proj" for x in "qkv"]
        with torch.no_grad(), model.read(*parts) as acts:
            model(inputs)
            before = {p: acts[p].clone() for p in parts}
            with model.edit(Add(parts[1], torch.ones(before[parts[1]].shape[-1])).at(head=1)):
                model(inputs)
        assert torch.equal(acts[parts[0]], before[parts[0]])
        assert torch.equal(acts[parts[2]], before[parts[2]])
        change = acts[parts[1]] - before[parts[1]]
        torch.testing.assert_close(change[:, :, 1], torch.ones_like(change[:, :, 1]))
        assert torch.equal(change[:, :, 0], torch.zeros_like(change[:, :, 0]))


def test_the_documented_family_works() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    assert len(blocks) == 2
    assert len(blocks[1].splitlines()) <= 60
    scope: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(compile(blocks[0], "docs", "exec"), scope)
    assert scope["acts"]["blocks.1:out"].shape == (2, 5, 16)
    assert scope["model"].family is None
    with pytest.raises(SiteNotFound, match="No family maps this module"):
        scope["model"].read("layers.0.resid_post")
    exec(compile(blocks[1], "docs", "exec"), scope)
    model = scope["model"]
    assert scope["acts"]["layers.2.mlp.hidden"].shape == (2, 5, 64)
    assert len(model.check({"x": scope["x"]})) == 5  # three sums, two links
    assert {s.name for s in model.sites("layers.0.*")} == {f"layers.0.{n}" for n in scope["MIXER"].stacks[0].layer}
    wrong = wrap(scope["Mixer"](), family=swapped(scope["MIXER"], "mlp.contribution", "down:out"))
    with pytest.raises(SelfCheckFailed):
        wrong.check({"x": scope["x"]})


def test_a_family_of_ones_own_is_one_object() -> None:
    """The smallest map: nothing but a stack, for a module that no family knows."""
    module = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    family = Family("three", stacks=(Stack("1", {"mlp.pre": "0:out @ batch,d_mlp"}, equations=()),))
    model = wrap(module, family=family)
    with model.read("layers.0.mlp.pre") as acts:
        module(torch.ones(2, 3))
    assert acts["layers.0.mlp.pre"].shape == (2, 4)


NAMES = {
    # TransformerLens
    "hook_embed": "embed",
    "blocks.1.hook_resid_pre": "layers.1.resid_pre",
    "blocks.1.hook_resid_mid": "layers.1.resid_mid",
    "blocks.1.hook_resid_post": "layers.1.resid_post",
    "blocks.1.hook_attn_out": "layers.1.attn.contribution",
    "blocks.1.attn.hook_out": "layers.1.attn.out",
    "blocks.1.hook_mlp_out": "layers.1.mlp.contribution",
    "blocks.1.mlp.hook_out": "layers.1.mlp.out",
    "blocks.0.attn.hook_q": "layers.0.attn.q_proj",
    "blocks.0.attn.hook_k": "layers.0.attn.k_proj",
    "blocks.0.attn.hook_v": "layers.0.attn.v_proj",
    "blocks.0.attn.hook_z": "layers.0.attn.z",
    "blocks.0.attn.hook_pattern": "layers.0.attn.pattern",
    "blocks.0.attn.hook_attn_scores": "layers.0.attn.scores",
    "blocks.0.ln1.hook_normalized": "layers.0.norm1",
    "ln_final.hook_normalized": "final_norm",
    "unembed.hook_out": "logits",
    # interp-engine
    "resid_post.1": "layers.1.resid_post",
    "attn_probs.1": "layers.1.attn.pattern",
    "attn_out.0": "layers.0.attn.out",
    "attn_out_post.0": "layers.0.attn.contribution",
    "mlp_out_post.0": "layers.0.mlp.contribution",
    "value.0": "layers.0.attn.v",
    "lm_head": "logits",
    # nnterp
    "layers_output[1]": "layers.1.resid_post",
    "layers_input[1]": "layers.1.resid_pre",
    "attentions_output[0]": "layers.0.attn.out",
    "mlps_output[0]": "layers.0.mlp.out",
    "token_embeddings": "embed",
}
MORE = {
    "llama": {"blocks.0.mlp.hook_pre": "layers.0.mlp.gate", "blocks.0.mlp.hook_post": "layers.0.mlp.hidden",
              "mlp_pre.0": "layers.0.mlp.gate", "mlp_act.0": "layers.0.mlp.hidden",
              "blocks.0.attn.hook_rot_q": "layers.0.attn.q",
              "model.layers.1:out": "layers.1.resid_post", "model.layers.1": "layers.1.resid_post"},
    "gpt2": {"blocks.0.mlp.hook_pre": "layers.0.mlp.pre", "blocks.0.mlp.hook_post": "layers.0.mlp.hidden",
             "mlp_pre.0": "layers.0.mlp.pre", "transformer.h.1:out": "layers.1.resid_post"},
    "mixtral": {"blocks.0.mlp.hook_router_scores": "layers.0.router.logits",
                "router_logits.0": "layers.0.router.logits",
                "blocks.0.mlp.hook_expert_indices": "layers.0.router.experts",
                "expert_indices.1": "layers.1.router.experts"},
}  # fmt: skip


@pytest.mark.parametrize("name", list(MORE))
def test_names_of_other_tools_mean_the_same_place(name: str) -> None:
    model, inputs = wrap(TABLE[name].build()), TABLE[name].inputs()
    table = {**NAMES, **MORE[name]}
    with torch.no_grad(), model.read("*") as acts:
        model(inputs)
    with torch.no_grad(), model.read(*table) as foreign:
        model(inputs)
    for other, ours in table.items():
        assert torch.equal(foreign[other], acts[ours]), other
        if ":" not in other and "." in ours and other != "model.layers.1":
            assert model.site(other).name == ours
