"""Ladder side-tuning of `lm` on two tasks told as a token, from few labelled texts: the sentiment and the style.

As in the authors' code, a text comes with the name of its task, as T5 and lm met it in pretraining (`... sentiment :`);
the answers are `0` and `1`, which lm does not give; and there is a finite labelled set, gone through up to twenty
times, of which the state is kept that does best on texts set aside. In natural language many words of a new text were
in no labelled one; here 50 texts hold all words of a mood or a style. So half of the words of each slot (one of two,
two of three, four of eight; drawn by the seed, the same places in both classes) are in the 128 labelled texts, the
others in the 64 texts for choices and the 200 of the test. What is brought from pretraining decides then, and not how
long an arm was trained. Both tasks show in single words, whose embeddings know them well: a network without ladders,
which reads the embeddings too, can tell new words by them.

Each arm has the same texts in the same order, batches of 8, Adam, and of three rates (1e-3, 3e-3, the paper's for side
networks, and 1e-2) the one under which its loss on the texts for choices is lowest; full fine-tuning, of whose accuracy
no criterion speaks, has the paper's 3e-4 alone. A training ends when the mean loss of an epoch is at most 0.01, so that
little is left to learn, or after 20 epochs. LoRA is on all linear layers inside the blocks, at the rank nearest in
trained numbers. Besides, the side network learns the same texts without the name of the task, with ladders and without,
at the rates found with it: there lm has not yet made out the answer at the last token. Compared is the share of full
fine-tuning's saved bytes that each spares.

Readings of the check: accuracies are means over the two tasks. Fisher initialisation and a random one have the rate
that serves the random one best; the final loss is the mean of the last tenth of its steps, or 0.01, where training
ends, if that is more, and the steps that either needs are those until the mean of as many losses gets there. Saved
bytes are measured on one batch, the loss at the token that is to be told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.adapt.ladder_side_tuning import LadderSideNetwork, SideNetwork
from interneuron.artifacts.low_rank_adapter import LowRankAdapter
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.loading import load
from interneuron.model.model import Model
from interneuron.organisms import tinyworld as tw
from interneuron.organisms.tinyworld import stories
from interneuron.organisms.tinyworld import words as W
from interneuron.organisms.tinyworld.document import source
from interneuron.parts.linear_layers import block_linears, weight_of
from interneuron.parts.saved_tensors import SavedBytes

CLAIM = Claim(
    slug="ladder_side_tuning",
    organism="lm",
    paper="69% of full fine-tuning's memory saved against 26%; more accurate than LoRA where memory is scarce",
    better="higher",
    unit="share of saved bytes spared",
    minutes=14.0,
    why=(
        "The memory is spared as promised and accuracy is LoRA's, but the ladders bring no 5 points once every arm has "
        "learnt its texts. Without them the side network tells 1.00, 0.97 and 0.98 of the texts under the three seeds, "
        "whose words no labelled text held, with them 1.00: moods and styles show in single words, and the embeddings "
        "that both networks read know these. What the ladders spare is time, 2 passes through the labelled texts "
        "against 7 to 17; an earlier run, which stopped after 50 steps, met the criterion by that. Without the name of "
        "the task, where lm has not made out the answer itself, the network without ladders is no worse (0.99, 0.91 "
        "and 0.97 against 0.96, 0.91 and 0.94, at the rates found with the name). Fisher initialisation needs 0.75, "
        "0.51 and 0.67 of a random one's steps, of which there are few (2 to 3 passes, 32 to 48 steps)."
    ),
)

TASKS: dict[str, dict[str, dict[str, list[str]]]] = {
    "sentiment": {mood: {"person": W.PERSON[mood], "thing": W.THING[mood]} for mood in ("negative", "positive")},
    "style": {style: W.STYLES[style] for style in ("casual", "formal")},
}
"""task -> class -> slot -> its words."""
ROLES = {"sentiment": ("person", "thing"), "style": ("style",)}
REDUCTION, BATCH, EPOCHS, DONE = 8, 8, 20, 0.01
RATES, RATE_FULL = (1e-3, 3e-3, 1e-2), 3e-4
N_TRAIN, N_CHOICE, N_TEST, N_FISHER = 128, 64, 200, 16
ARMS = ("side, Fisher", "side, random", "no ladders", "LoRA", "full fine-tuning")
UNNAMED = ("side, Fisher", "no ladders")

Told = tuple[list[str], Tensor]
Logits = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class Run:
    """One training: rate, loss of every step, lowest loss on the texts for choices, accuracy in the test."""

    lr: float
    curve: list[float]
    choice: float
    accuracy: float


def claim(seed: int) -> Comparison:
    """Train five arms on each task and measure what each keeps for the backward pass."""
    model = load("lm")
    model.module.requires_grad_(True)
    probe_text = ["mia looked at the lamp .", "he felt sad ."]
    with torch.no_grad():
        before = model(probe_text).logits
    found: dict[str, list[Run]] = {name: [] for name in ARMS}
    unnamed: dict[str, list[Run]] = {name: [] for name in UNNAMED}
    untrained, needed = [], []
    batch: Told = ([], torch.zeros(0))
    for task in TASKS:
        bare = _texts(task, seed)
        parts = [([f"{text} {task} :" for text in texts], labels) for texts, labels in bare]
        batch = (parts[0][0][:BATCH], parts[0][1][:BATCH])
        untrained.append(_accuracy(partial(_last, model), parts[2]))
        runs = {}
        for name in ARMS:
            runs[name] = [_arm(model, name, lr, parts, seed) for lr in ((RATE_FULL,) if name == ARMS[-1] else RATES)]
            found[name].append(min(runs[name], key=lambda run: run.choice))
        for name in UNNAMED:
            unnamed[name].append(_arm(model, name, found[name][-1].lr, bare, seed))
        rival = found["side, random"][-1]
        ours = next(run for run in runs["side, Fisher"] if run.lr == rival.lr)
        needed.append(_needed(ours.curve, rival.curve))
    with torch.no_grad():
        same = torch.equal(model(probe_text).logits, before)
    saved = _saved(model, batch, seed)
    share = {name: value / saved["full"] for name, value in saved.items()}
    mean = {name: fmean(run.accuracy for run in runs) for name, runs in found.items()}
    return Comparison(
        ours=1 - share["side"],
        baseline=1 - share["LoRA"],
        gates={
            "saved bytes <= 0.4 of full fine-tuning": share["side"] <= 0.4,
            "LoRA saves >= 0.6 of the bytes of full fine-tuning": share["LoRA"] >= 0.6,
            "accuracy is at most 2 points below LoRA's": mean["side, Fisher"] >= mean["LoRA"] - 0.02,
            "accuracy is 5 points above no ladders": mean["side, Fisher"] >= mean["no ladders"] + 0.05,
            "Fisher reaches the final loss of random initialisation in <= 0.8 of the steps": fmean(needed) <= 0.8,
            "outputs of the backbone are unchanged, bit for bit": same,
        },
        extra={
            "share of bytes, side": share["side"],
            "share of bytes, LoRA": share["LoRA"],
            "share of steps to random's loss": fmean(needed),
            **{f"share of steps to random's loss, {task}": value for task, value in zip(TASKS, needed, strict=True)},
            "accuracy, lm as it is": fmean(untrained),
            **{f"accuracy, {name}": value for name, value in mean.items()},
            **_told("", found),
            **_told("unnamed ", unnamed),
        },
    )


def example(model: Model) -> SideNetwork:
    """Two steps on a few tokens."""
    ids = torch.randint(4, 500, (4, 16), generator=generator(0))
    side = LadderSideNetwork.from_backbone(model, reduction=8, init="magnitude")
    side.fit(ids, steps=2, batch_size=4)
    return side.artifact()


def _told(prefix: str, found: dict[str, list[Run]]) -> dict[str, float]:
    """Numbers of the run of each arm and task, to be shown beside the gates."""
    told = {}
    for name, runs in found.items():
        for task, run in zip(TASKS, runs, strict=True):
            where = f"{prefix}{task}, {name}"
            told[f"accuracy on {where}"] = run.accuracy
            told[f"epochs, {where}"] = len(run.curve) * BATCH / N_TRAIN
            told[f"last loss, {where}"] = fmean(run.curve[-N_TRAIN // BATCH :])
            told[f"lr, {where}"] = run.lr
    return told


def _arm(model: Model, name: str, lr: float, parts: list[Told], seed: int) -> Run:
    """Train one arm under one rate."""
    leaves: list[Tensor]
    if name == "LoRA":
        adapter, leaves = _fresh_lora(model, _size(model, seed), seed)
        logits: Logits = partial(_adapted, model, adapter)
    elif name == "full fine-tuning":
        own = load("lm")
        leaves = list(own.module.requires_grad_(True).parameters())
        logits = partial(_last, own)
    else:
        begin = {"init": "random"} if name == "side, random" else {"init": "fisher", "inputs": parts[0][0][:N_FISHER]}
        ladders = name != "no ladders"
        side = LadderSideNetwork.from_backbone(model, REDUCTION, seed=seed, ladders=ladders, **begin)  # type: ignore[arg-type]
        leaves = [p for p in side.parameters() if p.requires_grad]
        logits = partial(side, last=True)
    return _trained(logits, leaves, parts, lr, seed)


def _trained(logits: Logits, leaves: list[Tensor], parts: list[Told], lr: float, seed: int) -> Run:
    """Train with Adam, keep the state with the lowest loss on the texts for choices, and test that one."""
    (texts, labels), choice, test = parts
    optimiser, rng, curve = torch.optim.Adam(leaves, lr=lr), generator(seed), []
    lowest, kept = float("inf"), [leaf.detach().clone() for leaf in leaves]
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(texts), generator=rng).split(BATCH):
            loss = F.cross_entropy(logits([texts[int(i)] for i in rows]), labels[rows])
            for leaf, slope in zip(leaves, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True):
                leaf.grad = slope  # none where there are no ladders: gates, all of Down but the first
            optimiser.step()
            curve.append(float(loss.detach()))
        with torch.no_grad():
            now = float(F.cross_entropy(logits(choice[0]), choice[1]))
        if now < lowest:
            lowest, kept = now, [leaf.detach().clone() for leaf in leaves]
        if fmean(curve[-len(texts) // BATCH :]) <= DONE:
            break
    with torch.no_grad():
        for leaf, value in zip(leaves, kept, strict=True):
            leaf.copy_(value)
    return Run(lr, curve, lowest, _accuracy(logits, test))


def _size(model: Model, seed: int) -> int:
    return LadderSideNetwork.from_backbone(model, REDUCTION, init="random", seed=seed).n_parameters


def _fresh_lora(model: Model, size: int, seed: int) -> tuple[LowRankAdapter, list[Tensor]]:
    """LoRA before training, its rank so that the trained numbers come nearest to `size`."""
    layers = {path: weight_of(layer) for path, layer in block_linears(model).items()}
    rank = max(round(size / sum(sum(w.shape) for w in layers.values())), 1)
    rng, a, b = generator(seed), {}, {}
    for path, w in layers.items():
        a[path] = ((2 * torch.rand(rank, w.shape[1], generator=rng) - 1) / w.shape[1] ** 0.5).requires_grad_()
        b[path] = torch.zeros(w.shape[0], rank, requires_grad=True)
    return LowRankAdapter(a=a, b=b), [*a.values(), *b.values()]


def _adapted(model: Model, adapter: LowRankAdapter, texts: list[str]) -> Tensor:
    """Logits [N V] after the last token of each text under an adapter."""
    with model.edit(adapter.edit()):
        return _last(model, texts)


def _last(model: Model, texts: list[str]) -> Tensor:
    _, given = model.prepare(texts)
    ends = given["attention_mask"].sum(1) - 1
    return model(given).logits[torch.arange(len(texts)), ends]


@torch.no_grad()
def _accuracy(logits: Logits, told: Told) -> float:
    texts, labels = told
    parts = [logits(texts[i : i + 50]).argmax(-1) for i in range(0, len(texts), 50)]
    return float((torch.cat(parts) == labels).float().mean())


def _needed(curve: list[float], rival: list[float]) -> float:
    """Steps until the mean of the last few losses reaches the rival's final loss, over the steps the rival needs."""
    window = max(len(rival) // 10, 1)
    goal = max(fmean(rival[-window:]), DONE)

    def first(losses: list[float]) -> int:
        means = (n for n in range(window, len(losses) + 1) if fmean(losses[n - window : n]) <= goal)
        return next(means, max(len(curve), len(rival)))

    return first(curve) / first(rival)


def _saved(model: Model, batch: Told, seed: int) -> dict[str, int]:
    """Bytes kept for the backward pass by one batch."""
    texts, labels = batch
    side = LadderSideNetwork.from_backbone(model, REDUCTION, init="random", seed=seed)
    found = {}
    with SavedBytes(model, exclude=side.parameters()) as meter:
        held = side.loss(texts, labels)
    found["side"] = meter.live
    with SavedBytes(model) as meter:
        held = F.cross_entropy(_last(model, texts), labels)
    found["full"] = meter.live
    adapter, leaves = _fresh_lora(model, side.n_parameters, seed)
    model.module.requires_grad_(False)
    with SavedBytes(model, exclude=leaves) as meter:
        held = F.cross_entropy(_adapted(model, adapter, texts), labels)
    found["LoRA"] = meter.live
    model.module.requires_grad_(True)
    del held
    return found


def _texts(task: str, seed: int) -> list[Told]:
    """Texts and the token of their class: labelled ones, and of unseen words some for choices and others to test."""
    labelled, unseen = _halves(task, seed)
    tokens, parts, i = [tw.encode(digit)[1] for digit in "01"], [], 0
    for n, allowed in ((N_TRAIN, labelled), (N_CHOICE, unseen), (N_TEST, unseen)):
        rows = [_story(task, source(9100 + seed, i + j), allowed) for j in range(n)]
        i += n
        parts.append(([text for text, _ in rows], torch.tensor([tokens[label] for _, label in rows])))
    return parts


def _halves(task: str, seed: int) -> tuple[set[str], set[str]]:
    """Half of the words of each slot, at the same places in both classes lest a name tell the class, and the others."""
    rng, halves = Random(seed), (set[str](), set[str]())
    slots = list(TASKS[task].values())
    for slot, words in slots[0].items():
        chosen = rng.sample(range(len(words)), (len(words) + 1) // 2)
        for of_class in slots:
            for place, word in enumerate(of_class[slot]):
                halves[place not in chosen].add(word)
    return halves


def _story(task: str, rng: Random, allowed: set[str]) -> tuple[str, int]:
    """A story that shows its mood or style in allowed words alone, and the number of its class."""
    truth, length, label = tw.World(0).truth, rng.choice((2, 3, 4)), rng.randrange(2)
    fixed = {task: list(TASKS[task])[label], "detail": rng.choice(("verbose", "concise"))}
    while True:
        lat = {**stories.draw(rng, truth), "tone": rng.choice(("toxic", "clean")), **fixed}
        doc = stories.story(lat, length)
        spans = [span for role in ROLES[task] for span in doc.roles.get(role, [])]
        if all(" ".join(doc.words[a:b]) in allowed for a, b in spans):
            return doc.text, label
