"""Relation-specific neurons at 1 %: in networks whose units fire rarely, the top 1 % for a relation break it.

A world of 100 relations over 60 entities is drawn from the seed, and three one-layer Transformers (GPT-2 class, squared
ReLU, 3,200 units) are trained on its facts in two languages until they know the 6,000 in both. The languages differ in
the words for relations and in grammar (Tinyworld's templates) and share the names of entities and values, as texts
about people and places do. Every four relations take their values from twelve of their own; the eight asked about are
all those of two such kinds, so that some are close to each other and others are not.

One half of the entities chooses the units, in all six templates of language 1, the other half tests them, in the
template that is new for each fact, in language 1 and in language 2. Then the halves change places, and what the two
turns found with the three networks is averaged (one network met every gate narrowly on a development seed). Every
entity has all relations, so what an entity is cannot tell relations apart; the paper's rule that entities must not be
shared between relations serves the same end. Numbers are accuracies on the answers a model gives right without any
ablation. The headline is the loss per relation beside that of random units of the same layers; the control chooses
units with shuffled relation labels, and counts as random when its loss is within ten points of as many random units of
its own layers.

Deviations. The check names `lm`. On none of the shipped models do the top 1 % by average precision take 30 points (on
`lm-gpt2` 7 of 100, 4 % take 62, 16 % take 98; what 1 % take on `lm` and `lm-gpt2` is reported): with half of the units
active at every word, a relation is spread over far more than 1 % of them, while in the paper's models few are. So the
networks here are trained with a penalty on the sum of a fact's activations, which leaves few units active (their share
is reported) and says nothing about relations. It is what decides: of networks that know 16 relations one without it
lost 3 points and one with 6 % of its units active 32; with 24 to 100 relations and fewer active units it was 35 to 38.
Accuracy on other relations hardly moves at 1 %, so the overlap of two relations is compared with the loss of
log-probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from interneuron.circuit.relation_neurons import RelationNeuronFinder, RelationNeurons, accuracy, relation_matrix
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator, numpy_rng
from interneuron.loading import load
from interneuron.model.edits import Edits
from interneuron.model.load import wrap
from interneuron.model.model import Model
from interneuron.organisms import tinyworld as tw
from interneuron.organisms.muon import Muon
from interneuron.organisms.tinyworld.document import Document
from interneuron.organisms.tinyworld.knowledge import TEMPLATES, TEMPLATES_L2, fact_line
from interneuron.organisms.tinyworld.world import N_TEMPLATES, Truth
from interneuron.parts.patching import ablate_neurons

CLAIM = Claim(
    slug="relation_neurons",
    organism="100 relations",
    paper="relation-specific neurons exist, are cumulative, versatile and partly shared across languages",
    better="higher",
    unit="accuracy lost",
    minutes=15.0,
    why=(
        "This holds in networks made for the question, whose units fire rarely (under 1 % of them for a fact); none "
        "of the twelve shipped language models loses more than 12 points at 1 % (lm-gpt2 9, lm none), and a former "
        "run on lm-gpt2, with 16 % of its units, met every other criterion. That the languages share the names of "
        "entities makes what one language shows likely in the other, and the eight relations asked about are two "
        "groups of four close ones, which helps overlap to show: sets overlap by 0.2 to 0.4 % only, and foretell "
        "the loss of log-probability with a rank correlation of 0.42 to 0.57. Interference, a relation that gains "
        "when the units of another are switched off, was found nowhere. The random units of the baseline are drawn "
        "among all, of which few ever fire, so they hardly could do harm."
    ),
)

RELATIONS, CLOSE, ENTITIES, VALUES, ASKED = 100, 4, 60, 12, 8
MODELS = 3
WIDTH, HEADS, UNITS = 128, 4, 3200
STEPS, BATCH, RATE, ADAM_RATE, SPARSE = 1100, 576, 0.01, 3e-3, 0.03
SHARES = (0.01, 0.02, 0.04, 0.08, 0.16)
SHARE = SHARES[0]
Questions = dict[str, tuple[list[str], list[str]]]


def claim(seed: int) -> Comparison:
    """Accuracy lost per relation by its own units, by random units and by units chosen with shuffled labels."""
    world = _World(seed)
    models = [_trained(world, 10 * seed + i) for i in range(MODELS)]
    order = numpy_rng(seed, "relation_neurons").permutation(ENTITIES).tolist()
    one, two = order[: ENTITIES // 2], order[ENTITIES // 2 :]
    turns = [_turn(model, world, *halves, seed) for model, _ in models for halves in ((one, two), (two, one))]
    found = {name: torch.stack([turn[name] for turn in turns]).mean(0) for name in turns[0]}
    lost, control = found["lost"], found["control"]
    own, others = lost.diagonal(), (lost.sum(1) - lost.diagonal()) / (len(lost) - 1)
    specific = int(((own >= control + 0.30) & (own >= 2 * others)).sum())
    effect, second = float((own - control).mean()), float(found["second"])
    curve = _spearman([0.0, *SHARES], [1.0, *(1.0 - found["curve"]).tolist()])
    versatile = _spearman(_off_diagonal(found["overlap"]), _off_diagonal(found["log_prob"]))
    excess = abs(float((found["shuffled"] - found["shuffled control"]).mean()))
    return Comparison(
        ours=own.tolist(),
        baseline=control.tolist(),
        control=found["shuffled"].tolist(),
        gates={
            f"the top {SHARE:.0%} take 30 points more than random units, twice that of others, for 6 of 8": specific
            >= 6,
            "accuracy falls with the number of units (Spearman <= -0.9)": curve <= -0.9,
            "units chosen in language 1 have a third of the effect in language 2": second >= effect / 3,
            "overlap predicts the loss of log-probability on other relations (Spearman >= 0.4)": versatile >= 0.4,
            "units chosen with shuffled labels do as random ones": excess <= 0.10,
        },
        extra={
            "relations that meet both": specific,
            **{f"loss, top {share:.0%}": loss for share, loss in zip(SHARES, found["curve"].tolist(), strict=True)},
            "loss on other relations": float(others.mean()),
            "loss by random units": float(control.mean()),
            "loss by random units like the shuffled": float(found["shuffled control"].mean()),
            "effect in language 2": second,
            "Spearman of accuracy and number": curve,
            "Spearman of overlap and loss": versatile,
            "mean overlap of two relations": _mean(_off_diagonal(found["overlap"])),
            "mean average precision of the units": float(found["precision"]),
            "pairs with interference, a turn": float(found["interference"]),
            "facts known in language 1": float(found["known"]),
            "units active for a fact": _mean([active for _, active in models]),
            **{f"loss on {name}, top {SHARE:.0%}": _shipped(name, seed) for name in ("lm", "lm-gpt2")},
        },
    )


def _turn(model: Model, world: _World, chosen: list[int], held: list[int], seed: int) -> dict[str, Tensor]:
    """What units chosen on some entities do to facts about others; losses of accuracy, larger for more harm."""
    used = _right(model, world.questions(chosen, 1, every=True))
    asked = world.questions(held, 1)
    sets, second = _right(model, asked), _right(model, world.questions(held, 2))
    units = RelationNeuronFinder(SHARES[-1], seed=seed).fit(model, {r: q[0] for r, q in used.items()})
    total = sum(units.widths)
    curve = [_mean([_loss(model, q, units.ablation(r, round(f * total))) for r, q in sets.items()]) for f in SHARES]
    units = _first(units, round(SHARE * total))
    report = relation_matrix(model, units, sets, seed=seed)
    shuffled = RelationNeuronFinder(SHARE, seed=seed).fit(model, _shuffled(used, seed))
    return {
        "lost": -report.arrays["change"],
        "log_prob": -report.arrays["log_prob"],
        "control": -report.arrays["control"],
        "interference": torch.tensor(float(len(report.tables["interference"]))),
        "overlap": units.overlap(),
        "precision": torch.stack([p.mean() for p in units.precision.values()]).mean(),
        "curve": torch.tensor(curve),
        "second": torch.tensor(_second_language(model, units, second, seed)),
        "known": torch.tensor(sum(len(sets[r][0]) for r in sets) / sum(len(asked[r][0]) for r in asked)),
        "shuffled": torch.tensor([_loss(model, q, shuffled.ablation(r)) for r, q in sets.items()]),
        "shuffled control": torch.tensor(
            [_loss(model, q, _placebo(shuffled, r, seed + i)) for i, (r, q) in enumerate(sets.items())]
        ),
    }


def example(model: Model) -> RelationNeurons:
    """The units of two relations, from four entities each, with the accuracy they cost."""
    questions = _tinyworld(list(Truth().entities)[:4], ("home", "job"))
    units = RelationNeuronFinder(SHARES[2]).fit(model, {r: q[0] for r, q in questions.items()})
    lost = {r: _loss(model, q, units.ablation(r)) for r, q in questions.items()}
    return units.replace(fitted={**units.fitted, "lost": lost})


@dataclass(frozen=True)
class _World:
    """The facts of a seed: entity and relation decide a value, one of the twelve of the relation's kind."""

    seed: int

    @property
    def values(self) -> Tensor:
        """Int[R E], the value of each fact among those of its kind."""
        return torch.randint(VALUES, (RELATIONS, ENTITIES), generator=generator(self.seed, "values"))

    @property
    def held(self) -> Tensor:
        """Int[2 R E], the template in which a fact is never trained, by language."""
        return torch.randint(N_TEMPLATES, (2, RELATIONS, ENTITIES), generator=generator(self.seed, "templates"))

    def prompt(self, language: int, template: int, relation: int, entity: int) -> str:
        """A fact's sentence up to the value."""
        words = {"{R}": f"relation{relation}" if language == 1 else f"noitaler{relation}", "{E}": f"entity{entity}"}
        words["{VERB}"] = words["{R}"]
        sentence = (TEMPLATES, TEMPLATES_L2)[language - 1][template].split()
        return " ".join(words.get(word, word) for word in sentence[: sentence.index("{V}")])

    def answers(self) -> list[list[str]]:
        """The value's word by relation and entity; four relations in a row are of one kind."""
        return [[f"value{r // CLOSE}x{v}" for v in row] for r, row in enumerate(self.values.tolist())]

    def questions(self, entities: list[int], language: int, every: bool = False) -> Questions:
        """Prompts of the eight relations, with the value: in the template new for each fact, or in every template."""
        held, answers, found = self.held, self.answers(), {}
        for r in range(ASKED):
            asked = [
                (self.prompt(language, k, r, e), answers[r][e])
                for e in entities
                for k in (range(N_TEMPLATES) if every else [int(held[language - 1, r, e])])
            ]
            found[f"relation{r}"] = ([prompt for prompt, _ in asked], [answer for _, answer in asked])
        return found

    def tokenizer(self) -> Any:
        """Words to ids; what a prompt begins with is id 1."""
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        grammar = [w for t in (*TEMPLATES, *TEMPLATES_L2) for w in t.split() if "{" not in w]
        names = [f"{stem}{i}" for stem in ("relation", "noitaler") for i in range(RELATIONS)]
        names += [f"entity{i}" for i in range(ENTITIES)]
        names += [f"value{kind}x{v}" for kind in range(RELATIONS // CLOSE) for v in range(VALUES)]
        words = dict.fromkeys(["<pad>", "<bos>", *grammar, *names])
        core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
        core.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=core, bos_token="<bos>", pad_token="<pad>", padding_side="right"
        )


def _trained(world: _World, seed: int) -> tuple[Model, float]:
    """A model that knows the world, trained on the value after every prompt, and the share of units it has active."""
    tokenizer = world.tokenizer()
    prompts = [_encoded(world, tokenizer, language) for language in (1, 2)]
    words = [word for row in world.answers() for word in row]
    answers = torch.tensor(tokenizer(words, add_special_tokens=False)["input_ids"]).flatten()
    held, stream = world.held.flatten(1), generator(seed, "batches")
    module = _network(len(tokenizer), seed)
    mlp = module.transformer.h[0].mlp
    hidden: list[Tensor] = []

    def last_word(_: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        return (given[0][:, -1:],)  # the answer is read there, so the only MLP is not needed at the others

    def keep(_: nn.Module, given: tuple[Tensor]) -> None:
        hidden.append(given[0])

    hooks = (mlp.register_forward_pre_hook(last_word), mlp.c_proj.register_forward_pre_hook(keep))
    matrices = [p for name, p in module.named_parameters() if p.ndim == 2 and "wte" not in name and "wpe" not in name]
    rest = [p for p in module.parameters() if all(p is not matrix for matrix in matrices)]
    rules = (Muon(matrices, lr=RATE), torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0))
    for step in range(STEPS):
        for rule, rate in zip(rules, (RATE, ADAM_RATE), strict=True):
            rule.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 50, 2 * (1 - step / STEPS))
        language = int(torch.rand((), generator=stream) < 0.4)
        template = int(torch.randint(N_TEMPLATES, (), generator=stream))
        facts = torch.randint(len(answers), (BATCH,), generator=stream)
        facts = facts[held[language, facts] != template]
        hidden.clear()
        logits = module(prompts[language][template][facts], use_cache=False, logits_to_keep=1).logits[:, -1]
        loss = functional.cross_entropy(logits, answers[facts]) + SPARSE * hidden[0].abs().sum(-1).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for rule in rules:
            rule.step()
            rule.zero_grad(set_to_none=True)
    for hook in hooks:
        hook.remove()
    return wrap(module.eval(), tokenizer), float((hidden[0] > 0).float().mean())


def _encoded(world: _World, tokenizer: Any, language: int) -> list[Tensor]:
    """Int[R*E T] of all facts in each template."""
    facts = [(r, e) for r in range(RELATIONS) for e in range(ENTITIES)]
    texts = [[world.prompt(language, k, r, e) for r, e in facts] for k in range(N_TEMPLATES)]
    return [torch.tensor(tokenizer(part)["input_ids"]) for part in texts]


def _network(n_words: int, seed: int) -> Any:
    """The untrained Transformer, its weights drawn from the seed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=n_words, n_positions=16, n_embd=WIDTH, n_layer=1, n_head=HEADS, n_inner=UNITS,
        activation_function="relu2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.06,
        bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).train()


def _shipped(name: str, seed: int) -> float:
    """Mean loss on a shipped model by its own top units, over three relations of Tinyworld."""
    model = load(name)
    entities = list(Truth().entities)
    order = numpy_rng(seed, "relation_neurons").permutation(len(entities))
    chosen, held = ([entities[i] for i in part] for part in (order[: len(order) // 2], order[len(order) // 2 :]))
    used = _right(model, _tinyworld(chosen, every=True))
    units = RelationNeuronFinder(SHARE, seed=seed).fit(model, {r: q[0] for r, q in used.items()})
    sets = _right(model, _tinyworld(held, units.relations[:3]))
    return _mean([_loss(model, q, units.ablation(r)) for r, q in sets.items()])


def _tinyworld(entities: list[str], relations: tuple[str, ...] = (), every: bool = False) -> Questions:
    """Prompts in language 1 that end before the value, with it: in the template new for each fact, or in every one."""
    truth = Truth()
    found: Questions = {}
    for relation in relations or tuple(tw.words.RELATIONS):
        prompts, answers = [], []
        for fact in (truth.facts[entity, relation] for entity in entities):
            for template in range(N_TEMPLATES) if every else [fact.held_template]:
                doc = fact_line(Document("fact"), fact.entity, relation, fact.value, template)
                at = doc.roles["value"][0][0]
                prompts.append(" ".join(doc.words[:at]))
                answers.append(doc.words[at])
        found[relation] = (prompts, answers)
    return found


def _first(units: RelationNeurons, n: int) -> RelationNeurons:
    """The n best units of every relation."""
    return units.replace(
        units={r: rows[:n] for r, rows in units.units.items()},
        precision={r: best[:n] for r, best in units.precision.items()},
    )


def _right(model: Model, questions: Questions) -> Questions:
    """The questions the untouched model answers."""
    kept: Questions = {}
    for relation, (prompts, answers) in questions.items():
        right = accuracy(model, (prompts, answers)).tolist()
        pairs = [pair for pair, ok in zip(zip(prompts, answers, strict=True), right, strict=True) if ok]
        kept[relation] = ([p for p, _ in pairs], [a for _, a in pairs])
    return kept


def _shuffled(questions: Questions, seed: int) -> dict[str, list[str]]:
    """The same prompts, dealt to the relations at random."""
    prompts = [p for texts, _ in questions.values() for p in texts]
    order = iter(numpy_rng(seed, "shuffled relations").permutation(len(prompts)))
    return {r: [prompts[next(order)] for _ in texts] for r, (texts, _) in questions.items()}


def _loss(model: Model, questions: tuple[list[str], list[str]], edit: object) -> float:
    """Loss of accuracy on questions that are all answered right without the edit."""
    return 1.0 - float(accuracy(model, questions, edit).float().mean())


def _placebo(units: RelationNeurons, relation: str, seed: int) -> Edits:
    """As many random units of the same layers switched off."""
    return ablate_neurons(units.random_like(relation, seed))


def _second_language(model: Model, units: RelationNeurons, sets: Questions, seed: int) -> float:
    """Mean loss in language 2 beyond that of random units."""
    gaps = []
    for i, (relation, questions) in enumerate(sets.items()):
        placebo = _loss(model, questions, _placebo(units, relation, seed + i))
        gaps.append(_loss(model, questions, units.ablation(relation)) - placebo)
    return _mean(gaps)


def _off_diagonal(table: Tensor) -> list[float]:
    n = len(table)
    return [float(table[i, j]) for i in range(n) for j in range(n) if i != j]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _spearman(x: list[float], y: list[float]) -> float:
    from scipy.stats import spearmanr

    if len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0
    return float(spearmanr(x, y).statistic)
