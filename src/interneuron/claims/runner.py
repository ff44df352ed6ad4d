"""Running claims: at least three seeds each, one process per claim, resumable after every seed."""

from __future__ import annotations

import ast
import hashlib
import importlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from interneuron.claims.claim import Claim, Comparison
from interneuron.claims.verdict import judge
from interneuron.core.cards import Card, all_cards, find_card, read_statement
from interneuron.core.errors import InputError, InterneuronError, MethodNotFound
from interneuron.core.files import read_json, write_json

SCHEMA = 2
MIN_SEEDS = 3
RESULTS = Path(__file__).resolve().parent / "results"
VERSIONED = ("interneuron", "torch", "transformers", "numpy")

# A claim may take ten times what it says before it is given up: other work may share the machine.
PATIENCE = 10

Result = dict[str, Any]


def cards_with_claims() -> list[Card]:
    """Return the cards whose claim file exists."""
    return [card for card in all_cards() if claim_path(card) is not None]


def claim_path(card: Card) -> Path | None:
    """Return the file of a card's claim, or None; nothing is imported."""
    if card.module.startswith("interneuron."):
        path = Path(__file__).resolve().parent / card.family / f"{card.slug}.py"
    else:
        path = Path(card.path).with_name(f"{card.slug}_claim.py")
    return path if path.is_file() else None


def load_claim(card: Card) -> tuple[Claim, Callable[[int], Comparison]]:
    """Import a card's claim and return its statement and its experiment."""
    if claim_path(card) is None:
        raise MethodNotFound(f"the method {card.slug!r} has no claim: expected {card.claim_module}. Write that file")
    module = importlib.import_module(card.claim_module)
    if module.CLAIM.slug != card.slug:
        raise InputError(f"{card.claim_module}: CLAIM.slug is {module.CLAIM.slug!r}, expected {card.slug!r}")
    return module.CLAIM, module.claim


def run_claim(slug: str, seeds: Sequence[int] = (0, 1, 2), out: Path = RESULTS, force: bool = False) -> Result:
    """Measure a claim in this process under every seed not yet measured, and return the result.

    The result file is rewritten after each seed, so an interrupted run continues where it stopped. Seeds measured
    with another version of the method or claim file are measured anew.

    Raises:
        InputError: fewer than three seeds.
        MethodNotFound: no such method, or it has no claim.
    """
    if len(set(seeds)) < MIN_SEEDS:
        raise InputError(f"claims are judged on {MIN_SEEDS} or more different seeds, got {list(seeds)}. Add seeds")
    card = find_card(slug)
    claim, experiment = load_claim(card)
    path = out / f"{card.slug}.json"
    result = _start(card, claim, None if force else stored_result(path))
    for seed in seeds:
        if str(seed) in result["seeds"]:
            continue
        began = time.perf_counter()
        comparison = experiment(seed)
        seconds = round(time.perf_counter() - began, 2)
        result["seeds"][str(seed)] = {
            **comparison.rows(),
            "gates": comparison.gates,
            "extra": comparison.extra,
            "seconds": seconds,
        }
        _conclude(result, claim, complete=set(map(str, seeds)) <= result["seeds"].keys())
        write_json(path, result)
    if not result["complete"]:
        _conclude(result, claim, complete=True)
        write_json(path, result)
    return result


def run_claims(
    slugs: Sequence[str], seeds: Sequence[int] = (0, 1, 2), out: Path = RESULTS, force: bool = False
) -> dict[str, Result | str]:
    """Run each claim in a process of its own; return by slug the result, or one line saying what went wrong."""
    outcomes: dict[str, Result | str] = {}
    for slug in slugs:
        card = find_card(slug)
        path = out / f"{card.slug}.json"
        command = [sys.executable, "-m", "interneuron.claims", card.slug, "--out", str(out)]
        command += ["--seeds", *map(str, seeds), *(["--force"] if force else [])]
        known = None if force else fresh_result(card, out)
        if known is not None and set(map(str, seeds)) <= known["seeds"].keys():
            outcomes[card.slug] = known
            continue
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_patience(card), check=False)
        except subprocess.TimeoutExpired as error:
            outcomes[card.slug] = f"given up after {error.timeout:.0f} s; finished seeds are kept in {path}"
            continue
        result = stored_result(path) if done.returncode == 0 else None
        outcomes[card.slug] = result if result is not None else _last_line(done.stderr)
    return outcomes


def stored_result(path: Path) -> Result | None:
    """Return the result in a file, or None when there is none or it cannot be read."""
    if not path.is_file():
        return None
    try:
        result = read_json(path, max_bytes=1 << 24)
    except InterneuronError:
        return None
    return result if isinstance(result, dict) and result.get("schema") == SCHEMA else None


def fresh_result(card: Card, out: Path = RESULTS) -> Result | None:
    """Return a card's complete result if it was measured with the present method and claim files."""
    result = stored_result(out / f"{card.slug}.json")
    if result is None or not result["complete"] or not belongs(card, result):
        return None
    return result


def source_hash(card: Card) -> str:
    """Return a hash of the method's and the claim's text: it says which code a result belongs to."""
    paths = [Path(card.path), claim_path(card)]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths if path is not None)).hexdigest()[:16]


def belongs(card: Card, result: Result) -> bool:
    """Whether a result was measured with the present files; a `why` added to the claim afterwards changes nothing."""
    path = claim_path(card)
    return result["source"] == source_hash(card) or (
        path is not None and result["source"] == _hash_without_why(card, path)
    )


def _hash_without_why(card: Card, path: Path) -> str:
    """The hash of the files as they were before the lines of the claim's `why` were written."""
    text = path.read_bytes()
    found = [
        keyword
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Claim"
        for keyword in node.keywords
        if keyword.arg == "why"
    ]
    if not found:
        return source_hash(card)
    lines = text.splitlines(keepends=True)
    del lines[found[0].lineno - 1 : found[0].end_lineno]
    return hashlib.sha256(Path(card.path).read_bytes() + b"\0" + b"".join(lines)).hexdigest()[:16]


def _start(card: Card, claim: Claim, old: Result | None) -> Result:
    path = claim_path(card)
    # without the reason, so that it may be written and mended after the run
    source = _hash_without_why(card, path) if path is not None else source_hash(card)
    kept = old["seeds"] if old is not None and belongs(card, old) else {}
    stated = {**asdict(claim), "family": card.family}
    return {"schema": SCHEMA, **stated, "source": source, "seeds": kept, "complete": False}


def _conclude(result: Result, claim: Claim, complete: bool) -> None:
    """Write verdict, means, intervals and surroundings into the result."""
    arms = {
        int(seed): {name: row[name] for name in ("ours", "baseline", "control") if name in row}
        for seed, row in result["seeds"].items()
    }
    sentences = sorted({text for row in result["seeds"].values() for text in row["gates"]})
    # A gate that a seed did not measure was not met under that seed.
    gates = {text: [row["gates"].get(text, False) for row in result["seeds"].values()] for text in sentences}
    verdict, gains = judge(claim, arms, gates)
    names = next(iter(arms.values()))
    result["means"] = {
        name: sum(sum(row[name]) / len(row[name]) for row in arms.values()) / len(arms) for name in names
    }
    result["verdict"] = verdict
    result["gates"] = {text: f"{sum(met)} of {len(met)} seeds" for text, met in gates.items()}
    result["gates_met"] = sum(all(met) for met in gates.values())
    result["gains"] = {name: asdict(gain) for name, gain in gains.items()}
    result["seconds"] = round(sum(row["seconds"] for row in result["seeds"].values()), 2)
    result["versions"] = {"python": platform.python_version(), **{name: _version(name) for name in VERSIONED}}
    result["complete"] = complete


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _patience(card: Card) -> float:
    path = claim_path(card)
    stated = read_statement(path, "CLAIM", "Claim") if path is not None else None
    minutes = (stated or {}).get("minutes", 1.0)
    return 120 + PATIENCE * 60 * float(str(minutes))


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "the process ended without a word"
