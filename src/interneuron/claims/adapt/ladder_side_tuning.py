"""Ladder side-tuning of `lm` on six tasks told as a token, from few labelled texts with words of the test in none.

The check names sentiment and style. These two alone do not show what ladders bring: moods and styles are single words,
whose embeddings a network without ladders reads as well, and once every arm has learnt its texts it tells new ones no
worse. The paper judges the mean over the tasks of GLUE, of which one (SST-2) is of that kind; in the others one must
understand, and understanding is what ladders fetch from the backbone. A deviation from the check, then: four
counterparts of GLUE's other kinds, chosen before any of them was trained on and all kept; what is learnt is judged by
the mean over all six, and the mean over the check's two alone is told in the extra numbers.

    truth          (QNLI)       claim : Dakolo plays banjo . verdict :
    paraphrase     (MRPC, QQP)  claim : Dakolo has the pet goat . fact : Dakolo owns goat . verdict :
    acceptability  (CoLA)       yeah tom headed the down park . he felt kinda glad . verdict :
    inference      (MNLI, RTE)  isa a b . isa c d . question : isa a d ? because isa a b , answer :

Three are documents of lm up to its answer; no document asks for the fourth, but lm knows the order of words. Their
texts come in fours or pairs in which every word is as often under one label as under the other. As in the authors'
code, a text ends with the name of its task, as T5 and lm met it in pretraining; the answers are `0` and `1`, which lm
does not give.
Half of the words of each slot (names, values, moods, kinds; drawn by the seed, at the same places in both classes) are
in the 256 labelled texts, the others in the 64 texts for choices and the 400 of the test; no fact told true or false
is in two of the three. Under a development seed 128 texts and as many epochs taught no arm the order of words.

Each arm has the same texts in the same order, batches of 8, Adam, and of three rates (1e-3, 3e-3, the paper's for side
networks, and 1e-2) and all epochs the state whose loss on the texts for choices is lowest. A training ends when the
mean loss of an epoch is at most 0.01, so that little is left to learn, when the loss on the texts for choices has not
fallen for ten epochs, or after twenty. LoRA is on all linear layers inside the blocks, at the rank nearest in trained
numbers. Compared is the share of full fine-tuning's saved bytes that each spares; the accuracy of full fine-tuning, of
which no criterion speaks, is not measured.

Readings of the check: accuracies, and the shares of steps, are means over the tasks. Fisher initialisation and a random
one have the rate that serves the random one best; the final loss is the mean of the last tenth of its steps, or 0.01,
where training ends, if that is more, and the steps that either needs are those until the mean of as many losses gets
there. Saved bytes are measured on one batch, the loss at the token that is to be told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, product
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
from interneuron.organisms.tinyworld import knowledge, reasoning, stories
from interneuron.organisms.tinyworld import words as W
from interneuron.organisms.tinyworld.document import Document, source
from interneuron.parts.linear_layers import block_linears, weight_of
from interneuron.parts.saved_tensors import SavedBytes

CLAIM = Claim(
    slug="ladder_side_tuning",
    organism="lm",
    paper="69% of full fine-tuning's memory saved against 26%; more accurate than LoRA where memory is scarce",
    better="higher",
    unit="share of saved bytes spared",
    minutes=45.0,
    why=(
        "Memory is spared as promised, and over six tasks the ladders are worth 25, 25 and 28 points; on the check's "
        "two alone they are worth 0.25, 0 and 0, for sentiment and style show in single words. LoRA is ahead by 3.2, "
        "3.8 and 0.8 points where 2 are allowed, by the order of words alone, about which lm has no answer ready: "
        "LoRA tells 0.82, 0.81 and 0.82 of those texts, the side network 0.57, 0.58 and 0.74, its training loss still "
        "0.70, 0.71 and 0.55 after 20 epochs. On the other five it has 0.98 each time, LoRA 0.97, 0.98 and 0.98. "
        "Fisher initialisation needs 1.01, 1.17 and 1.00 of a random one's steps, 0.56, 0.71 and 0.61 on the check's "
        "two. With r = 4, on a development seed, it is within 2 points of LoRA."
    ),
)

MOODS, STYLES = ("negative", "positive"), ("casual", "formal")
SLOTS: dict[str, list[tuple[list[str], ...]]] = {
    "sentiment": [tuple(words[mood] for mood in MOODS) for words in (W.PERSON, W.THING)],
    "style": [tuple(W.STYLES[style][slot] for style in STYLES) for slot in ("title", "go", "degree", "tail")],
    "truth": [(W.KNOWN,)],
    "paraphrase": [(W.KNOWN,), *((values,) for values in W.VALUES.values())],
    "acceptability": [(W.WOMEN, W.MEN), (W.ENTITIES,), (W.PLACES,), (W.OBJECTS,),
                      *(tuple(words[mood] for mood in MOODS) for words in (W.PERSON, W.THING))],
    "inference": [(W.KINDS,)],
}  # fmt: skip
"""task, the two of the check first -> slots whose words are divided; the lists of one at the same places."""
REDUCTION, BATCH, EPOCHS, PATIENCE, DONE = 8, 8, 20, 10, 0.01
RATES = (1e-3, 3e-3, 1e-2)
N_TRAIN, N_CHOICE, N_TEST, N_FISHER = 256, 64, 400, 16
ARMS = ("side, Fisher", "side, random", "no ladders", "LoRA")

Row = tuple[str, int]
Told = tuple[list[str], Tensor]
Logits = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class Run:
    """One training: rate, loss of every step, lowest loss on the texts for choices, what it tells; of the run chosen,
    the accuracy in the test."""

    lr: float
    curve: list[float]
    choice: float
    logits: Logits
    accuracy: float = 0.0


def claim(seed: int) -> Comparison:
    """Train four arms on each task and measure what each keeps for the backward pass."""
    model = load("lm")
    model.module.requires_grad_(True)
    probe_text = ["mia looked at the lamp .", "he felt sad ."]
    with torch.no_grad():
        before = model(probe_text).logits
    found: dict[str, list[Run]] = {name: [] for name in ARMS}
    untrained, needed, batches = [], [], []
    for task in SLOTS:
        parts = _texts(task, seed)
        batches.append((parts[0][0][:BATCH], parts[0][1][:BATCH]))
        untrained.append(_accuracy(partial(_last, model), parts[2]))
        runs = {}
        for name in ARMS:
            runs[name] = [_arm(model, name, lr, parts, seed) for lr in RATES]
            chosen = min(runs[name], key=lambda run: run.choice)
            found[name].append(replace(chosen, accuracy=_accuracy(chosen.logits, parts[2])))
        rival = found["side, random"][-1]
        ours = next(run for run in runs["side, Fisher"] if run.lr == rival.lr)
        needed.append(_needed(ours.curve, rival.curve))
    with torch.no_grad():
        same = torch.equal(model(probe_text).logits, before)
    saved = _saved(model, batches[0], seed)
    share = {name: value / saved["full"] for name, value in saved.items()}
    mean = {name: fmean(run.accuracy for run in runs) for name, runs in found.items()}
    both = " and ".join(tuple(SLOTS)[:2])
    checked = {name: fmean(run.accuracy for run in runs[:2]) for name, runs in found.items()}
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
            f"share of steps to random's loss, {both} alone": fmean(needed[:2]),
            **{f"share of steps to random's loss, {task}": value for task, value in zip(SLOTS, needed, strict=True)},
            "accuracy, lm as it is": fmean(untrained),
            **{f"accuracy, {name}": value for name, value in mean.items()},
            **{f"accuracy on {both} alone, {name}": value for name, value in checked.items()},
            **_told(found),
        },
    )


def example(model: Model) -> SideNetwork:
    """Two steps on a few tokens."""
    ids = torch.randint(4, 500, (4, 16), generator=generator(0))
    side = LadderSideNetwork.from_backbone(model, reduction=8, init="magnitude")
    side.fit(ids, steps=2, batch_size=4)
    return side.artifact()


def _told(found: dict[str, list[Run]]) -> dict[str, float]:
    """Numbers of the run of each arm and task, to be shown beside the gates."""
    told = {}
    for name, runs in found.items():
        for task, run in zip(SLOTS, runs, strict=True):
            where = f"{task}, {name}"
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
    else:
        begin = {"init": "random"} if name == "side, random" else {"init": "fisher", "inputs": parts[0][0][:N_FISHER]}
        ladders = name != "no ladders"
        side = LadderSideNetwork.from_backbone(model, REDUCTION, seed=seed, ladders=ladders, **begin)  # type: ignore[arg-type]
        leaves = [p for p in side.parameters() if p.requires_grad]
        logits = partial(side, last=True)
    return _trained(logits, leaves, parts, lr, seed)


def _trained(logits: Logits, leaves: list[Tensor], parts: list[Told], lr: float, seed: int) -> Run:
    """Train with Adam, keep the state with the lowest loss on the texts for choices."""
    texts, labels = parts[0]
    choice = parts[1]
    optimiser, rng, curve = torch.optim.Adam(leaves, lr=lr), generator(seed), []
    lowest, best, kept = float("inf"), 0, [leaf.detach().clone() for leaf in leaves]
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(texts), generator=rng).split(BATCH):
            loss = F.cross_entropy(logits([texts[int(i)] for i in rows]), labels[rows])
            for leaf, slope in zip(leaves, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True):
                leaf.grad = slope  # none where there are no ladders: gates, all of Down but the first
            optimiser.step()
            curve.append(float(loss.detach()))
        with torch.no_grad():
            now = float(F.cross_entropy(logits(choice[0]), choice[1]))
        if now < lowest:
            lowest, best, kept = now, epoch, [leaf.detach().clone() for leaf in leaves]
        if fmean(curve[-len(texts) // BATCH :]) <= DONE or epoch - best == PATIENCE:
            break
    with torch.no_grad():
        for leaf, value in zip(leaves, kept, strict=True):
            leaf.copy_(value)
    return Run(lr, curve, lowest, logits)


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
    tokens, parts, i = [tw.encode(digit)[1] for digit in "01"], [], 0
    for n, allowed in zip((N_TRAIN, N_CHOICE, N_TEST), _divided(task, seed), strict=True):
        rows: list[Row] = []
        while len(rows) < n:
            rows += MAKERS[task](source(9100 + seed, i), allowed)
            i += 1
        parts.append(([text for text, _ in rows], torch.tensor([tokens[label] for _, label in rows])))
    return parts


def _divided(task: str, seed: int) -> tuple[set[str], set[str], set[str]]:
    """Words of the labelled texts, of those for choices and of the test: half of each slot, and twice the others.

    The entities of facts are divided once more, lest a state be chosen by facts of the test.
    """
    rng, seen, others = Random(seed), set[str](), set[str]()
    for slot in SLOTS[task]:
        chosen = rng.sample(range(len(slot[0])), (len(slot[0]) + 1) // 2)
        for words in slot:
            for place, word in enumerate(words):
                (seen if place in chosen else others).add(word)
    if task != "truth":
        return seen, others, others
    first = set(rng.sample(sorted(others), len(others) // 3))
    return seen, first, others - first


def _story(rng: Random, allowed: set[str], roles: tuple[str, ...], **fixed: object) -> list[str]:
    """The words of a story that has allowed ones alone in some roles."""
    length = rng.choice((2, 3, 4))
    while True:
        lat = {**stories.draw(rng, tw.World(0).truth), "tone": rng.choice(("toxic", "clean")), **fixed}
        doc = stories.story(lat, length)
        spans = [span for role in roles for span in doc.roles.get(role, [])]
        if all(" ".join(doc.words[a:b]) in allowed for a, b in spans):
            return doc.words


def _sentiment(rng: Random, allowed: set[str]) -> list[Row]:
    label = rng.randrange(2)
    story = _story(rng, allowed, ("person", "thing"), sentiment=MOODS[label])
    return [(" ".join([*story, "sentiment :"]), label)]


def _style(rng: Random, allowed: set[str]) -> list[Row]:
    label = rng.randrange(2)
    return [(" ".join([*_story(rng, allowed, ("style",), style=STYLES[label]), "style :"]), label)]


def _fact(entity: str, relation: str, value: str, template: int) -> str:
    return knowledge.fact_line(Document("fact"), entity, relation, value, template).text


def _truth(rng: Random, allowed: set[str]) -> list[Row]:
    """Two entities with the value of each: every word is as often in a true statement as in a false one."""
    facts, relation, template = tw.World(0).truth.facts, rng.choice(W.RELATIONS), rng.choice((0, 1, 4))
    while True:
        true = {entity: facts[entity, relation].value for entity in rng.sample(sorted(allowed), 2)}
        if len(set(true.values())) == 2:
            break
    pairs = product(true, true.values())
    return [(f"claim : {_fact(e, relation, v, template)} verdict :", true[e] == v) for e, v in pairs]


def _paraphrase(rng: Random, allowed: set[str]) -> list[Row]:
    """One entity and two values, true or not, told in two templates: the same value twice, or one and the other."""
    relation, template = rng.choice(W.RELATIONS), rng.choice((0, 4))
    entity = rng.choice(sorted(allowed & set(W.KNOWN)))
    values = rng.sample(sorted(allowed & set(W.VALUES[relation])), 2)
    return [
        (f"claim : {_fact(entity, relation, v, template)} fact : {_fact(entity, relation, w, 1)} verdict :", v == w)
        for v, w in product(values, repeat=2)
    ]


def _acceptability(rng: Random, allowed: set[str]) -> list[Row]:
    """A concise story, and the same with two neighbouring words the other way round."""
    good = _story(rng, allowed, ("name", "place", "object", "person", "thing"), detail="concise")
    i = rng.choice([i for i in range(len(good) - 1) if good[i] != good[i + 1]])
    bad = [*good[:i], good[i + 1], good[i], *good[i + 2 :]]
    return [(" ".join([*words, "verdict :"]), label) for label, words in enumerate((bad, good))]


def _inference(rng: Random, allowed: set[str]) -> list[Row]:
    """Two chains of one or two rules; is the lowest kind of either one of the highest of either, steps spelled out?"""
    hops = rng.choice((1, 2))
    kinds = rng.sample(sorted(allowed), 2 * hops + 2)
    one, two = tuple(kinds[: hops + 1]), tuple(kinds[hops + 1 :])
    rules = [*pairwise(one), *pairwise(two)]
    rng.shuffle(rules)
    theory, rows = reasoning.Theory(one, two, tuple(rules)), []
    for low, high in product((one[0], two[0]), (one[-1], two[-1])):
        doc = reasoning.question(reasoning.premises(Document("ontology"), theory), theory, low, high, chain=True)
        rows.append((" ".join(doc.words[:-2]), high in theory.path(low)))
    return rows


MAKERS: dict[str, Callable[[Random, set[str]], list[Row]]] = {
    "sentiment": _sentiment,
    "style": _style,
    "truth": _truth,
    "paraphrase": _paraphrase,
    "acceptability": _acceptability,
    "inference": _inference,
}
