"""What a capture reads: text, tokens or images, cut into pieces that are batched without padding.

Padding changes the numbers that flow (other shapes, other kernels), so there is none: a batch holds pieces of one
length. Pieces wait in a bucket of their length until the batch is full; what is left over at the end goes out in order
of length. The order of batches depends on the data alone, so a capture can be taken up again anywhere.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interneuron.core.errors import InputError, MissingExtra

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
_PIECE = 1 << 26  # characters of a text file that are tokenized at once


@dataclass(frozen=True)
class Piece:
    """A stretch of one document: token ids [T], or one image [C, H, W]."""

    doc: int
    start: int
    values: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Pieces of one shape, as they go through the model together."""

    pieces: list[Piece]

    @property
    def values(self) -> Tensor:
        """Token ids [B, T] (int64) or images [B, C, H, W]."""
        stacked = torch.from_numpy(self.stacked)
        return stacked.long() if self.is_tokens else stacked

    @functools.cached_property
    def stacked(self) -> np.ndarray:
        """The values of all pieces, [B, *shape of one]."""
        return np.stack([p.values for p in self.pieces])

    @property
    def is_tokens(self) -> bool:
        """Token ids, not images."""
        return self.pieces[0].values.ndim == 1

    @property
    def shape(self) -> tuple[int, ...]:
        """[B, T] or [B, C, H, W]."""
        return (len(self.pieces), *self.pieces[0].values.shape)

    def digest(self) -> bytes:
        """SHA-256 of what the batch is: documents, positions and values."""
        digest = hashlib.sha256(repr([(p.doc, p.start, p.values.shape) for p in self.pieces]).encode())
        digest.update(self.stacked.data.cast("B"))
        return digest.digest()


class Source:
    """Data of a kind a model can run over.

    Args:
        data: A text file (path), a folder of images (path), a list of texts, a `datasets` object (column `text`,
            `input_ids` or `image`), a token tensor [N, T], a list of token lists, or an image tensor [N, C, H, W].
        model: Gives the tokenizer and the image processor.
        seq_len: Longest piece of a document, in tokens.

    Raises:
        InputError: nothing that can be recorded.
    """

    def __init__(self, data: Any, model: Any, seq_len: int) -> None:
        self.model, self.seq_len = model, seq_len
        if isinstance(data, (str, Path)) and not Path(data).exists():
            raise InputError(
                f"data {str(data)[:60]!r} is no file or folder; expected a path, a list of texts, a dataset or a "
                "tensor. "
                f"For one text pass [text]."
            )
        self.data: Any = Path(data) if isinstance(data, str) else data
        self.kind = self._kind()

    def _kind(self) -> str:
        data = self.data
        if isinstance(data, Path):
            return "images" if data.is_dir() else "text"
        if isinstance(data, (Tensor, np.ndarray)):
            if data.ndim == 4:
                return "image tensor"
            if data.ndim == 2 and not torch.as_tensor(data[:1]).is_floating_point():
                return "tokens"
            raise InputError(
                f"data is a tensor of shape {tuple(data.shape)} and {data.dtype}; expected token ids [N, T] of an "
                "integer "
                f"type or images [N, C, H, W]. Reshape it."
            )
        columns = getattr(data, "column_names", None)
        if columns is not None:
            found = [c for c in ("input_ids", "text", "image") if c in columns]
            if not found:
                raise InputError(f"the dataset has columns {columns}; expected text, input_ids or image. Rename one.")
            return {"input_ids": "token lists", "text": "texts", "image": "pictures"}[found[0]]
        first = data[0] if isinstance(data, (list, tuple)) and data else None
        if isinstance(first, str):
            return "texts"
        if isinstance(first, (list, Tensor, np.ndarray)):
            return "token lists"
        raise InputError(
            f"data is {type(data).__name__}; expected a text file, an image folder, a non-empty list of texts or token "
            f"lists, a dataset, token ids [N, T] or images [N, C, H, W]. Convert it."
        )

    def identity(self) -> dict[str, Any]:
        """Kind and hash of the data, and the tokenizer that reads it."""
        digest = hashlib.sha256()
        for part in self._raw():
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        value: dict[str, Any] = {"kind": self.kind, "sha256": digest.hexdigest()}
        if self.kind in ("text", "texts"):
            value["tokenizer"] = tokenizer_hash(self._tokenizer())
        return value

    def _raw(self) -> Iterator[bytes | memoryview]:
        data, kind = self.data, self.kind
        if kind == "text":
            with data.open("rb") as file:
                while block := file.read(1 << 22):
                    yield block
        elif kind == "images":
            for path in self._paths():
                yield path.name.encode()
                yield path.read_bytes()
        elif hasattr(data, "_fingerprint"):
            yield str(data._fingerprint).encode()
        elif isinstance(data, (Tensor, np.ndarray)):
            array = np.ascontiguousarray(torch.as_tensor(data).numpy())
            yield repr((array.shape, array.dtype.str)).encode()
            yield array.data.cast("B")
        else:
            for item in self._items():
                yield item.encode() if isinstance(item, str) else np.asarray(item, np.int32).tobytes()

    # --- pieces ---

    def pieces(self, shard: tuple[int, int] = (0, 1)) -> Iterator[Piece]:
        """All pieces of the documents `shard[0]`, `shard[0] + shard[1]`, ..., in order."""
        for doc, values in enumerate(self._documents()):
            if doc % shard[1] != shard[0]:
                continue
            if values.ndim == 3:
                yield Piece(doc, 0, values)
                continue
            for start in range(0, len(values), self.seq_len):
                yield Piece(doc, start, values[start : start + self.seq_len])

    def batches(self, batch_size: int, shard: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Batches of pieces of one shape."""
        waiting: dict[tuple[int, ...], list[Piece]] = {}
        for piece in self.pieces(shard):
            bucket = waiting.setdefault(piece.values.shape, [])
            bucket.append(piece)
            if len(bucket) == batch_size:
                yield Batch(waiting.pop(piece.values.shape))
        for shape in sorted(waiting):
            yield Batch(waiting[shape])

    def total(self) -> int | None:
        """Rows to come where that is known beforehand (for the progress bar)."""
        if self.kind == "tokens":
            return int(self.data.shape[0] * self.data.shape[1])
        return None

    def _documents(self) -> Iterable[np.ndarray]:
        kind = self.kind
        if kind == "text":
            yield from self._file()
        elif kind == "texts":
            tokenizer = self._tokenizer()
            for text in self._items():
                yield encode(tokenizer, text)
        elif kind in ("tokens", "token lists"):
            for row in self._items():
                yield np.asarray(torch.as_tensor(row), np.int32)
        elif kind == "images":
            for path in self._paths():
                yield self._picture(_open_image(path))
        elif kind == "pictures":
            for picture in self._items():
                yield self._picture(picture)
        else:
            for image in self.data:
                yield np.ascontiguousarray(torch.as_tensor(image).numpy())

    def _items(self) -> Iterator[Any]:
        column = {"texts": "text", "token lists": "input_ids", "pictures": "image"}.get(self.kind)
        for item in self.data:
            yield item[column] if isinstance(item, Mapping) and column else item

    def _file(self) -> Iterator[np.ndarray]:
        """A text file is one document; the tokens of a very long one are made in parts that end at a line end."""
        tokenizer, rest, parts = self._tokenizer(), "", []
        with self.data.open(encoding="utf-8") as file:
            while text := file.read(_PIECE):
                text = rest + text
                cut = text.rfind("\n") + 1 if len(text) >= _PIECE else len(text)
                rest = text[cut:]
                parts.append(encode(tokenizer, text[:cut], special=not parts))
        if rest:
            parts.append(encode(tokenizer, rest, special=not parts))
        if parts:
            yield np.concatenate(parts)

    def _tokenizer(self) -> Any:
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise InputError(
                "the data is text but the model has no tokenizer; expected inn.wrap(module, tokenizer). Give one."
            )
        return tokenizer

    def _paths(self) -> list[Path]:
        found = sorted(p for p in self.data.rglob("*") if p.suffix.lower() in IMAGES)
        if not found:
            raise InputError(f"{self.data}: no image in it; expected {', '.join(sorted(IMAGES))}. Give another folder.")
        return found

    def _picture(self, picture: Any) -> np.ndarray:
        if self.model.processor is not None:
            return np.asarray(self.model.processor(images=picture, return_tensors="np")["pixel_values"][0], np.float32)
        return np.ascontiguousarray(np.asarray(picture.convert("RGB"), np.float32).transpose(2, 0, 1) / 255)


def encode(tokenizer: Any, text: str, special: bool = True) -> np.ndarray:
    """Token ids of a text, exactly as `tokenizer(text)` gives them."""
    options = {} if special else {"add_special_tokens": False}
    try:
        ids = tokenizer(text, verbose=False, **options)["input_ids"]
    except TypeError:  # a tokenizer of another make
        ids = tokenizer(text, **options)["input_ids"]
    return np.asarray(ids, np.int32).reshape(-1)


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of what a tokenizer does: its whole description where it has one, else its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        text = backend.to_str()
    else:
        vocab = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
        text = repr((type(tokenizer).__name__, sorted(vocab.items())))
    return hashlib.sha256(text.encode()).hexdigest()


def _open_image(path: str | os.PathLike[str]) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra(
            "reading images needs the package 'pillow'. Run: pip install 'interneuron[vision]'"
        ) from error
    with Image.open(path) as image:
        image.load()
        return image
