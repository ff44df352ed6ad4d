"""The three lines of every method run on models it was not developed on: a real language model, a real vision model."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from safetensors.torch import load_file

from interneuron.core.cards import Card
from interneuron.core.errors import SiteNotFound
from interneuron.loading import load
from interneuron.model.load import wrap
from interneuron.model.model import Model
from interneuron.testing import cards_of
from interneuron.testing.behaviour import run_use_lines, use_lines
from interneuron.testing.state import snapshot
from interneuron.testing.subject import Subject

VISION = ('load("cnn")', 'load("vit")')


def uses(vision: bool) -> list[Card]:
    """The methods whose lines load a model for images, or another one."""
    texts = {card: "\n".join(use_lines(Subject(card))) for card in cards_of()}
    return [c for c, text in texts.items() if "inn.load(" in text and any(name in text for name in VISION) == vision]


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Model:
    """A Llama of 260 thousand parameters trained on children's stories, with its byte-pair tokenizer."""
    folder = shared_data / "models" / "tinystories-260k"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return load(folder)


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> Model:
    """A ResNet-20 trained on CIFAR-10, as a plain module that no family maps."""
    (weights,) = [*(shared_data / "models" / "cifar10-resnet20").glob("*.safetensors")] or [None]
    if weights is None:
        pytest.skip("no ResNet-20 weights")
    module = importlib.import_module("store_resnet").ResNet20()
    module.load_state_dict(load_file(weights))
    return wrap(module.eval())


def run_and_leave_alone(card: Card, model: Model) -> None:
    before = snapshot(model.module)
    run_use_lines(Subject(card), lambda: model)
    changed = [line for line in before.differences(snapshot(model.module)) if "rng" not in line]
    assert not changed, f"the lines under Use of {card.slug} left changes behind: {changed}"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("card", uses(vision=False), ids=lambda card: card.slug)
def test_language_methods_on_a_model_trained_on_stories(card: Card, stories: Model) -> None:
    run_and_leave_alone(card, stories)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("card", uses(vision=True), ids=lambda card: card.slug)
def test_vision_methods_on_a_model_trained_on_photographs(card: Card, photographs: Model) -> None:
    try:
        run_and_leave_alone(card, photographs)
    except SiteNotFound:  # a plain module has module paths only; the names of a family need a model of one
        run_and_leave_alone(card, load("cnn"))


@pytest.mark.usefixtures("unchecked")
def test_a_line_that_fails_is_seen() -> None:
    card = next(card for card in cards_of() if card.slug == "mean_difference")

    class Broken:
        def site(self, name: str) -> None:
            raise SiteNotFound(name)

    with pytest.raises(SiteNotFound):
        run_use_lines(Subject(card), Broken)
