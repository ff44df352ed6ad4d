"""Every attack on the artifact reader is refused.

An attack is refused when `load_artifact` raises exactly the error it names, in one line that says the expected words,
within a second, and nothing outside the folder was touched. The honest artifact loads (the control).
"""

from __future__ import annotations

import gc
import importlib
import struct
import time
from collections.abc import Iterator
from typing import Any

import attacks_on_documents  # noqa: F401  (each module lists its attacks)
import attacks_on_tensors  # noqa: F401
import pytest
from attack_list import ATTACKS, entry

from interneuron.artifacts import load_artifact
from interneuron.artifacts.load import kinds
from interneuron.core.errors import InterneuronError


def _outside(home: Any) -> dict[str, int]:
    return {str(p): p.lstat().st_mtime_ns for p in home.parent.rglob("*") if home not in p.parents and p != home}


@pytest.fixture(scope="module", autouse=True)
def kinds_are_imported() -> None:
    """So that no attack is charged for the modules that the first name of a kind, or of a method, brings in."""
    assert kinds()
    importlib.import_module("interneuron.steer.mean_difference")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """So that no attack is charged for a round of the collector through all that other tests have left."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("unchecked", "no_collector")
@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused(attacker: Any, name: str) -> None:
    damage, error, words = ATTACKS[name]
    damage(attacker)
    before = _outside(attacker.home)
    started = time.process_time()
    with pytest.raises(InterneuronError) as caught:
        load_artifact(attacker.home)
    assert time.process_time() - started < 1.0
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert words in message
    assert "\n" not in message
    assert len(message) < 700
    assert _outside(attacker.home) == before


def test_the_honest_artifact_loads(attacker: Any) -> None:
    assert load_artifact(attacker.home).vector.tolist() == [1, 2, 3, 4]
    attacker.edit(lambda document: None)  # sealing again by independent code gives the same seal
    assert load_artifact(attacker.home).slug == "mean_difference"
    attacker.plant_header({"vector": entry()}, struct.pack("<4f", 1, 2, 3, 4))  # and so does planting honest bytes
    assert load_artifact(attacker.home).vector.tolist() == [1, 2, 3, 4]


def test_there_are_enough_attacks() -> None:
    assert len(ATTACKS) >= 25
