"""S1 and S2: `kill -9` at random moments of a real capture, and at every named point of the commit path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).resolve().parent.parent / "support"
SOURCE = SUPPORT.parent.parent / "src"


def crash(*args: object) -> dict[str, Any]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{SOURCE}{os.pathsep}{SUPPORT}"}
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "store_crash.py"), *map(str, args)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_two_hundred_kills_while_capturing_a_real_model(shared_data: Path, ram_path: Path) -> None:
    text = ram_path / "text.txt"
    text.write_text((shared_data / "text" / "tiny-shakespeare.txt").read_text()[:60_000])
    found = crash("random", ram_path, 200, 1, shared_data / "models" / "tinystories-260k", text)
    assert found["kills"] >= 200
    assert not any(found[n] for n in ("lost", "duplicates", "unequal", "leaked", "refused")), found


def test_random_kills_of_made_up_rows(ram_path: Path) -> None:
    found = crash("random", ram_path, 60, 2)
    assert found["kills"] >= 60
    assert not any(found[n] for n in ("lost", "duplicates", "unequal", "leaked", "refused")), found


def test_kill_at_every_named_point(ram_path: Path) -> None:
    found = crash("points", ram_path, 3)
    assert found["points"] >= 30
    assert found["kills"] == 3 * found["points"]
    assert not any(found[n] for n in ("lost", "duplicates", "unequal", "leaked")), found


def test_control_a_writer_that_records_first_is_found(ram_path: Path) -> None:
    assert crash("points", ram_path, 1, "--broken", "record first")["lost"] > 0


def test_control_a_writer_that_leaks_is_found(ram_path: Path) -> None:
    assert crash("points", ram_path, 1, "--broken", "leaked temp")["leaked"] > 0
