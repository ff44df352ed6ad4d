"""A document of Tinyworld: its words, its kind, the latents it was written from and where each role stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

Span = tuple[int, int]


@dataclass(slots=True)
class Document:
    """Words of one text without `<bos>`/`<eos>`, and its truth.

    `roles[name]` lists half-open word spans; with `<bos>` in front of the text, token positions are these plus one
    (`Task` and `Contrast` do that shift).
    """

    kind: str
    words: list[str] = field(default_factory=list)
    latents: dict[str, object] = field(default_factory=dict)
    roles: dict[str, list[Span]] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def __len__(self) -> int:
        return len(self.words)

    def say(self, text: str) -> Document:
        """Append words that play no role."""
        self.words += text.split()
        return self

    def put(self, text: str, *roles: str) -> Document:
        """Append words and note their span under every role named."""
        start = len(self.words)
        self.words += text.split()
        for role in roles:
            self.roles.setdefault(role, []).append((start, len(self.words)))
        return self

    def join(self, other: Document) -> Document:
        """Append another document's words and roles (its latents stay behind)."""
        shift = len(self.words)
        self.words += other.words
        for role, spans in other.roles.items():
            self.roles.setdefault(role, []).extend((a + shift, b + shift) for a, b in spans)
        return self


def source(seed: int, index: int) -> Random:
    """The generator of document `index` under `seed`: a function of the two numbers alone, in every process."""
    return Random(seed * 1_000_003_000_017 + index)
