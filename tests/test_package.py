"""What the package promises as a package: light import, few dependencies, no addresses, fresh stubs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import pytest

from interneuron.testing import stubs

REPOSITORY = Path(__file__).resolve().parent.parent
MAX_DISTRIBUTIONS_OVER_TORCH = 30


def test_import_needs_no_torch_sized_package() -> None:
    code = (
        "import sys, interneuron\nassert interneuron.__version__\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'sklearn', 'typer', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_costs_next_to_nothing_beside_torch(child_cpu_seconds: Callable[[list[str]], float]) -> None:
    """The engine included: `inn.Model` imports torch and everything a first read needs."""
    ours = [sys.executable, "-c", "import interneuron; interneuron.Model"]
    torch_alone = [sys.executable, "-c", "import torch"]
    ratios = [child_cpu_seconds(ours) / child_cpu_seconds(torch_alone) for _ in range(2)]
    assert min(ratios) <= 1.15, ratios


def closure(name: str) -> set[str]:
    """Every distribution that installing `name` without extras brings here, itself included."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: set[str] = set()
    queue = [(name, frozenset[str]())]
    while queue:
        wanted, extras = queue.pop()
        key = canonicalize_name(wanted)
        first_time = key not in found
        found.add(key)
        for text in distribution(wanted).requires or []:
            requirement = Requirement(text)
            marker = requirement.marker
            needed = marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))
            if needed and (first_time or extras) and canonicalize_name(requirement.name) not in found:
                queue.append((requirement.name, frozenset(requirement.extras)))
    return found


def test_the_base_install_is_small() -> None:
    added = closure("interneuron") - closure("torch")
    assert {"interneuron", "transformers", "safetensors"} <= added
    assert len(added) <= MAX_DISTRIBUTIONS_OVER_TORCH, sorted(added)


def test_constraints_are_exact_and_name_no_address() -> None:
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    assert "torch==2.13.0" in lines
    for name in ("pyproject.toml", "constraints.txt", "Makefile", ".ci/run"):
        text = (REPOSITORY / name).read_text()
        assert not re.search(r"(index-url|find-links|https?://\S*(simple|pypi|whl))", text), name


def test_stubs_are_fresh() -> None:
    assert stubs.stale() == [], "run: make stubs"


def test_stubs_notice_a_changed_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stubs, "stub", lambda family: "")
    assert stubs.stale() != []


def test_no_file_reads_like_a_heap() -> None:
    """House style: no module of unrelated odds and ends, no overlong file."""
    files = list((REPOSITORY / "src").rglob("*.py"))
    assert not [f for f in files if f.stem in {"utils", "helpers", "misc", "common"}]
    long = {str(f.relative_to(REPOSITORY)): n for f in files if (n := len(f.read_text().splitlines())) > 450}
    assert not long
