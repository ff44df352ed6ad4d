"""Mutated files by the thousand, in memory: each is read right or refused with an ArtifactError, never anything else.

Most mutations know the format (numbers, names, brackets, lengths swapped for nasty ones), the rest are blind.
INTERNEURON_FUZZ_CASES asks for more than the 20,000 of an ordinary run.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import struct
import time
from pathlib import Path

import pytest
import torch

from interneuron.artifacts import Report
from interneuron.artifacts.fields import join
from interneuron.artifacts.folder import parse_document
from interneuron.core import files
from interneuron.core.errors import ArtifactError, ShapeError

CASES = int(os.environ.get("INTERNEURON_FUZZ_CASES", "20000"))
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|[\[\]{},:]')
NASTY = [
    b"0", b"-1", b"1", b"4", b"8", b"16", b"1.0", b"1e999", b"-0", b"NaN", b"null", b"true", b"[]", b"{}", b'""',
    b"4294967296", b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b"9" * 400,
    b'"F32"', b'"F64"', b'"BOOL"', b'"__metadata__"', b'"dtype"', b'"shape"', b'"data_offsets"', b'"a"', b'"../x"',
    b'"\\ud800"', b'"\\u0000"', b"[[[[", b"]]]]", b"[" * 2000, b"\xff", b"\x00", b" ",
]  # fmt: skip
TENSORS = {
    "arrays.a": torch.arange(4.0),
    "arrays.b": torch.ones(2, 2, dtype=torch.int16),
    "arrays.c": torch.tensor([True, False]),
    "arrays.d": torch.empty(0, 3),
}


def mutated(data: bytes, draw: random.Random) -> bytes:
    """One to three mutations of a JSON text."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        tokens = list(TOKEN.finditer(data))
        if tokens and draw.random() < 0.8:
            one, other = draw.choice(tokens), draw.choice(tokens)
            new = draw.choice(NASTY) if draw.random() < 0.7 else other.group()
            data = data[: one.start()] + new + data[one.end() :]
        elif data:
            at = draw.randrange(len(data))
            data = draw.choice(
                (
                    data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :],
                    data[:at],
                    data[:at] + data[at + 1 :],
                    data[:at] + data[draw.randrange(len(data)) :],
                )
            )
    return data


def saved(tmp_path: Path) -> tuple[bytes, bytes]:
    files.save_tensors(tmp_path / "x", TENSORS, {"k": "v"})
    Report(
        title="r", numbers={"a": 1.5}, arrays={"a": torch.ones(2)}, site=("x", "y"), fitted={"n": [1, {"z": None}]}
    ).save(tmp_path / "r")
    return (tmp_path / "x").read_bytes(), (tmp_path / "r" / "artifact.json").read_bytes()


def test_mutated_tensor_files(tmp_path: Path) -> None:
    data, _ = saved(tmp_path)
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    draw, read, slowest = random.Random(0), 0, 0.0
    for _ in range(CASES):
        text = mutated(header, draw)
        size = len(text)
        if draw.random() < 0.1:
            size = draw.choice([0, 1, max(size, 1) - 1, size + 1, 2**20, 2**20 + 1, 2**63, 2**64 - 1])
        rest = body if draw.random() < 0.9 else draw.choice([b"", body[:-1], body + b"\0", body * 2])
        case = struct.pack("<Q", size) + text + rest
        started = time.process_time()
        try:
            tensors = files.read_tensors(io.BytesIO(case), len(case), "case")
        except ArtifactError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            read += 1
            assert sum(t.numel() * t.element_size() for t in tensors.values()) == len(case) - 8 - size
        slowest = max(slowest, time.process_time() - started)
    assert 0 < read < CASES / 2  # both ways out are exercised
    assert slowest < 1.0


def test_mutated_documents(tmp_path: Path) -> None:
    """Half of them sealed again, so that the checks behind the hash are reached too."""
    _, data = saved(tmp_path)
    draw, accepted = random.Random(1), 0
    for case in range(CASES):
        text = mutated(data, draw)
        if case % 2:
            try:
                document = json.loads(text)
                document.pop("sha256")
                plain = json.dumps(document, sort_keys=True, separators=(",", ":"))
                text = json.dumps({**document, "sha256": hashlib.sha256(plain.encode()).hexdigest()}).encode()
            except (ValueError, AttributeError, KeyError, RecursionError, TypeError):
                continue
        try:
            document = parse_document(text, "case")
            Report(**join(Report, document["fields"], {"arrays.a": torch.ones(2)}, "case"))
        except (ArtifactError, ShapeError) as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            accepted += 1
    assert 0 < accepted < CASES / 2


def test_no_flipped_bit_goes_unseen(tmp_path: Path) -> None:
    """Every bit of the tensor file in turn. The control: without our hash every flip in the body is accepted."""
    data, _ = saved(tmp_path)
    sha, unseen = hashlib.sha256(data).hexdigest(), 0
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ArtifactError):
            files.read_tensors(io.BytesIO(flipped), len(data), "flipped", sha)
        try:
            files.read_tensors(io.BytesIO(flipped), len(data), "flipped")
        except ArtifactError:
            continue
        unseen += 1
    assert unseen > 100


def test_no_flipped_bit_of_a_document_goes_unseen(tmp_path: Path) -> None:
    """Flips in the spaces between values change nothing that is read; every other one is refused."""
    _, data = saved(tmp_path)
    good = parse_document(data, "document")
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = parse_document(bytes(flipped), "flipped")
        except ArtifactError:
            continue
        assert found == good
        assert data[bit // 8 : bit // 8 + 1].isspace()
