"""The Artifact base: one frozen class per kind, whose annotated fields are all that has to be declared.

    class LinearProbe(Artifact):
        weight: Tensor                  # goes to the tensor file
        threshold: float = 0.0          # goes to artifact.json

        def score(self, x): ...

makes a dataclass that saves, loads, moves between devices, compares bit by bit and travels over the Hugging Face Hub.
A kind adds the verbs it has: `encode`, `score`, `plot`, `edit`.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, ClassVar, TypeVar, dataclass_transform

import torch
from torch import Tensor

from interneuron.artifacts import fields as field_types
from interneuron.artifacts import folder
from interneuron.core.errors import ArtifactError, FingerprintMismatch, InputError

A = TypeVar("A", bound="Artifact")


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(dataclasses.field, dataclasses.Field))
@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Artifact:
    """What a method learned: named tensors and plain facts about where they belong and how they came to be.

    Every subclass becomes a frozen dataclass by itself. Its `kind` is its class name in lower_snake_case.

    site         name of the site it belongs to, or a tuple of names, or () when it belongs to none
    slug         the method that made it
    fingerprint  `model.fingerprint` of the model it was fitted on; {} when it belongs to no model
    fitted       how it was fitted: data, seed, options, seconds, scores; anything JSON can hold
    """

    kind: ClassVar[str] = "artifact"
    _declared: ClassVar[dict[str, Any]] = {}

    site: str | tuple[str, ...] = ()
    slug: str = ""
    fingerprint: dict[str, Any] = dataclasses.field(default_factory=dict)
    fitted: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" not in vars(cls):
            cls.kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
        cls._declared = field_types.resolve(cls)

    def __post_init__(self) -> None:
        field_types.settle(self)
        self.validate()

    def validate(self) -> None:
        """Raise an error that teaches when the fields do not fit together; called on construction and on loading."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of all sites, in the order of the rows that belong to them."""
        return (self.site,) if isinstance(self.site, str) else self.site

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by the name it has in the tensor file (`field`, or `field.key` for a dict of tensors)."""
        return field_types.split(self)[1]

    def replace(self: A, **changes: Any) -> A:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def to(self: A, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> A:
        """A copy with its tensors on `device`; `dtype` changes floating-point tensors only."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        changes: dict[str, Any] = {}
        for name, hint in field_types.declared(type(self)).items():
            value = getattr(self, name)
            if field_types.is_tensor_map(hint):
                changes[name] = {key: move(tensor) for key, tensor in value.items()}
            elif field_types.is_tensor(hint) and value is not None:
                changes[name] = move(value)
        return self.replace(**changes)

    def same_bits(self, other: Artifact) -> bool:
        """Whether `other` is of the same kind with bit-identical tensors (NaN equals NaN) and equal plain fields."""
        if type(self) is not type(other):
            return False
        (plain, tensors), (other_plain, other_tensors) = field_types.split(self), field_types.split(other)
        return (
            plain == other_plain
            and tensors.keys() == other_tensors.keys()
            and all(_equal_bits(tensor, other_tensors[name]) for name, tensor in tensors.items())
        )

    def check_model(self, model: Any) -> None:
        """Raise FingerprintMismatch unless this artifact was fitted on `model` (or on no model in particular)."""
        check_fingerprint(self.fingerprint, model, f"this {self.kind}" + (f" of {self.slug!r}" if self.slug else ""))

    def save(self, path: str | Path) -> Path:
        """Write the folder `path` (`artifact.json` and a safetensors file), crash-safe, and return it.

        Saving over an older artifact replaces it; interrupted at any point, the folder holds the old or the new one.

        Raises:
            ArtifactError: a field cannot be saved, or the folder cannot be written.
        """
        plain, tensors = field_types.split(self)
        return folder.write_folder(path, self.kind, plain, tensors)

    @classmethod
    def load(cls: type[A], path: str | Path, model: Any = None, allow_mismatch: bool = False, **options: Any) -> A:
        """`load_artifact`, refusing an artifact of another kind than this class."""
        from interneuron.artifacts.load import load_artifact

        return cls._expect(load_artifact(path, model=model, allow_mismatch=allow_mismatch, **options), path)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Publish on the Hugging Face Hub as `repo`; see `interneuron.artifacts.hub.push_to_hub` for the options."""
        from interneuron.artifacts.hub import push_to_hub

        return push_to_hub(self, repo, **options)

    @classmethod
    def from_pretrained(cls: type[A], repo: str | Path, **options: Any) -> A:
        """Load from the Hub or a local folder; see `interneuron.artifacts.hub.from_pretrained` for the options."""
        from interneuron.artifacts.hub import from_pretrained

        return cls._expect(from_pretrained(repo, **options), repo)

    @classmethod
    def _expect(cls: type[A], artifact: Artifact, where: object) -> A:
        if not isinstance(artifact, cls):
            raise ArtifactError(
                f"{where}: holds a {artifact.kind}, expected a {cls.kind}. "
                f"Use {type(artifact).__name__} or load_artifact."
            )
        return artifact

    def verify(
        self, model: Any, inputs: Any, runtimes: Any = ("eager", "sdpa", "generate", "file"), **options: Any
    ) -> Any:
        """How far the same artifact moves the logits in different runtimes; see `interneuron.artifacts.verify`."""
        from interneuron.artifacts.verify import verify

        return verify(self, model, inputs, runtimes, **options)

    def __repr__(self) -> str:
        plain, tensors = field_types.split(self)
        parts = [f"{k}={list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for k, t in tensors.items()]
        facts = {name: getattr(self, name) for name, value in plain.items() if value}
        parts += [f"{k}={v[:60]!r}" if isinstance(v, str) else f"{k}={str(v)[:60]}" for k, v in facts.items()]
        return f"{type(self).__name__}({', '.join(parts)})"


def _equal_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    flat_a, flat_b = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(flat_a, flat_b)


def check_fingerprint(recorded: dict[str, Any], model: Any, what: str) -> None:
    """Compare a recorded fingerprint with `model` (a Model, or a fingerprint dict), field by field.

    Raises:
        FingerprintMismatch: with every field that differs, both values, and how to override.
        InputError: `model` has no fingerprint.
    """
    present = model if isinstance(model, dict) else getattr(model, "fingerprint", None)
    if not isinstance(present, dict):
        raise InputError(
            f"{type(model).__name__} has no fingerprint, expected a model from inn.wrap or inn.load. Wrap it."
        )
    # What is recorded is plain JSON by now, so both sides are compared as such.
    present = field_types.to_plain(present, "fingerprint")
    recorded = field_types.to_plain(recorded, "fingerprint")
    differences = [
        f"{key} was {_short(recorded[key])}, is {_short(present[key]) if key in present else 'absent'}"
        for key in recorded
        if key not in present or recorded[key] != present[key]
    ]
    if differences:
        raise FingerprintMismatch(
            f"{what}: made with another model: {'; '.join(differences)}. "
            "Load the model it was made with, or pass allow_mismatch=True if the difference is meant."
        )


def _short(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."
