"""Peri-LN: blocks against their equations, conversion, the variance bound, meters against sums by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from interneuron.core.errors import InputError, UnsupportedModel
from interneuron.layers import (
    PeriLNBlock,
    convert_norm_placement,
    depth_profile,
    divergence_rate,
    gradient_profile,
)
from interneuron.model.load import wrap

TOKENS = torch.randint(20, (3, 7), generator=torch.Generator().manual_seed(1))


def _llama(depth: int = 3, init: float = 0.3, tie: bool = True) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=depth, num_attention_heads=2,
                num_key_value_heads=2, initializer_range=init, tie_word_embeddings=tie, pad_token_id=0,
            )
        ).eval()  # fmt: skip


def _norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


class Linear(nn.Module):
    """An attention that returns a tuple, as those of transformers do."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
        """x W"""
        return hidden_states @ self.weight, None


@pytest.mark.parametrize("placement", ["pre", "post", "peri", "out"])
def test_a_block_is_its_equation(placement: str) -> None:
    rng = torch.Generator().manual_seed(0)
    x, a, m = (torch.randn(*shape, generator=rng) for shape in ((2, 3, 8), (8, 8), (8, 8)))
    mlp = nn.Linear(8, 8, bias=False)
    mlp.weight.data = m.T.contiguous()
    block = PeriLNBlock(Linear(a), mlp, lambda: nn.RMSNorm(8, eps=1e-6), placement)  # type: ignore[arg-type]
    y = x
    for weight in (a, m):
        y = {
            "pre": y + _norm(y) @ weight,
            "post": _norm(y + y @ weight),
            "peri": y + _norm(_norm(y) @ weight),
            "out": y + _norm(y @ weight),
        }[placement]
    torch.testing.assert_close(block(x), y)


def test_conversion_to_pre_changes_nothing_and_the_model_stays() -> None:
    start = _llama()
    before = {name: p.clone() for name, p in start.named_parameters()}
    made: Any = convert_norm_placement(start, "pre")
    assert torch.equal(made(TOKENS).logits, start(TOKENS).logits)
    peri: Any = convert_norm_placement(start, "peri", learn_gains=False)
    for block in peri.model.layers:
        assert not block.attn_out_norm.weight.requires_grad
        block.attn_out_norm = block.mlp_out_norm = nn.Identity()
    peri.model.embed_tokens.norm = nn.Identity()
    torch.testing.assert_close(peri(TOKENS).logits, start(TOKENS).logits, atol=1e-6, rtol=0)
    assert all(torch.equal(p, before[name]) for name, p in start.named_parameters())


def test_a_tied_head_stays_tied_and_text_can_be_written() -> None:
    made: Any = convert_norm_placement(_llama(), "peri")
    assert made.lm_head.weight is made.model.embed_tokens.weight
    loss = made(TOKENS, labels=TOKENS).loss
    loss.backward()
    assert made.model.layers[0].attn_out_norm.weight.grad is not None
    cached = made.generate(TOKENS[:1], max_new_tokens=4, do_sample=False)
    plain = made.generate(TOKENS[:1], max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)


def test_what_a_peri_block_adds_is_bounded() -> None:
    """Scaling up the weights that write to the stream blows up Pre-LN and leaves Peri-LN where it was."""
    growth = {}
    for placement in ("pre", "peri"):
        made: Any = convert_norm_placement(_llama(depth=6), placement)
        with torch.no_grad():
            for block in made.model.layers:
                block.mlp.down_proj.weight *= 100
                block.self_attn.o_proj.weight *= 100
        growth[placement] = depth_profile(wrap(made), TOKENS)["growth"]
    assert growth["peri"] <= 4 * (2 * 6 + 1) ** 2 / 4  # at most |x_0| + 12 vectors of length sqrt(D)
    assert growth["pre"] > 100 * growth["peri"]


def test_the_depth_profile_is_read_from_the_streams() -> None:
    made: Any = convert_norm_placement(_llama(), "post")
    rows = depth_profile(wrap(made), TOKENS).tables["layers"]
    states: list[Tensor] = []

    def keep(module: nn.Module, args: Any, out: Tensor) -> None:
        states.extend([args[0], out] if not states else [out])

    for block in made.model.layers:
        block.register_forward_hook(keep)
    with torch.no_grad():
        made(TOKENS)
    assert len(rows) == len(states) == 4
    for row, h in zip(rows, states, strict=True):
        assert row["variance"] == pytest.approx(float(h.var()), rel=1e-5)
        assert row["largest"] == pytest.approx(float(h.abs().max()), rel=1e-6)
    a, b = (h.flatten(0, 1).double() for h in states[1:3])
    angle = ((a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)).arccos().mean() / math.pi
    assert rows[2]["angle"] == pytest.approx(float(angle), rel=1e-4)
    hot = _llama()
    with torch.no_grad():
        hot.model.embed_tokens.weight[int(TOKENS[0, 0]), 5] = 1e5
    n = int((TOKENS.flatten() - TOKENS[0, 0] == 0).sum())
    assert depth_profile(wrap(hot), TOKENS).tables["layers"][0]["overflows"] == n


def test_gradients_are_those_of_backward_whatever_the_batches() -> None:
    module = _llama()
    report = gradient_profile(wrap(module), TOKENS, batch_size=2)
    assert all(p.grad is None for p in module.parameters())
    loss = module(TOKENS, labels=TOKENS).loss
    loss.backward()
    for row, block in zip(report.tables["layers"], module.model.layers, strict=True):
        wanted = math.sqrt(sum(float(p.grad.square().sum()) for p in block.parameters()))
        assert row["gradient"] == pytest.approx(wanted, rel=1e-4)
    assert report["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_divergence_and_spikes_by_hand() -> None:
    fine, worse, broken = [3.0, 2.0, 1.0, 1.0], [3.0, 2.0, 5.0, 6.0], [3.0, 2.0, math.nan, 1.0]
    found = divergence_rate([fine, worse, broken, [3.0, 1.0, 2.5, 2.6, 1.0, 2.4]], tail=2)
    assert (found["diverged"], found["rate"], found["spikes"]) == (2.0, 0.5, 4.0)
    with pytest.raises(InputError, match="at least one run"):
        divergence_rate([])


def test_errors_teach() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    with pytest.raises(UnsupportedModel, match="PeriLNBlock"):
        convert_norm_placement(gpt2)
    with pytest.raises(UnsupportedModel, match="Unfreeze"):
        gradient_profile(wrap(_llama().requires_grad_(False)), TOKENS)
