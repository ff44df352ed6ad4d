"""Extreme tokens: sums by hand in NumPy, heads built to be dormant, parked heads, the growth law, ReLU attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from interneuron.core.errors import InputError, ShapeError, UnsupportedModel
from interneuron.measure import (
    extreme_token_report,
    fit_log_growth,
    head_dormancy,
    park_head,
    use_relu_attention,
)
from interneuron.model.load import wrap

N, T, V = 5, 12, 20


def _gpt2(n_layers: int = 2, relu: bool = False) -> GPT2LMHeadModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=V, n_positions=T, n_embd=16, n_layer=n_layers, n_head=2, initializer_range=0.4,
                bos_token_id=0, eos_token_id=None,
            )
        ).eval()  # fmt: skip
    module.requires_grad_(False)
    if relu:
        use_relu_attention(module)
    return module


def _tokens() -> torch.Tensor:
    return torch.randint(V, (N, T), generator=torch.Generator().manual_seed(1))


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("relu", [False, True])
def test_every_number_is_that_of_numpy(relu: bool) -> None:
    module, tokens = _gpt2(relu=relu), _tokens()
    trigger = tokens % 3 == 0
    model = wrap(module)
    report = extreme_token_report(model, tokens, trigger, skip=2, attention="relu" if relu else "softmax", batch_size=2)
    acts = model.run(tokens, read=["layers.1.attn.q", "layers.1.attn.k", "layers.1.attn.v", "layers.1.resid_post"]).acts
    q, k, v = (acts[f"layers.1.attn.{p}"].double().numpy().transpose(0, 2, 1, 3) for p in "qkv")
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(8)
    causal = np.tril(np.ones((T, T), dtype=bool))
    if relu:
        pattern = np.where(causal, np.maximum(scores, 0), 0) / np.arange(1, T + 1)[:, None]
    else:
        pattern = _softmax(np.where(causal, scores, -np.inf))
    at = trigger.numpy()
    plain, active = ~at, at.copy()
    plain[:, :2] = active[:, :2] = False
    row = report.tables["heads"][3]
    assert (row["layer"], row["head"]) == (1, 1)
    first = pattern[:, 1, :, 0]
    gap = [
        s[t, 0] - s[t, 1 : t + 1].mean() for s, m in zip(scores[:, 1], plain, strict=True) for t in np.flatnonzero(m)
    ]
    length, stream = np.linalg.norm(v[:, 1], axis=-1), np.linalg.norm(acts["layers.1.resid_post"].numpy(), axis=-1)
    assert row["sink_dormant"] == pytest.approx(first[plain].mean(), rel=1e-5)
    assert row["sink_active"] == pytest.approx(first[active].mean(), rel=1e-5)
    assert row["delta_logit"] == pytest.approx(np.mean(gap), rel=1e-4, abs=1e-5)
    assert row["value_ratio"] == pytest.approx(length[:, 0].mean() / length[:, 1:].mean(), rel=1e-5)
    median = np.sort(stream[:, 1:].ravel())[(stream[:, 1:].size - 1) // 2]
    assert report.tables["layers"][1]["resid_peak"] == pytest.approx(stream[:, 0].mean() / median, rel=1e-5)


def test_without_triggers_every_query_counts() -> None:
    model, tokens = wrap(_gpt2()), _tokens()
    short = {"input_ids": tokens[:, :8], "attention_mask": torch.ones(N, 8, dtype=torch.long)}
    sinks = model.run(short, read=["layers.0.attn.pattern"]).acts["layers.0.attn.pattern"][:, :, 4:, 0].mean((0, 2))
    report = extreme_token_report(model, tokens[:, :8])
    assert [row["sink_dormant"] for row in report.tables["heads"][:2]] == pytest.approx(sinks.tolist(), rel=1e-5)
    assert report.tables["heads"][0]["sink_active"] is None


def test_a_parked_head_reads_the_first_value_alone() -> None:
    model, tokens = wrap(_gpt2()), _tokens()
    rows = tokens % 2 == 0
    run = model.run(tokens, read=["layers.0.attn.z", "layers.0.attn.v"], edit=park_head(model, 0, 1, rows))
    z, v = run.acts["layers.0.attn.z"], run.acts["layers.0.attn.v"]
    plain = model.run(tokens, read=["layers.0.attn.z"]).acts["layers.0.attn.z"]
    first = v[:, :1, 1].expand_as(z[:, :, 1])
    torch.testing.assert_close(z[:, :, 1][rows], first[rows])
    assert torch.equal(z[:, :, 1][~rows], plain[:, :, 1][~rows])
    assert torch.equal(z[:, :, 0], plain[:, :, 0])
    with pytest.raises(ShapeError, match="Match them"):
        model.run(tokens[:2], read=["logits"], edit=park_head(model, 0, 1, rows))


def test_a_head_that_hears_one_word_only_is_found() -> None:
    """The sink key of one head is made to answer to words 0-9 and to repel words 10-19."""
    module = _gpt2(n_layers=1)
    with torch.no_grad():
        module.transformer.wte.weight[:10, 0], module.transformer.wte.weight[10:, 0] = 12.0, -12.0
        weight, width = module.get_parameter("transformer.h.0.attn.c_attn.weight"), 16
        weight[:, 0:8] = 0.0
        weight[:, width : width + 8] = 0.0
        weight[0, 0] = 8.0  # query of head 0: the word's group
        module.transformer.wpe.weight[:, 1] = 0.0
        module.transformer.wpe.weight[0, 1] = 40.0
        weight[1, width] = 8.0  # key of head 0: the first position
    rng = torch.Generator().manual_seed(2)
    low, high = torch.randint(10, (8, T), generator=rng), torch.randint(10, 20, (8, T), generator=rng)
    high[:, 0] = low[:, 0] = 3
    report = head_dormancy(wrap(module), {"low": low, "high": high}, k=1)
    assert (report["layer"], report["head"]) == (0, 0)
    assert (report["active in"], report["dormant in"]) == ("high", "low")
    assert report["largest difference"] > 0.8
    assert report.arrays["sink"].shape == (1, 2, 2)
    assert [row["domain"] for row in report.tables["ablation"]] == ["low", "high"]


def test_the_growth_law_is_least_squares() -> None:
    steps = [3, 10, 40, 90, 200]
    values = [0.1, 0.9, 1.4, 2.2, 2.4]
    found = fit_log_growth(steps, values)
    slope, intercept = np.polyfit(np.log(steps), values, 1)
    r = np.corrcoef(np.log(steps), values)[0, 1]
    assert (found["slope"], found["intercept"], found["r2"]) == pytest.approx((slope, intercept, r**2), rel=1e-10)
    for wrong, error in (([1, 2], ShapeError), ([0, 1, 2], InputError), ([2, 2, 2], InputError)):
        with pytest.raises(error):
            fit_log_growth(wrong, list(range(len(wrong))))


def test_relu_attention_of_a_model_with_shared_keys() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=V, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=T, initializer_range=0.4,
        )  # fmt: skip
        module = LlamaForCausalLM(config).eval().requires_grad_(False)
    model = wrap(use_relu_attention(module))
    acts = model.run(_tokens(), read=["layers.0.attn.q", "layers.0.attn.k", "layers.0.attn.v", "layers.0.attn.z"]).acts
    q, k, v, z = (acts[f"layers.0.attn.{p}"].transpose(1, 2) for p in "qkvz")
    t = 7
    scores = torch.einsum("bhk,bhjk->bhj", q[:, :, t], k.repeat_interleave(2, 1)[:, :, : t + 1]) / 2.0
    wanted = torch.einsum("bhj,bhjk->bhk", scores.relu() / (t + 1), v.repeat_interleave(2, 1)[:, :, : t + 1])
    torch.testing.assert_close(z[:, :, t], wanted)
    with pytest.raises(UnsupportedModel, match="by name"):
        use_relu_attention(torch.nn.Linear(2, 2))


def test_errors_teach() -> None:
    model, tokens = wrap(_gpt2()), _tokens()
    with pytest.raises(InputError, match="two or more"):
        head_dormancy(model, {"one": tokens})
    with pytest.raises(InputError, match="longer texts"):
        head_dormancy(model, {"one": tokens[:, :3], "two": tokens})
    with pytest.raises(ShapeError, match="Tokenise"):
        extreme_token_report(model, tokens, torch.zeros(N, 3, dtype=torch.bool))
