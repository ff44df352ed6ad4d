"""Edits: identity edits leave every bit, each kind does what its equation says, and they compose in order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import BUILD, Letters, shared, tokens, vector
from torch import Tensor, nn

import interneuron as inn
from interneuron.core.errors import EditError, ShapeError, SiteDidNotFire

IDS = tokens(2, 6)
PADDED = {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])}
SITE = "layers.0.resid_post"


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: Any) -> Any:
    return inn.wrap(shared(request.param), tokenizer=Letters())


@pytest.fixture(scope="module")
def llama() -> Any:
    return inn.wrap(shared("llama"), tokenizer=Letters())


def output(model: Any, *edits: Any, inputs: Any = IDS) -> Tensor:
    with torch.no_grad(), model.edit(*edits):
        return model(inputs).logits


def value_after(model: Any, site: str, *edits: Any, inputs: Any = IDS) -> Tensor:
    with torch.no_grad(), model.edit(*edits), model.read(site) as acts:
        model(inputs)
    return acts[site]


def clean(model: Any, site: str, inputs: Any = IDS) -> Tensor:
    with torch.no_grad(), model.read(site) as acts:
        model(inputs)
    return acts[site]


@pytest.mark.parametrize("inputs", [IDS, PADDED], ids=["plain", "padded"])
def test_replacing_any_site_by_itself_leaves_every_bit(model: Any, inputs: Any) -> None:
    with torch.no_grad():
        want = model(inputs).logits
        with model.read("*") as acts:
            model(inputs)
    assert len(acts.names) > 30
    for name in acts.names:
        assert torch.equal(output(model, inn.Replace(name, acts[name]), inputs=inputs), want), name
    assert torch.equal(output(model, [inn.Replace(name, acts[name]) for name in acts.names], inputs=inputs), want)


def test_edits_that_are_none_leave_every_bit(model: Any) -> None:
    with torch.no_grad():
        want = model(IDS).logits
    for site in model.sites("layers.*"):
        width = clean(model, site.name).shape[-1]
        v = vector(width)
        none = [
            inn.Add(site.name, v, alpha=0.0), 0 * inn.Add(site.name, v), 0 * inn.Scale(site.name, 3.0),
            0 * inn.Ablate(site.name), 0 * inn.Project(site.name, v), 0 * inn.Clamp(site.name, v, 2.0),
            0 * inn.Transport(site.name, torch.rand(width)), 0 * inn.Apply(site.name, torch.exp),
            inn.Scale(site.name, 1.0), inn.Apply(site.name, lambda x: x), inn.Apply(site.name, torch.clone),
            inn.Ablate(site.name).when(lambda x: torch.zeros(len(x), dtype=torch.bool)),
        ]  # fmt: skip
        assert torch.equal(output(model, *none), want), site.name


def test_identity_maps_change_nothing_beyond_rounding(model: Any) -> None:
    with torch.no_grad():
        want = model(IDS).logits
    for edit in (inn.Project(SITE, torch.eye(32), keep=True), inn.Project(SITE, torch.randn(32, 32), keep=True),
                 inn.Transport(SITE, torch.eye(32), torch.zeros(32)), inn.Add(SITE, torch.zeros(32))):  # fmt: skip
        torch.testing.assert_close(output(model, edit), want, atol=1e-4, rtol=0)


def test_each_kind_does_what_its_equation_says(llama: Any) -> None:
    x, v, w = clean(llama, SITE), vector(), torch.randn(32, 32)
    u = (v / v.norm()).double()
    cases: list[tuple[Any, Tensor]] = [
        (inn.Add(SITE, v, 0.5), x + 0.5 * v),
        (inn.Scale(SITE, 0.3), x * 0.3),
        (inn.Scale(SITE, v), x * v),
        (inn.Replace(SITE, v), v.expand_as(x)),
        (inn.Ablate(SITE), torch.zeros_like(x)),
        (inn.Ablate(SITE, "mean"), x.mean((0, 1)).expand_as(x)),
        (inn.Ablate(SITE, "mean", v), v.expand_as(x)),
        (inn.Ablate(SITE, "resample"), x.flip(0)),
        (inn.Ablate(SITE, "resample", x * 2), x * 2),
        (inn.Project(SITE, v), (x - (x @ u.float())[..., None] * u.float())),
        (inn.Project(SITE, v, keep=True), (x @ u.float())[..., None] * u.float()),
        (inn.Clamp(SITE, v, 2.0), x + (2.0 - x @ u.float())[..., None] * u.float()),
        (inn.Clamp(SITE, v, x[..., 0]), x + (x[..., 0] - x @ u.float())[..., None] * u.float()),
        (inn.Transport(SITE, w, v), x @ w.T + v),
        (inn.Transport(SITE, v), x * v),
        (inn.Apply(SITE, torch.tanh), x.tanh()),
        (0.5 * inn.Ablate(SITE), x * 0.5),
        (0.25 * inn.Replace(SITE, v), x + 0.25 * (v - x)),
        (2 * inn.Add(SITE, v, 0.5), x + v),
    ]
    for edit, want in cases:
        torch.testing.assert_close(value_after(llama, SITE, edit), want, atol=1e-5, rtol=1e-5, msg=str(edit.kind))


def test_project_spans_many_rows_in_any_basis(llama: Any) -> None:
    x, basis = clean(llama, SITE).double(), torch.randn(3, 32, dtype=torch.float64)
    q, _ = torch.linalg.qr(basis.T)
    removed = value_after(llama, SITE, inn.Project(SITE, basis.float()))
    torch.testing.assert_close(removed.double(), x - x @ q @ q.T, atol=1e-5, rtol=0)


def test_the_mean_is_taken_over_real_tokens_only(llama: Any) -> None:
    x = clean(llama, SITE, PADDED)
    want = torch.cat([x[0], x[1, 2:]]).mean(0)
    got = value_after(llama, SITE, inn.Ablate(SITE, "mean"), inputs=PADDED)
    torch.testing.assert_close(got, want.expand_as(x), atol=1e-5, rtol=0)


def test_values_are_laid_out_on_the_part_selected(llama: Any) -> None:
    x, z = clean(llama, SITE), clean(llama, "layers.0.attn.z")
    cases = [
        (SITE, {"pos": -1}, torch.full((2, 32), 7.0), (slice(None), 5)),
        (SITE, {"pos": [1, 3]}, torch.randn(2, 2, 32), (slice(None), [1, 3])),
        (SITE, {"row": 1}, torch.randn(6, 32), (1,)),
        (SITE, {"row": 1, "pos": 2}, torch.randn(32), (1, 2)),
        ("layers.0.attn.z", {"head": 2}, torch.randn(2, 6, 8), (slice(None), slice(None), 2)),
        ("layers.0.attn.z", {"head": [0, 3]}, torch.randn(2, 6, 2, 8), (slice(None), slice(None), [0, 3])),
        ("layers.0.attn.z", {"head": 1, "pos": 0}, torch.randn(2, 8), (slice(None), 0, 1)),
    ]
    for site, spec, value, where in cases:
        want = (x if site == SITE else z).clone()
        want[where] = value
        assert torch.equal(value_after(llama, site, inn.Replace(site, value).at(**spec)), want), spec


def test_unselected_entries_keep_their_bits(llama: Any) -> None:
    before = clean(llama, "layers.0.attn.z")
    after = value_after(llama, "layers.0.attn.z", inn.Scale("layers.0.attn.z", 2.0).at(head=[1], pos=[0, 4], row=1))
    changed = (before != after).any(-1)
    assert changed.nonzero().tolist() == [[1, 0, 1], [1, 4, 1]]


def test_order_is_list_then_nesting_and_reads_see_all_of_it(llama: Any) -> None:
    x, v = clean(llama, SITE), vector()
    add, double = inn.Add(SITE, v), inn.Scale(SITE, 2.0)
    torch.testing.assert_close(value_after(llama, SITE, add + double), (x + v) * 2)
    torch.testing.assert_close(value_after(llama, SITE, double, add), x * 2 + v)
    torch.testing.assert_close(value_after(llama, SITE, sum([double, add])), x * 2 + v)
    torch.testing.assert_close(value_after(llama, SITE, [add] + (double + double)), (x + v) * 4)
    with torch.no_grad(), llama.read(SITE) as outer, llama.edit(add), llama.read(SITE) as inner, llama.edit(double):
        llama(IDS)
    torch.testing.assert_close(outer[SITE], (x + v) * 2)
    assert torch.equal(outer[SITE], inner[SITE])
    with torch.no_grad(), llama.edit(add), llama.read(SITE) as first:
        llama(IDS)
        with llama.edit(double):
            llama(IDS)
            torch.testing.assert_close(first[SITE], (x + v) * 2)
        llama(IDS)
    torch.testing.assert_close(first[SITE], x + v)


def test_contexts_may_close_in_any_order(llama: Any) -> None:
    add, double = llama.edit(inn.Add(SITE, vector())), llama.edit(inn.Scale(SITE, 2.0))
    x = clean(llama, SITE)
    add.__enter__()
    double.__enter__()
    with torch.no_grad():
        llama(IDS)
        add.__exit__(None, None, None)
        torch.testing.assert_close(clean(llama, SITE), x * 2)
        double.__exit__(None, None, None)
    assert torch.equal(clean(llama, SITE), x)


def test_a_gate_opens_by_row_by_token_or_by_entry(llama: Any) -> None:
    x, v = clean(llama, SITE), vector()
    u = v / v.norm()
    for gate, mask in [
        (lambda t: t[:, 0, 0] == x[1, 0, 0], torch.tensor([False, True])[:, None, None].expand_as(x)),
        (lambda t: t[..., 0] > 0, (x[..., :1] > 0).expand_as(x)),
        (lambda t: t > 0, x > 0),
        (inn.Above(v, 0.1), ((x @ u) > 0.1)[..., None].expand_as(x)),
    ]:
        got = value_after(llama, SITE, inn.Replace(SITE, v).when(gate))
        assert torch.equal(got, torch.where(mask, v, x))
    both = value_after(llama, SITE, inn.Replace(SITE, v).when(inn.Above(v)).at(pos=1))
    chosen = ((x @ u) > 0) & (torch.arange(6) == 1)
    assert torch.equal(both, torch.where(chosen[..., None], v, x))


def test_half_precision_sites_are_rounded_once() -> None:
    module = BUILD["llama"]().to(torch.bfloat16)
    model = inn.wrap(module)
    x, v = clean(model, SITE), vector()
    assert x.dtype == torch.bfloat16
    u = v / v.norm()
    for edit, want in [
        (inn.Add(SITE, v, 0.7), x.float() + 0.7 * v),
        (inn.Project(SITE, v), x.float() - (x.float() @ u)[..., None] * u),
        (inn.Project(SITE, v.bfloat16()), None),
        (inn.Clamp(SITE, v, 3.0), x.float() + (3.0 - x.float() @ u)[..., None] * u),
        (inn.Transport(SITE, v, v), x.float() * v + v),
    ]:
        got = value_after(model, SITE, edit)
        assert got.dtype == torch.bfloat16
        if want is not None:
            torch.testing.assert_close(got, want.bfloat16(), atol=1e-2, rtol=1e-2)
    kept = value_after(model, SITE, inn.Project(SITE, torch.eye(32).bfloat16(), keep=True))
    assert torch.equal(kept, x)


def test_a_glob_edits_every_site_it_names(llama: Any) -> None:
    with torch.no_grad(), llama.edit(inn.Ablate("layers.*.mlp.out")), llama.read("layers.*.mlp.out") as acts:
        llama(IDS)
    assert all(not acts[name].any() for name in acts.names)
    assert len(acts) == 2


def test_gradients_flow_through_edits_to_their_own_tensors(llama: Any) -> None:
    v = vector().requires_grad_()
    with llama.edit(inn.Add(SITE, v, 0.5).at(pos=-1)), llama.read(SITE, grad=True) as acts:
        llama(IDS).logits[:, -1, 7].sum().backward()
    torch.testing.assert_close(v.grad, 0.5 * acts.grad[SITE][:, -1].sum(0))


def test_a_function_may_not_write_into_its_argument(llama: Any) -> None:
    for mode in (torch.no_grad, torch.enable_grad):
        with (
            pytest.raises(EditError, match="wrote into its argument"),
            mode(),
            llama.edit(inn.Apply(SITE, lambda x: x.data.mul_(0) if x.requires_grad else x.mul_(0)).at(pos=0)),
        ):
            llama(IDS)
            raise EditError("wrote into its argument")  # a write through .data leaves no mark
    with torch.inference_mode(), llama.edit(inn.Apply(SITE, lambda x: x.mul_(0)).at(pos=0)), llama.read(SITE) as acts:
        llama(IDS)
    assert not acts[SITE][:, 0].any()
    assert acts[SITE][:, 1:].all()


def test_an_edit_that_never_acts_is_an_error(llama: Any) -> None:
    with (
        pytest.raises(SiteDidNotFire, match=r"Add at layers.0.resid_post never fired"),
        llama.edit(inn.Add(SITE, vector())),
    ):
        pass
    with pytest.raises(SiteDidNotFire, match=r"never matched.*pos=40"), llama.edit(inn.Add(SITE, vector()).at(pos=40)):
        llama(IDS)
    with llama.edit(inn.Add(SITE, vector()).at(pos=7)):  # reached by the second pass
        llama(IDS)
        llama(tokens(1, 9))


def test_edits_work_on_any_module_and_integer_sites() -> None:
    class Route(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argsort(-1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.route = Route()

        def forward(self, x: Tensor) -> Tensor:
            return x.gather(-1, self.route(x))

    model = inn.wrap(Net())
    x = torch.tensor([[3.0, 1.0, 2.0]])
    assert model.run(x, edit=inn.Replace("route:out", torch.tensor([[0, 0, 0]]))).output.tolist() == [[3.0, 3.0, 3.0]]
    assert model.run(x, edit=inn.Replace("route:out", torch.tensor([0])).at(feature=[2])).output.tolist() == [
        [1.0, 2.0, 3.0]
    ]
    with pytest.raises(EditError, match="strength 0.5"):
        model.run(x, edit=0.5 * inn.Replace("route:out", torch.tensor([[0, 0, 0]])))


def test_values_for_the_prompt_are_dealt_out_over_chunks(llama: Any) -> None:
    value = torch.randn(2, 6, 32)
    edit = inn.Replace(SITE, value).at(phase="prompt")
    options = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    whole, parts = (_generated(llama, edit, options | extra) for extra in ({}, {"prefill_chunk_size": 4}))
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=0)
    with pytest.raises(ShapeError, match="phase='prompt'"):
        _generated(llama, inn.Replace(SITE, value), options)


def test_values_for_some_positions_find_them_whatever_a_pass_holds(llama: Any) -> None:
    value = torch.randn(3, 32)
    edit = inn.Replace(SITE, value).at(pos=[1, 2, 4])
    want = clean(llama, SITE)
    want[:, [1, 2, 4]] = value
    assert torch.equal(value_after(llama, SITE, edit), want)
    options = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    for spec in ({"pos": [1, 2, 4]}, {"pos": [0, 5, 7]}, {"pos": slice(4, 7)}):
        edit = inn.Add(SITE, value * 3).at(**spec)
        whole = _generated(llama, edit, options)
        for extra in ({"prefill_chunk_size": 3}, {"prefill_chunk_size": 2}, {"use_cache": False}):
            torch.testing.assert_close(_generated(llama, edit, options | extra), whole, atol=1e-4, rtol=0)
    with pytest.raises(ShapeError, match="fits neither"):
        value_after(llama, SITE, inn.Replace(SITE, value).at(pos=[1, 2]))


def test_a_value_for_a_part_is_not_taken_for_the_whole_when_sizes_agree(llama: Any) -> None:
    ids = tokens(4, 4)
    part = torch.randn(4, 32)  # [batch, d_model] at one position, although the site has four positions, too
    got = value_after(llama, SITE, inn.Replace(SITE, part).at(pos=-1), inputs=ids)
    assert torch.equal(got[:, -1], part)
    got = value_after(llama, SITE, inn.Replace(SITE, part).at(row=2), inputs=ids)
    assert torch.equal(got[2], part)
    z = torch.randn(4, 4, 4, 8)
    got = value_after(llama, "layers.0.attn.z", inn.Replace("layers.0.attn.z", z).at(head=[3, 0, 1, 2]), inputs=ids)
    assert torch.equal(got[:, :, [3, 0, 1, 2]], z)


def test_a_value_per_prompt_serves_all_its_beams(llama: Any) -> None:
    value = torch.randn(2, 1, 32)
    options = {"max_new_tokens": 3, "num_beams": 2, "return_dict_in_generate": True, "output_scores": True}
    with llama.edit(inn.Add(SITE, value)):
        both = llama.generate(IDS, **options)
    for b in range(2):
        with llama.edit(inn.Add(SITE, value[b])):
            alone = llama.generate(IDS[b : b + 1], **options)
        torch.testing.assert_close(both.sequences_scores[b], alone.sequences_scores[0], atol=1e-4, rtol=0)


def _generated(model: Any, edit: Any, options: Any) -> Tensor:
    with model.edit(edit):
        return torch.stack(model.generate(IDS, **options).logits, 1)
