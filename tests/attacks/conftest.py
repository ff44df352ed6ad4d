"""An honest artifact to damage, and the attacker's tools: he controls every byte, including the hashes."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interneuron.artifacts import Direction


class Attacker:
    """Writes hostile artifacts whose outer layers (hashes, sizes, file names) are all in order."""

    def __init__(self, home: Path) -> None:
        self.home = home

    @property
    def document(self) -> Path:
        return self.home / "artifact.json"

    @property
    def tensor_file(self) -> Path:
        return next(self.home.glob("tensors-*.safetensors"))

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the document and seal it again, as only somebody who knows the format would."""
        document = json.loads(self.document.read_text())
        change(document)
        self.write(document)

    def write(self, document: dict[str, Any]) -> None:
        document.pop("sha256", None)
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        self.document.write_text(json.dumps({**document, "sha256": hashlib.sha256(text.encode()).hexdigest()}))

    def plant(self, payload: bytes) -> None:
        """Put `payload` in place of the tensor file, with hash, name and size all correct."""
        self.tensor_file.unlink()
        name = f"tensors-{hashlib.sha256(payload).hexdigest()}.safetensors"
        (self.home / name).write_bytes(payload)

        def point(document: dict[str, Any]) -> None:
            document["tensors"]["file"] = name
            document["tensors"]["bytes"] = len(payload)

        self.edit(point)

    def plant_header(self, header: str | bytes | dict[str, Any], body: bytes = b"") -> None:
        """Put a tensor file with this header and body in place."""
        text = json.dumps(header) if isinstance(header, dict) else header
        data = text.encode() if isinstance(text, str) else text
        self.plant(struct.pack("<Q", len(data)) + data + body)


@pytest.fixture
def attacker(tmp_path: Path) -> Attacker:
    home = tmp_path / "victim"
    Direction(torch.arange(1.0, 5.0), site="layers.0.resid_post", slug="mean_difference").save(home)
    return Attacker(home)
