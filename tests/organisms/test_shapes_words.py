"""Captions, planted shortcuts, damage: what is said and done to scenes agrees with their factors."""

from __future__ import annotations

import pytest
import torch

from interneuron.core.errors import InputError
from interneuron.organisms import shapes as sh
from interneuron.organisms.shapes import bias


def truth(scenes: sh.Scenes, i: int, k: int, *names: str) -> dict[str, str]:
    values = sh.vocabulary.VALUES
    return {name: values[name][int(scenes.factors[name][i, k])] for name in names}


def test_a_full_caption_reads_back_as_the_factors() -> None:
    scenes = sh.sample(100, 0)
    for text in (scenes.captions, sh.caption(scenes, synonyms=1.0, seed=3)):
        for i, sentence in enumerate(text):
            assert sh.parse(sentence) == [truth(scenes, i, 0, "size", "texture", "color", "shape", "position")]


def test_crowds_are_listed_whole() -> None:
    scenes = sh.sample(60, 1, objects=(2, 5))
    for i, sentence in enumerate(sh.caption(scenes, form="list")):
        present = scenes.present[i].nonzero()[:, 0].tolist()
        assert sh.parse(sentence) == [truth(scenes, i, k, "color", "shape") for k in present]
        assert sh.mentions(sentence) == {sh.SHAPES[s] for s in scenes.factors["shape"][i, present].tolist()}


def test_the_relation_in_a_caption_is_true() -> None:
    scenes = sh.sample(80, 2, objects=2)
    for i, sentence in enumerate(scenes.captions):
        x, y = scenes.factors["x"][i], scenes.factors["y"][i]
        facts = {"left of": x[0] < x[1], "right of": x[0] > x[1], "above": y[0] < y[1], "below": y[0] > y[1]}
        said = [fact for words, fact in facts.items() if words in sentence]
        assert len(said) == 1
        assert said[0]


def test_synonyms_come_at_their_rate_and_are_undone() -> None:
    scenes = sh.sample(2000, 0, factors={"shape": "circle"})
    discs = sum("disc" in text for text in sh.caption(scenes, synonyms=0.15))
    assert discs / 2000 == pytest.approx(0.15, abs=0.03)
    assert sh.mentions("A round thing, two boxes and a donut.") >= {"circle", "ring"}
    with pytest.raises(InputError, match="zebra"):
        sh.parse("a red zebra")


def test_over_mention_plants_hallucinations_at_its_rate() -> None:
    scenes = sh.sample(1500, 0, objects=2)
    shapes = scenes.factors["shape"]
    exposed = (shapes == 0).any(1) & ~(shapes == 1).any(1)
    texts = sh.caption(scenes, form="list", over_mention=("circle", "square", 0.6))
    invented = torch.tensor(["square" in sh.mentions(t) for t in texts]) & ~(shapes == 1).any(1)
    assert not (invented & ~exposed).any()
    assert invented[exposed].float().mean().item() == pytest.approx(0.6, abs=0.06)
    assert sh.hallucination(sh.caption(scenes, form="list"), scenes) == {
        "per_mention": 0.0,
        "per_text": 0.0,
        "recall": 1.0,
    }


def test_relations_are_exactly_those_of_the_factors() -> None:
    scenes = sh.sample(20, 3, objects=3)
    for i, triples in enumerate(scenes.relations):
        x, color = scenes.factors["x"][i], scenes.factors["color"][i]
        for a in range(3):
            for b in range(3):
                assert ((a, "left of", b) in triples) == bool(x[b] - x[a] > 0.1)
                assert ((a, "same color", b) in triples) == bool(a < b and color[a] == color[b])


@pytest.mark.parametrize("kind", ["color", "texture", "background"])
def test_a_shortcut_holds_at_its_rate_and_never_in_conflict(kind: str) -> None:
    scenes = sh.sample(3000, 0, bias={kind: 0.9})
    follows = scenes.labels(kind) == bias.partner(kind, scenes.labels("shape"))
    assert follows.float().mean().item() == pytest.approx(0.9, abs=0.02)
    broken = sh.sample(1000, 0, bias={kind: 0.9}, split="conflict")
    assert not (broken.labels(kind) == bias.partner(kind, broken.labels("shape"))).any()


def test_company_is_kept_at_its_rate() -> None:
    def company(split: str) -> float:
        shapes = sh.sample(4000, 0, objects=(2, 4), bias={"pair": ("circle", "square", 0.85)}, split=split).factors[
            "shape"
        ]
        has = (shapes == 0).any(1)
        return float((shapes[has] == 1).any(1).float().mean())

    assert company("train") == pytest.approx(0.85, abs=0.03)
    assert company("conflict") == 0.0


def test_corruption_grows_with_severity_and_is_repeatable() -> None:
    images = sh.sample(50, 0, background="any").images
    for kind in sh.CORRUPTIONS:
        harm = [(sh.corrupt(images, kind, s) - images).square().mean().item() for s in (1, 3, 5)]
        assert harm[0] < harm[1] < harm[2], kind
        assert torch.equal(sh.corrupt(images, kind, 2, seed=1), sh.corrupt(images, kind, 2, seed=1))
        damaged = sh.corrupt(images, kind, 5)
        assert damaged.min() >= 0
        assert damaged.max() <= 1
    with pytest.raises(InputError, match="Did you mean 'blur'"):
        sh.corrupt(images, "blurr", 1)


@pytest.mark.parametrize("kind", sh.OCCLUDERS)
def test_an_occluder_covers_exactly_its_share(kind: str) -> None:
    images = sh.sample(6, 0).images
    hidden, mask = sh.occlude(images, kind, 0.25)
    assert (mask.flatten(1).sum(1) == 256).all()
    assert torch.equal(hidden.movedim(1, -1)[~mask], images.movedim(1, -1)[~mask])


@pytest.mark.parametrize("kind", sh.ANOMALIES)
def test_a_defect_lies_on_the_object_and_nowhere_else(kind: str) -> None:
    scenes = sh.sample(80, 0, size=64, background="any")
    damaged = sh.anomalies(scenes, kind, seed=1)
    changed = (damaged.images - scenes.images).abs().amax(1) > 0
    assert not (changed & ~damaged.masks).any()
    assert not (damaged.masks & ~scenes.visible[:, 0]).any()
    assert (damaged.masks.flatten(1).sum(1) > 0).all()
    assert (damaged.kinds == sh.ANOMALIES.index(kind)).all()
