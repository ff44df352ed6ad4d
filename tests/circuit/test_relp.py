"""RelP: the rules against relevance written out in float64, equality with gradients where it must hold, and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import interneuron as inn
from interneuron.circuit import lrp_edits, lrp_rules, relp_scores
from interneuron.core.errors import InputError, ShapeError, UnsupportedModel
from interneuron.model.model import Model
from interneuron.parts.patching import ablate_neurons, activation_patching, attribution_patching, logit_difference

CLEAN = torch.tensor([[3, 7, 5, 9], [3, 8, 5, 9]])
CORRUPT = torch.tensor([[3, 7, 6, 9], [3, 8, 6, 9]])
METRIC = logit_difference(torch.tensor([4, 4]), torch.tensor([11, 11]))


def llama() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, initializer_range=0.3,
        )  # fmt: skip
        return inn.wrap(LlamaForCausalLM(config).eval())


def gpt2() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3, n_positions=16)
        return inn.wrap(GPT2LMHeadModel(config).eval())


def chain(*layers: nn.Module) -> Model:
    module = nn.Sequential(*layers).double()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.5)
    return inn.wrap(module)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_logits_keep_their_bits_and_weights_no_gradient(make) -> None:
    model = make()
    plain = model(CLEAN).logits
    with lrp_rules(model, ("ln", "identity", "half", "attention")):
        ruled = model(CLEAN).logits
    assert torch.equal(plain, ruled)
    relp_scores(model, CLEAN, CORRUPT, METRIC, "layers.*.mlp.out")
    assert all(p.grad is None and p.requires_grad for p in model.module.parameters())


def test_one_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: passes.append(1) or grad(*args, **kwargs))
    relp_scores(llama(), CLEAN, CORRUPT, METRIC, ["layers.*.mlp.out", "layers.*.attn.out", "layers.*.resid_pre"])
    assert len(passes) == 1


def test_relevance_by_hand() -> None:
    """Linear, LayerNorm, GELU, Linear: every rule written out in NumPy, float64."""
    model = chain(nn.Linear(5, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 1))
    first, norm, _, last = model.module
    x = torch.randn(1, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with lrp_rules(model), model.read("0:out", grad=True) as acts:
        model(x).sum().backward()
    a = (x.numpy() @ first.weight.detach().numpy().T + first.bias.detach().numpy())[0]
    g, b, w = norm.weight.detach().numpy(), norm.bias.detach().numpy(), last.weight.detach().numpy()[0]
    centred = a - a.mean()
    scale = np.sqrt(np.mean(centred**2) + norm.eps)
    n = centred / scale * g + b
    gelu = nn.functional.gelu(torch.tensor(n)).numpy()
    shifted = n + 1e-6 * np.sign(n)
    back = w * gelu / shifted * g / scale  # identity rule, then the gain over the constant scale
    np.testing.assert_allclose(acts.grad["0:out"].numpy()[0], back - back.mean(), rtol=1e-9)


def test_rms_norm_and_half_rule_by_hand() -> None:
    model = llama()
    layer = model.module.model.layers[1]
    x = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(1))
    with lrp_rules(model, ("ln",)):
        h = x.clone().requires_grad_()
        layer.input_layernorm(h).sum().backward()
        model(CLEAN)
    wanted = layer.input_layernorm.weight.detach() / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(h.grad, wanted.expand_as(x), atol=1e-5, rtol=1e-4)
    plain, halved = (_gate_gradient(model, rules) for rules in ((), ("half",)))
    torch.testing.assert_close(halved, plain / 2)


def _gate_gradient(model: Model, rules: tuple[str, ...]) -> Tensor:
    edits = lrp_edits(model, rules) if rules else ()
    with model.edit(*edits), model.read("layers.1.mlp.pre", grad=True) as acts:
        model(CLEAN).logits[:, -1, 4].sum().backward()
    model.module.zero_grad()
    return acts.grad["layers.1.mlp.pre"]


def test_attention_rule_lets_relevance_through_values_alone() -> None:
    model = llama()
    sites = ["layers.1.attn.q_proj", "layers.1.attn.v_proj"]
    with lrp_rules(model, ("attention",)), model.read(*sites, grad=True) as acts:
        model(CLEAN).logits[:, -1, 4].sum().backward()
    model.module.zero_grad()
    assert float(acts.grad["layers.1.attn.v_proj"].abs().max()) > 0
    with pytest.raises(Exception, match="no gradient"):
        acts.grad["layers.1.attn.q_proj"]


def test_equals_attribution_patching_without_norms_on_relu() -> None:
    model = chain(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    clean, corrupt = torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sites = ["0:out", "1:out", "2:out"]
    one = attribution_patching(model, clean, corrupt, lambda y: y[:, 0], sites)
    two = attribution_patching(model, clean, corrupt, lambda y: y[:, 0], sites, edit=lrp_edits(model))
    torch.testing.assert_close(one, two, atol=1e-12, rtol=0)
    with pytest.raises(UnsupportedModel, match="has no norm, activation or gate module"):
        lrp_edits(chain(nn.Linear(2, 2)))


def test_a_linear_model_is_attributed_exactly() -> None:
    """Behind the last norm held constant, the scores of the last layer are the change itself: they add up to 1."""
    model = chain(nn.Linear(6, 8), nn.Linear(8, 1))
    clean, corrupt = torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    scores = attribution_patching(model, clean, corrupt, lambda y: y[:, 0], ["0:out"])
    assert float(scores[0, 0]) == pytest.approx(1.0)


def test_activation_patching_and_gradients_by_finite_steps() -> None:
    model = llama()
    sites = ["layers.0.mlp.out", "layers.1.attn.out"]
    near = CORRUPT.clone()
    truth = activation_patching(model, CLEAN, CORRUPT, METRIC, sites)
    atp = attribution_patching(model, CLEAN, CORRUPT, METRIC, sites)
    assert truth.shape == atp.shape == (2, 4)
    assert torch.allclose(truth[:, :2], torch.zeros(2, 2), atol=1e-5)
    with torch.no_grad():
        good, bad = (model.run(x, read=sites).acts[sites[0]] for x in (CLEAN, near))
        ends = [float(METRIC(model(x).logits).mean()) for x in (CLEAN, near)]
        step = 1e-3
        with model.edit(inn.Add(sites[0], step * (good - bad)[:, 2:3]).at(pos=2)):
            moved = float(METRIC(model(near).logits).mean())
    slope = (moved - ends[1]) / step / (ends[0] - ends[1])
    assert float(atp[0, 2]) == pytest.approx(slope, abs=2e-2, rel=2e-2)


def test_switching_units_off() -> None:
    model = llama()
    with model.edit(*ablate_neurons([(1, 3), (0, 2), (1, 0)])), torch.no_grad():
        acts = model.run(CLEAN, read=["layers.0-1.mlp.hidden"]).acts
    assert float(acts["layers.0.mlp.hidden"][..., 2].abs().max()) == 0
    assert float(acts["layers.1.mlp.hidden"][..., [0, 3]].abs().max()) == 0
    assert float(acts["layers.1.mlp.hidden"][..., 2].abs().max()) > 0


@pytest.mark.usefixtures("unchecked")
def test_errors_teach() -> None:
    model = llama()
    with pytest.raises(InputError, match="rule 'idenity' is unknown.*Did you mean 'identity'"):
        lrp_edits(model, ("idenity",))
    with pytest.raises(ShapeError, match="equally many tokens"):
        relp_scores(model, CLEAN, CORRUPT[:, :3], METRIC, "layers.0.mlp.out")
    with pytest.raises(InputError, match="tells apart"):
        relp_scores(model, CLEAN, CLEAN, METRIC, "layers.0.mlp.out")
