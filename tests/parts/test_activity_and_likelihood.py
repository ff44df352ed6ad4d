from __future__ import annotations

import pytest
import torch

from interneuron.core.errors import InputError
from interneuron.model.edits import Add
from interneuron.model.load import wrap
from interneuron.model.model import Model
from interneuron.parts.activity import NORMAL_FOR_90, NORMAL_NEAR_ZERO, activity, sparsity
from interneuron.parts.likelihood import preference, token_windows, window_losses

TOKENS = torch.randint(0, 32, (3, 12), generator=torch.Generator().manual_seed(0))


def test_constants_of_the_normal_distribution() -> None:
    near_zero, for_90 = sparsity(torch.randn(200, 2000, generator=torch.Generator().manual_seed(0)))
    assert near_zero == pytest.approx(NORMAL_NEAR_ZERO, abs=0.002)
    assert for_90 == pytest.approx(NORMAL_FOR_90, abs=0.003)


def test_activity_agrees_with_output_hidden_states(tiny_lm: Model) -> None:
    found = activity(tiny_lm, TOKENS)
    with torch.no_grad():
        out = tiny_lm.module(TOKENS, output_hidden_states=True)
    # The entry after layer 0; the one after the last layer is normalised, so it is not compared.
    hidden = out.hidden_states[1]
    first = found.layers[0]
    assert first.stream_norm == pytest.approx(float(hidden[:, 1:].norm(dim=-1).mean()), rel=1e-5)
    assert first.largest == pytest.approx(float(hidden.abs().max()), rel=1e-6)
    assert first.largest == pytest.approx(abs(float(hidden[first.row, first.position, first.channel])), rel=1e-6)
    assert first.ratio == pytest.approx(float(hidden.abs().max() / hidden.abs().median()), rel=1e-5)


def test_attention_sinks(tiny_lm: Model) -> None:
    found = activity(tiny_lm, TOKENS)
    assert found.sink is not None
    assert found.sink.shape == (2, 2)
    assert bool(((found.sink > 0) & (found.sink < 1)).all())
    assert found.even == pytest.approx(sum(1 / k for k in range(2, 13)) / 11)
    with pytest.raises(InputError, match="at least 2"):
        activity(tiny_lm, TOKENS[:, :1])


def test_losses_equal_the_model_s_own(tiny_lm: Model) -> None:
    rows = window_losses(tiny_lm, TOKENS)
    with torch.no_grad():
        own = [float(tiny_lm.module(row[None], labels=row[None]).loss) for row in TOKENS]
    assert rows.tolist() == pytest.approx(own, rel=1e-5)
    nothing = Add("layers.0.resid_post", torch.ones(16), alpha=0.0)
    assert torch.equal(window_losses(tiny_lm, TOKENS, nothing), rows)
    pushed = window_losses(tiny_lm, TOKENS, Add("layers.0.resid_post", 5 * torch.ones(16)))
    assert not torch.allclose(pushed, rows)


class Letters:
    """A tokenizer of one token per letter, so that lengths differ between texts."""

    pad_token_id = 0

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1, *(ord(c) % 31 + 1 for c in text)]}


def test_preference_is_antisymmetric_and_blind_to_padding_and_shared_beginnings(tiny_lm: Model) -> None:
    model = wrap(tiny_lm.module, tokenizer=Letters())
    good, bad = ["she was glad", "he was so very happy"], ["she was sad", "he was so very sick"]
    both = preference(model, good, bad)
    assert torch.allclose(both, -preference(model, bad, good), atol=1e-5)
    alone = torch.cat([preference(model, [a], [b]) for a, b in zip(good, bad, strict=True)])
    assert torch.allclose(both, alone, atol=1e-4)
    with pytest.raises(InputError, match="pairs"):
        preference(model, good, bad[:1])


def test_windows_of_text(tiny_lm: Model) -> None:
    model = wrap(tiny_lm.module, tokenizer=Letters())
    windows = token_windows(model, "abc def " * 200, n=4, length=20)
    assert windows.shape == (4, 20)
    assert windows[:, 0].tolist() == [1, 1, 1, 1]
    with pytest.raises(InputError, match="longer text"):
        token_windows(model, "abc", n=2)
