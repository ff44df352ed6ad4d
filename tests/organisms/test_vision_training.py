"""Training of the image organisms: repeatable, resumable to the bit, and shipped with a card that is true."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from interneuron.core.files import load_tensors
from interneuron.organisms import catalogue
from interneuron.organisms import shapes as sh
from interneuron.organisms import vision_training as vt
from interneuron.organisms.recipes import cnn, judge, judge_b, vit

IMAGE_ORGANISMS = ("cnn", "vit", "judge", "judge-b")


def build() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label={0: "a", 1: "b"}
    )
    return ResNetForImageClassification(config)


def batch(step: int, batch_size: int) -> vt.Batch:
    scenes = sh.sample(batch_size, 0, start=step * batch_size, size=16, factors={"color": ["red", "blue"]})
    return scenes.images, scenes.labels("color") // 2


def measure(model: nn.Module, seed: int) -> dict[str, tuple[int, float]]:
    images, labels = batch(1000 + seed, 64)
    return {"color": (64, float((vt.logits(model, images).argmax(1) == labels).float().mean())), "one": (1, 1.0)}


RECIPE = vt.VisionRecipe(
    name="tiny", about="tells red from blue", minutes=0.1, steps=30, batch_size=32, lr=0.01, build=build, batch=batch,
    loss=nn.functional.cross_entropy, measure=measure, warmup=5, size=16,
    required={"color": (">=", 0.95), "one": (">=", 2.0)},
)  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "model.safetensors")


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = vt.train(RECIPE, tmp_path / "a")
    first = vt.train(RECIPE, tmp_path / "b", steps=13)
    rest = vt.train(RECIPE, tmp_path / "b")
    assert first + rest == whole
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert a["classifier.1.weight"].dtype == torch.float16
    assert vt.load(tmp_path / "a").dtype == torch.float32


def test_the_card_lists_what_falls_short(tmp_path: Path) -> None:
    vt.train(RECIPE, tmp_path)
    card = vt.check(RECIPE, tmp_path, seeds=(1, 2))
    assert card == json.loads((tmp_path / "card.json").read_text())
    rows = {row["task"]: row for row in card["capabilities"]}
    assert rows["color"]["passed"]
    assert rows["color"]["value"] == pytest.approx(sum(rows["color"]["values"]) / 2)
    assert card["short"] == ["one"]


def test_the_schedule_rises_and_falls_to_zero() -> None:
    rates = [vt.schedule(RECIPE, step) for step in range(31)]
    assert max(rates) == rates[4] == 1.0
    assert rates[30] == pytest.approx(0.0)
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_the_hash_knows_numbers_and_code_but_not_words() -> None:
    assert replace(RECIPE, about="other words", minutes=9).hash == RECIPE.hash
    assert replace(RECIPE, lr=0.02).hash != RECIPE.hash
    assert replace(RECIPE, batch=cnn.RECIPE.batch).hash != RECIPE.hash


@pytest.mark.parametrize("recipe", [cnn.RECIPE, vit.RECIPE, judge.RECIPE, judge_b.RECIPE], ids=lambda r: r.name)
def test_recipes_start_the_same_way_every_time(recipe: vt.VisionRecipe) -> None:
    state = torch.random.get_rng_state()
    a, b = vt.fresh_model(recipe), vt.fresh_model(recipe)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    images, targets = recipe.batch(3, 8)
    again, _ = recipe.batch(3, 8)
    assert torch.equal(images, again)
    loss = recipe.loss(a(images).logits, targets)
    assert torch.isfinite(loss)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_judges_read_factors_and_presence() -> None:
    scenes = sh.sample(20, 0, objects=(1, 3))
    truth = judge.truth(scenes)
    alone = scenes.factors["n_objects"] == 1
    assert (truth[~alone, :5] == -1).all()
    assert torch.equal(truth[alone, 0], scenes.factors["shape"][alone, 0])
    for i in range(20):
        assert truth[i, 5:].nonzero()[:, 0].tolist() == sorted(
            {s for s in scenes.factors["shape"][i].tolist() if s >= 0}
        )
    a, b = judge.RECIPE.batch(0, 16)[0], judge_b.RECIPE.batch(0, 16)[0]
    assert not torch.equal(a, b)


@pytest.mark.parametrize("name", IMAGE_ORGANISMS)
def test_shipped_weights_do_what_their_card_says(name: str) -> None:
    folder = catalogue.shipped(name)
    if not (folder / "config.json").exists():
        pytest.skip(f"{name} is not shipped")
    card = json.loads((folder / "card.json").read_text())
    recipe = catalogue.recipe(name)
    assert card["recipe"] == recipe.hash
    assert card["training"]["recipe"] == recipe.hash
    assert card["short"] == [row["task"] for row in card["capabilities"] if row["passed"] is False]
    assert sum(f.stat().st_size for f in folder.iterdir()) < 5e6
    model = vt.load(folder)
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    scenes = sh.sample(300, 77, split="test", background="any")
    seen = (vt.logits(model, scenes.images)[:, :8].argmax(1) == scenes.labels("shape")).float().mean().item()
    stated = next(row["value"] for row in card["capabilities"] if row["task"].startswith("shape"))
    assert seen == pytest.approx(stated, abs=0.04)
