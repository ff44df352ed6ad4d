"""Tinyworld: a small world told in a closed language, whose concepts, facts and circuits are known by construction.

    from interneuron.organisms import tinyworld as tw
    t = tw.task("ioi", n=200, seed=1)            # prompts, answers, counter-answers, clean/corrupt pairs, roles
    pos, neg = tw.contrast("sentiment", n=200)   # minimal pairs
    p = tw.probe("sentiment", n=1000)            # labelled texts with nuisance labels
    docs = tw.corpus(tokens=1e5, seed=1)         # documents with kind, latents, roles
    tw.facts                                     # the table of facts
    tw.judge.sentiment("she felt happy .")

These functions speak of world 0, the one of the shipped models; `World(seed)` makes another with the same words.
Everything is a function of its seed and of the item's number; no global random state is read or moved.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from interneuron.core.errors import InputError, did_you_mean

from . import judge, words
from .document import Document, source
from .mixture import MIXTURES
from .mixture import corpus as _corpus
from .world import Fact, Truth

if TYPE_CHECKING:
    from .contrasts import Texts
    from .probes import Probe
    from .tasks import Task

__all__ = ["World", "contrast", "corpus", "decode", "encode", "facts", "judge", "probe", "task", "task_names", "words"]


def _stream(*keys: str, seed: int) -> int:
    """A stream number that no training corpus uses, decided by the names and the seed."""
    return zlib.crc32(":".join(keys).encode()) * 4096 + 2048 + seed


class World:
    """Tinyworld with the facts and splits of one seed."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.truth = Truth(seed)
        self.judge = judge

    @property
    def facts(self) -> list[Fact]:
        """The fact table: entity, relation, value in both languages, frequency group, weight, held-out templates."""
        return list(self.truth.facts.values())

    def task(self, name: str, n: int = 200, seed: int = 1, split: str = "test", **dials: Any) -> Task:
        """`n` items of a task. `split="test"` gives what no shipped model was trained on, "train" what it was.

        Raises InputError for an unknown task, split or dial.
        """
        from .task_list import TASKS
        from .tasks import Task, check_dials

        if name not in TASKS:
            raise InputError(
                f"tinyworld.task: no task {name!r}.{did_you_mean(name, TASKS)} The tasks are {', '.join(TASKS)}."
            )
        _check(f"tinyworld.task({name!r})", n, split)
        build, known = TASKS[name]
        check_dials(name, dials, known)
        stream = _stream("task", name, split, seed=seed)
        return Task(name, [build(source(stream, i), self.truth, split, **dials) for i in range(n)], dials)

    def contrast(self, name: str, n: int = 200, seed: int = 1, split: str = "train") -> tuple[Texts, Texts]:
        """Two lists of `n` texts, positive side first, that differ in one latent pair by pair."""
        from .contrasts import CONTRASTS, Texts

        if name not in CONTRASTS:
            hint = did_you_mean(name, CONTRASTS)
            raise InputError(f"tinyworld.contrast: no contrast {name!r}.{hint} There are {', '.join(CONTRASTS)}.")
        _check(f"tinyworld.contrast({name!r})", n, split)
        stream = _stream("contrast", name, split, seed=seed)
        pairs = [CONTRASTS[name](source(stream, i), self.truth, split) for i in range(n)]
        return Texts([a for a, _ in pairs]), Texts([b for _, b in pairs])

    def probe(self, name: str, n: int = 1000, seed: int = 1) -> Probe:
        """`n` texts labelled by one latent, with every other latent as nuisance labels."""
        from .probes import PROBES, Probe

        if name not in PROBES:
            hint = did_you_mean(name, PROBES)
            raise InputError(f"tinyworld.probe: no probe {name!r}.{hint} There are {', '.join(PROBES)}.")
        _check(f"tinyworld.probe({name!r})", n, "test")
        build, classes = PROBES[name]
        stream = _stream("probe", name, seed=seed)
        made = [build(source(stream, i), self.truth) for i in range(n)]
        names = [str(labels[name]) for _, labels in made]
        nuisance = {k: [labels[k] for _, labels in made] for k in made[0][1] if k != name}
        return Probe([d for d, _ in made], classes, names, nuisance)

    def corpus(self, tokens: float = 1e6, seed: int = 1, mixture: str = "lm") -> Iterator[Document]:
        """Documents 0, 1, 2 ... of corpus `seed` until `tokens` are reached; document i depends on (seed, i) only."""
        if mixture not in MIXTURES:
            raise InputError(f"tinyworld.corpus: no mixture {mixture!r}.{did_you_mean(mixture, MIXTURES)}")
        return _corpus(self.truth, tokens, seed, mixture)


def _check(where: str, n: int, split: str) -> None:
    if n < 1:
        raise InputError(f"{where}: n={n}, expected at least 1 item.")
    if split not in ("train", "test"):
        raise InputError(f"{where}: split={split!r}, expected 'train' or 'test'.")


@lru_cache(maxsize=1)
def _zero() -> World:
    return World(0)


def task(name: str, n: int = 200, seed: int = 1, split: str = "test", **dials: Any) -> Task:
    """`World(0).task`."""
    return _zero().task(name, n, seed, split, **dials)


def contrast(name: str, n: int = 200, seed: int = 1, split: str = "train") -> tuple[Texts, Texts]:
    """`World(0).contrast`."""
    return _zero().contrast(name, n, seed, split)


def probe(name: str, n: int = 1000, seed: int = 1) -> Probe:
    """`World(0).probe`."""
    return _zero().probe(name, n, seed)


def corpus(tokens: float = 1e6, seed: int = 1, mixture: str = "lm") -> Iterator[Document]:
    """`World(0).corpus`."""
    return _zero().corpus(tokens, seed, mixture)


def encode(text: str) -> list[int]:
    """Token ids with `<bos>`; a word outside the vocabulary is an error that names it."""
    from .tokenizer import encode as _encode

    return _encode(text)


def decode(ids: list[int]) -> str:
    """Words of token ids, specials left out."""
    from .tokenizer import decode as _decode

    return _decode(ids)


def task_names() -> dict[str, tuple[str, ...]]:
    """The tasks and their dials."""
    from .task_list import TASKS

    return {name: dials for name, (_, dials) in TASKS.items()}


def __getattr__(name: str) -> Any:
    if name == "facts":
        return _zero().facts
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
