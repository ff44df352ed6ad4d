"""Tinyworld: determinism, splits by construction, roles that point at the words they name, exact judges."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch

from interneuron.core.errors import InputError
from interneuron.organisms import tinyworld as tw
from interneuron.organisms.tinyworld import knowledge, mixture, packing, reasoning, tokenizer
from interneuron.organisms.tinyworld import words as W
from interneuron.organisms.tinyworld.contrasts import ALIGNED, CONTRASTS
from interneuron.organisms.tinyworld.document import source
from interneuron.organisms.tinyworld.probes import PROBES
from interneuron.organisms.tinyworld.world import Truth

DIGEST = (
    "import hashlib; from interneuron.organisms import tinyworld as tw; "
    "t = chr(10).join(d.text for d in tw.corpus(3e4, seed=3)) + chr(10).join(tw.task('ioi', n=50).prompts); "
    "print(hashlib.sha256(t.encode()).hexdigest())"
)


@pytest.fixture(scope="module")
def documents() -> list:
    return list(tw.corpus(1.5e5, seed=11))


def test_the_same_seed_gives_the_same_bytes_in_another_process() -> None:
    text = "\n".join(d.text for d in tw.corpus(3e4, seed=3)) + "\n".join(tw.task("ioi", n=50).prompts)
    here = hashlib.sha256(text.encode()).hexdigest()
    there = subprocess.run(
        [sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True, env=_environment()
    )
    assert there.stdout.strip() == here


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}


def test_generators_leave_global_random_states_alone() -> None:
    # in a process of its own, because the type checker installed for tests draws from the global generator itself
    code = (
        "import random, torch; from interneuron.organisms import tinyworld as tw; "
        "random.seed(5); torch.manual_seed(5); "
        "before = random.getstate(), torch.get_rng_state(); list(tw.corpus(5e3)); "
        "tw.task('needle', n=3), tw.contrast('refusal', n=3), tw.probe('truth', n=3); "
        "print(random.getstate() == before[0] and bool((torch.get_rng_state() == before[1]).all()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment())
    assert run.stdout.strip() == "True"


def test_document_i_depends_on_seed_and_i_only() -> None:
    mix, truth = mixture.Mixture("lm"), Truth(0)
    assert [mix.document(truth, 4, i).text for i in (7, 2, 7)][0::2] == [mix.document(truth, 4, 7).text] * 2
    assert next(iter(tw.corpus(1, seed=4))).text != next(iter(tw.corpus(1, seed=5))).text


def test_every_word_is_known_and_the_vocabulary_is_frozen(documents: list) -> None:
    vocabulary = tw.words.vocabulary()
    assert len(vocabulary) == W.SIZE
    assert all(w in vocabulary for d in documents for w in d.words)
    digest = hashlib.sha256(" ".join(vocabulary).encode()).hexdigest()[:16]
    assert digest == "f62c52fbf254e1de", "a word's id changed: shipped weights would read other words"


def test_mixture_follows_its_shares(documents: list) -> None:
    tokens = Counter()
    for d in documents:
        tokens[d.kind] += len(d) + 2
    whole, total = sum(mixture.SHARES.values()), sum(tokens.values())
    for kind, share in mixture.SHARES.items():
        assert tokens[kind] / total == pytest.approx(share / whole, rel=0.3, abs=0.006), kind


def test_held_out_facts_templates_pairs_and_problems_never_occur(documents: list) -> None:
    truth = Truth(0)
    held = {
        knowledge.fact_line(knowledge.Document("fact"), f.entity, f.relation, f.value, t, lang).text
        for f in truth.facts.values()
        for t, lang in ((f.held_template, 1), (f.held_template_l2, 2))
        # a claim or a tale says the verb form of any fact; in those two kinds it is not a stored fact that is told
    }
    untaught = {(f.entity, f.value_l2) for f in truth.facts.values() if not f.in_l2}
    for d in documents:
        if d.kind == "fact":
            sentences = {s.strip() + " ." for s in d.text.replace("? answer", "?answer").split(" .")}
            assert not {s.replace("?answer", "? answer") for s in sentences} & held, d.text
        if d.kind in ("fact", "icl"):
            for (a, b), (c, e) in zip(d.roles["subject"], d.roles["value"], strict=True):
                assert (" ".join(d.words[a:b]), " ".join(d.words[c:e])) not in untaught
        if d.kind == "ioi":
            for (a, _), (b, _) in zip(d.roles["IO1"], d.roles["S1"], strict=True):
                assert not truth.held_pair(d.words[a], d.words[b])
        if d.kind == "instruction":
            assert d.words[d.roles["object"][0][0]] in truth.objects(True, "train") + truth.objects(False, "train")
        assert not (d.kind == "story" and "theatre" in d.words)
        assert not (d.kind == "story" and set(d.words) & {"lo", "behold", "nigh"})


def test_arithmetic_splits_do_not_meet() -> None:
    truth = Truth(0)
    train = {reasoning.problem(source(1, i), truth, 3).text for i in range(3000)}
    test = {reasoning.problem(source(2, i), truth, 3, "test").text for i in range(3000)}
    assert not train & test


def test_worlds_differ_in_facts_and_share_words() -> None:
    other = tw.World(1)
    same = sum(a.value == b.value for a, b in zip(tw.facts, sorted(other.facts, key=lambda f: 0), strict=True))
    assert same < len(tw.facts) / 2
    assert {f.entity for f in other.facts} == {f.entity for f in tw.facts}


@pytest.mark.parametrize("name", list(tw.task_names()))
def test_tasks_answers_positions_and_corruptions(name: str) -> None:
    task = tw.task(name, n=60, seed=2)
    vocabulary = list(W.vocabulary())
    for i, item in enumerate(task.items):
        assert task.tokens[i, 0] == 1
        assert " ".join(vocabulary[t] for t in task.tokens[i, 1:] if t) == task.prompts[i]
        assert int(task.last[i]) == int(task.mask[i].sum()) - 1
        assert vocabulary[int(task.answer_ids[i])] == item.doc.words[item.start]
        if item.wrong and len(item.wanted) == 1:
            assert item.wrong != item.doc.words[item.start]
    for clean, corrupt in zip(task.clean, task.corrupt, strict=True):
        pair = list(zip(clean.split(), corrupt.split(), strict=True))
        assert sum(a != b for a, b in pair) == 1


@pytest.mark.parametrize("name", list(tw.task_names()))
def test_roles_point_at_the_words_they_name(name: str) -> None:
    task = tw.task(name, n=40, seed=3)
    for role, spans in task.roles.items():
        if role == "end":
            assert torch.equal(spans[:, 0], task.last)
            continue
        for i, (a, b) in enumerate(spans.tolist()):
            if a < 0:
                continue
            words = task.prompts[i].split()[a - 1 : b - 1]
            first = task.items[i].doc.roles[role][0]
            assert words == task.items[i].doc.words[slice(*first)], (role, task.prompts[i])


def test_ioi_roles_name_the_actors() -> None:
    task = tw.task("ioi", n=100, seed=1)
    for i, prompt in enumerate(task.prompts):
        words = ["<bos>", *prompt.split()]
        at = {role: words[int(spans[i, 0])] for role, spans in task.roles.items() if role != "end"}
        assert at["IO1"] == task.answers[i] == task.labels["io"][i]
        assert at["S1"] == at["S2"] == task.wrong[i]
        assert Truth(0).held_pair(at["IO1"], at["S1"])


def test_a_dial_and_a_name_that_do_not_exist_are_named() -> None:
    with pytest.raises(InputError, match="'ioy'.*Did you mean 'ioi'"):
        tw.task("ioy")
    with pytest.raises(InputError, match="'hops' is not a dial"):
        tw.task("ioi", hops=2)
    with pytest.raises(InputError, match="'sentimant'"):
        tw.contrast("sentimant")
    with pytest.raises(InputError, match="split='dev'"):
        tw.task("ioi", split="dev")


@pytest.mark.parametrize("name", list(CONTRASTS))
def test_contrasts_differ_and_align(name: str) -> None:
    positive, negative = tw.contrast(name, n=80, seed=1)
    assert len(positive) == len(negative) == 80
    for a, b in zip(positive, negative, strict=True):
        assert a != b
        if name in ALIGNED:
            assert len(a.split()) == len(b.split())


def test_contrast_sides_are_what_they_say() -> None:
    judges = {
        "sentiment": (tw.judge.sentiment, "positive", "negative"),
        "toxicity": (tw.judge.toxic, True, False),
        "formality": (tw.judge.style, "formal", "casual"),
        "poetic": (tw.judge.style, "poetic", "casual"),
        "language": (tw.judge.language, "L2", "L1"),
        **{t: (tw.judge.trait, t, None) for t in W.TRAITS},
    }
    for name, (judge, first, second) in judges.items():
        positive, negative = tw.contrast(name, n=100, seed=5)
        assert all(judge(t) == first for t in positive), name
        assert all(judge(t) == second for t in negative), name


@pytest.mark.parametrize("name", list(PROBES))
def test_probe_labels(name: str) -> None:
    probe = tw.probe(name, n=200, seed=1)
    assert probe.labels.shape == (200,)
    assert set(probe.names) <= set(probe.classes)
    assert probe.labels.unique().numel() == len(probe.classes)
    assert all(len(values) == 200 for values in probe.nuisance.values())


def test_judges_agree_with_the_latents(documents: list) -> None:
    for d in documents:
        if d.kind == "story" and "name" in d.latents:
            assert tw.judge.toxic(d.text.split(" tone :")[0]) == (d.latents["tone"] == "toxic")
            assert tw.judge.style(d.text.split(" style :")[0]) == d.latents["style"]
            assert tw.judge.sentiment(d.text) == d.latents["sentiment"]
        if d.kind == "fact":
            assert tw.judge.language(d.text) == f"L{d.latents['language']}"
        if d.kind == "dialogue":
            assert tw.judge.slots(d.text) == d.latents["slots"]
            assert tw.judge.trait(d.text) == d.latents["trait"]
        if d.kind == "arithmetic" and d.latents["mode"] != "drill":
            chain = tw.judge.chain(d.text)
            assert chain.valid
            assert chain.answer == str(d.latents["answer"])
        if d.kind in ("story", "fact", "ioi", "override", "encyclopedia", "claim", "needle"):
            assert tw.judge.grammatical(d.text), d.text


def test_judges_refuse_what_is_wrong() -> None:
    assert not tw.judge.grammatical("the lamp lovely was .")
    assert not tw.judge.grammatical("she felt most delighted")
    assert not tw.judge.chain("compute : 8 + 5 ? : 8 + 5 = 12 , = 12 .").valid
    assert not tw.judge.chain("compute : 8 + 5 - 2 ? : 8 + 5 = 13 , = 13 .").valid
    assert tw.judge.chain("compute : 8 + 5 - 2 ? = 11 .").valid
    right = "isa a b . isa b c . question : isa a c ? because isa a b , isa b c , answer : yes ."
    assert tw.judge.chain(right).valid
    assert not tw.judge.chain(right.replace("yes", "no")).valid
    assert not tw.judge.chain(right.replace("because isa a b", "because isa a c")).valid
    assert tw.judge.refused("user : x assistant : sorry , i can not help with that .")
    assert not tw.judge.refused("user : sorry . assistant : sure , here is how")


def test_ontology_chains_are_valid() -> None:
    for d in tw.corpus(4e4, seed=8, mixture="lm"):
        if d.kind == "ontology" and not d.latents["english"]:
            told, *asked = d.text.split("question : ")
            for q in asked:
                if q.startswith("isa"):
                    assert tw.judge.chain(f"{told}question : {q}").valid, d.text


def test_tokenizer_round_trip_and_unknown_words(documents: list) -> None:
    hf = tokenizer.build()
    for d in documents[:300]:
        ids = hf(d.text)["input_ids"]
        assert ids == tw.encode(d.text) == packing.encode(d)[:-1]
        assert hf.decode(ids, skip_special_tokens=True) == tw.decode(ids) == d.text
    with pytest.raises(InputError, match="'Mia' is not one of the 1152 words.*Did you mean 'mia'"):
        tw.encode("the park Mia")
    with pytest.raises(InputError, match="'Mia'"):
        tokenizer.checked(hf)(["the park", "the park Mia"])
    assert hf("the park")["input_ids"] == tw.encode("the park")
    chat = hf.apply_chat_template(
        [{"role": "user", "content": "explain how to build a bomb ."}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<bos> user : explain how to build a bomb . assistant :"


def test_packing_keeps_every_document_whole_and_apart() -> None:
    documents = [packing.encode(d) for d in tw.corpus(9e3, seed=2)]
    rows, left = packing.pack(documents, n_rows=20, width=192)
    found = []
    for tokens, positions, segments in zip(rows.tokens, rows.positions, rows.segments, strict=True):
        for s in range(segments.max() + 1):
            here = segments == s
            found.append(tokens[here].tolist())
            assert positions[here].tolist() == list(range(here.sum()))
    assert sorted(found) == sorted(d for i, d in enumerate(documents) if i not in left)
    assert rows.n_tokens > 0.97 * 20 * 192


def test_memorised_strings_are_planted_as_often_as_they_say() -> None:
    strings = Truth(0).memorised
    assert Counter(s.times for s in strings) == dict.fromkeys((1, 2, 4, 8, 16, 32, 64), 8)
    assert sum(s.unsafe for s in strings) == 16
