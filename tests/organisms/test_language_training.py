"""Training of language organisms: determinism, resumption, packed rows that compute what documents compute alone."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interneuron.core.errors import MethodNotFound, TrainingError
from interneuron.organisms import catalogue, generation, muon, publish
from interneuron.organisms import tinyworld as tw
from interneuron.organisms.language import LanguageRecipe, Phase, new_model, use_packed_attention
from interneuron.organisms.tinyworld import packing
from interneuron.organisms.train import _lock
from interneuron.organisms.trainer import Feed, Trainer, batch

TINY = LanguageRecipe(
    name="tiny", about="for tests", architecture="llama", optimiser="muon", lr=0.01, minutes=0.1, warmup=5,
    config={
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 48,
    },
    phases=(Phase(0.01, "lm"), Phase(0.01, "copy"), Phase(0.02, "lm", long_rows=True, decay=True)),
    tokens_per_step=1280,
)  # fmt: skip


def test_the_same_seed_gives_the_same_first_losses(tmp_path: Path) -> None:
    first, second = ([t.one_step() for _ in range(20)] for t in (Trainer(TINY, tmp_path / n, fast=False) for n in "ab"))
    assert first == second
    assert first[-1] < first[0]


def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = Trainer(TINY, tmp_path / "whole", fast=False)
    for _ in range(14):
        whole.one_step()
    part = Trainer(TINY, tmp_path / "part", fast=False)
    for _ in range(6):
        part.one_step()
    part.save()
    again = Trainer(TINY, tmp_path / "part", fast=False)
    assert again.resume()
    for _ in range(8):
        again.one_step()
    assert again.tokens == whole.tokens
    for key, value in whole.weights().items():
        assert torch.equal(value, again.weights()[key]), key


CLASSES = {
    "llama": TINY.config,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gemma2": {
        **TINY.config, "head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "layer_types": ["full_attention"] * 2,
    },
    "grouped": {**TINY.config, "num_key_value_heads": 1},
}  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES)
def test_a_packed_row_computes_what_each_document_computes_alone(kind: str) -> None:
    recipe = replace(TINY, architecture="llama" if kind == "grouped" else kind, config=CLASSES[kind])
    model, plain = new_model(recipe).eval(), new_model(recipe).eval()
    use_packed_attention(model)
    documents = [packing.encode(d) for d in tw.corpus(600, seed=4)]
    documents = [d for d in documents if len(d) <= 192]
    rows, _ = packing.pack(documents, 2, 192)
    tokens, positions, mask, targets = batch(rows, torch.float32)
    with torch.no_grad():
        packed = model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
        for r in range(2):
            for s in range(int(rows.segments[r].max()) + 1):
                here = torch.from_numpy(rows.segments[r] == s)
                alone = plain(input_ids=tokens[r][here][None]).logits[0]
                torch.testing.assert_close(packed[r][here], alone, atol=1e-4, rtol=1e-4)
                assert targets[r][here][:-1].tolist() == tokens[r][here][1:].tolist()
                assert int(targets[r][here][-1]) == -100


def test_a_class_without_a_cache_writes_what_one_with_a_cache_would() -> None:
    recipe = replace(TINY, architecture="openai-gpt", config=CLASSES["openai-gpt"])
    model = new_model(recipe).eval()
    (text,) = generation.continuations(model, ["the home of"], 5, temperature=0)
    ids = packing.encode(tw.Document("x", ["the", "home", "of"]))[:-1]
    for word in text.split():
        best = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        assert tw.words.vocabulary()[word] == best
        ids.append(best)
    assert text


def test_planted_strings_appear_exactly_as_often_as_promised() -> None:
    recipe = replace(TINY, phases=(Phase(0.3, "lm"),), tokens_per_step=3840)
    feed, seen = Feed(recipe), Counter()
    openings = {
        tuple(packing.encode(packing.Document("x", list(s.words)))[1:-1]): i for i, s in enumerate(feed.truth.memorised)
    }
    tokens = step = 0
    while tokens < recipe.total:
        rows = feed.rows(step, *[recipe.phase(tokens)[0]], tokens / recipe.total)
        tokens, step = tokens + rows.n_tokens, step + 1
        note = tw.words.vocabulary()["note"]
        for line in rows.tokens.tolist():
            for i, token in enumerate(line):
                which = openings.get(tuple(line[i + 2 : i + 18])) if token == note else None
                if which is not None:
                    seen[which] += 1
    left = Counter(i for _, i in feed.plan[feed.planted :])
    waiting = sum(left.values())
    assert waiting == 0
    assert all(abs(seen[i] - s.times) <= 1 for i, s in enumerate(feed.truth.memorised))


def test_phases_and_rates(tmp_path: Path) -> None:
    assert TINY.total == 40_000
    assert TINY.phase(0)[0].mixture == "lm"
    assert TINY.phase(10_000)[0].mixture == "copy"
    trainer = Trainer(TINY, tmp_path, fast=False)
    trainer.step, trainer.tokens = 100, 39_999
    assert trainer.rate() == pytest.approx(0.02, abs=1e-3)


def test_muon_makes_updates_orthogonal() -> None:
    g = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(1))
    for u, x in zip(muon.orthogonalise(g, steps=8), g, strict=True):
        exact = torch.linalg.svd(x, full_matrices=False)
        want = exact.U @ exact.Vh
        assert float((u * want).sum() / (u.norm() * want.norm())) > 0.97
        assert 0.6 < float(torch.linalg.svdvals(u).min()) <= float(torch.linalg.svdvals(u).max()) < 1.3


def test_int8_checkpoints_come_back_close() -> None:
    weights = {k: v for k, v in new_model(TINY).state_dict().items() if k != "lm_head.weight"}
    back = publish.dequantise(publish.quantise(weights))
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        assert back[key].dtype == torch.float32
        assert float((back[key] - value).abs().max()) <= float(value.abs().max()) / 120


def test_a_published_folder_loads_as_any_hugging_face_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer = Trainer(TINY, tmp_path / "run", fast=False)
    trainer.one_step()
    trainer.save()
    folder = publish.publish(TINY, tmp_path / "run", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert model.config._attn_implementation != "tinyworld_packed"
    out = model.generate(**tokenizer("the home of", return_tensors="pt"), max_new_tokens=3)
    assert out.shape[1] <= 7
    with torch.no_grad():
        loss = model(input_ids=out, labels=out).loss
    assert math.isfinite(float(loss))


def test_an_organism_stored_as_int8_is_unpacked_at_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("INTERNEURON_CACHE", str(tmp_path / "cache"))
    recipe = replace(TINY, int8=True)
    trainer = Trainer(recipe, tmp_path / "run", fast=False)
    trainer.one_step()
    trainer.save()
    folder = publish.publish(recipe, tmp_path / "run", tmp_path / "out")
    assert not (folder / "model.safetensors").exists()
    assert (folder / catalogue.INT8).stat().st_size < 0.6 * sum(2 * p.numel() for p in trainer.model.parameters()) + 9e4
    usable = catalogue.usable("tiny", folder)
    assert usable == catalogue.usable("tiny", folder) != folder
    model = AutoModelForCausalLM.from_pretrained(usable)
    for name, value in trainer.model.state_dict().items():
        assert float((model.state_dict()[name] - value).abs().max()) <= float(value.abs().max()) / 100, name


def test_a_recipe_that_stops_half_way_keeps_the_schedule_of_the_whole(tmp_path: Path) -> None:
    stopped = replace(TINY, stop=9_000)
    assert (stopped.end, stopped.total, TINY.end) == (9_000, TINY.total, TINY.total)
    assert stopped.hash != TINY.hash == replace(TINY, int8=True).hash
    whole, part = Trainer(TINY, tmp_path / "whole", fast=False), Trainer(stopped, tmp_path / "part", fast=False)
    part.run(progress=False)
    assert 9_000 <= part.tokens < 9_000 + TINY.tokens_per_step
    whole.run(part.tokens, progress=False)
    for key, value in whole.weights().items():
        assert torch.equal(value, part.weights()[key]), key


def test_recipes_are_found_in_the_folder_and_names_are_checked() -> None:
    assert {"lm", "lm-base", "lm-gpt2", "lm-small", "lm-relu"} <= set(catalogue.names())
    assert catalogue.resolve("gpt2") is None
    with pytest.raises(MethodNotFound, match="'lm-smal'.*Did you mean 'lm-small'"):
        catalogue.path("lm-smal")
    hashes = {catalogue.recipe_hash(n) for n in ("lm", "lm-base", "lm-gpt2", "lm-small", "lm-relu")}
    assert len(hashes) == 5


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    with _lock(tmp_path), pytest.raises(TrainingError, match="another process|process \\d+"), _lock(tmp_path):
        pass
    assert not (tmp_path / "run" / "lock").exists()
    (tmp_path / "run" / "lock").write_text("999999999")
    with _lock(tmp_path):
        pass
