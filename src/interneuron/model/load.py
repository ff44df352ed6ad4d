"""Loading: Hugging Face ids and local folders, with the class the config names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interneuron.core.errors import InputError, InterneuronError, UnsupportedModel, did_you_mean, need
from interneuron.model.family import Family
from interneuron.model.model import Model


def wrap(module: nn.Module, tokenizer: Any = None, processor: Any = None, family: Family | None = None) -> Model:
    """Wrap any nn.Module; it is used as it is. With a `Family` of your own it gets canonical site names.

        model = inn.wrap(my_module)
        with model.read("encoder.2:out") as acts: model(x)

    Raises InputError for what is no module, UnsupportedModel for one compiled by torch.compile.
    """
    return Model(module, tokenizer, processor, family)


def load_model(
    name: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None, **options: Any
) -> Model:
    """Load a Hugging Face id or a local folder with its tokenizer or image processor, in eval mode.

    device   where to put the weights (default: cpu)      dtype   default: as stored
    options  are passed to `from_pretrained`; code from a repository is never run unless you pass trust_remote_code
    Raises InputError when the folder is missing, UnsupportedModel when no class fits.
    """
    path = Path(name)
    local = path.is_dir()
    if not local and (path.is_absolute() or str(name).startswith((".", "~")) or path.exists()):
        kind = "a file" if path.exists() else "no such folder"
        raise InputError(f"{str(name)!r} is {kind}: expected a Hugging Face id or a folder with a config.json.")
    if local and (path / "model_index.json").exists():
        raise UnsupportedModel(
            f"{str(name)!r} is a diffusers pipeline of several models: load its parts, e.g. {path / 'unet'}."
        )
    if local and not (path / "config.json").exists():
        raise InputError(f"{str(name)!r} has no config.json: expected a folder written by save_pretrained.")
    if local and "_diffusers_version" in json.loads((path / "config.json").read_text()):
        module = _diffusers(path, dtype)
        tokenizer = processor = None
    else:
        try:
            module = _transformers(str(name), dtype, options)
        except InterneuronError:
            raise
        except (OSError, ValueError, KeyError) as error:
            raise _refusal(str(name), local, error) from error
        tokenizer, processor = _companions(str(name), module)
    if device is not None:
        module = module.to(device)
    return Model(module.eval(), tokenizer, processor)


def _refusal(name: str, local: bool, error: Exception) -> InputError | UnsupportedModel:
    """One line on why a folder or an id could not be loaded, in place of the several of transformers."""
    reason = " ".join(str(error).split()) or type(error).__name__
    first = reason.split(". ")[0].rstrip(".")[:200]
    if local:
        return UnsupportedModel(f"{name!r} cannot be loaded ({first}): expected a folder written by save_pretrained.")
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    causes = _causes(error)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return InputError(f"{name!r} is gated: ask for access on its page, then log in with `hf auth login`.")
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return InputError(
            f"{name!r} is no organism, no folder and no public repository of the Hugging Face Hub: check the spelling, "
            "or log in with `hf auth login` if it is private."
        )
    if any(isinstance(cause, LocalEntryNotFoundError | ConnectionError) for cause in causes):
        return InputError(
            f"{name!r} is no organism and no folder, and the Hugging Face Hub cannot be reached (nor is it in the "
            "cache): check the spelling or the connection, or give a local folder."
        )
    return InputError(
        f"{name!r} cannot be loaded from the Hugging Face Hub ({first}): check the spelling, or give a local folder."
    )


def _causes(error: BaseException | None) -> list[BaseException]:
    """An error and all that led to it."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _transformers(name: str, dtype: torch.dtype | None, options: dict[str, Any]) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=options.get("trust_remote_code", False))
    for wanted in config.architectures or []:
        cls = getattr(transformers, wanted, None)
        if cls is not None:
            return cls.from_pretrained(name, dtype=dtype or "auto", **options)
    for auto in ("AutoModelForCausalLM", "AutoModelForImageClassification", "AutoModel"):
        try:
            return getattr(transformers, auto).from_pretrained(name, dtype=dtype or "auto", **options)
        except ValueError:
            continue
    raise UnsupportedModel(
        f"{name!r} names the architecture {config.architectures}, which transformers {transformers.__version__} does "
        "not have: load it yourself and use inn.wrap(module)."
    )


def _companions(name: str, module: Any) -> tuple[Any, Any]:
    """The tokenizer and the processor, where the folder or repository has them."""
    import transformers

    tokenizer = processor = None
    if getattr(module, "main_input_name", "") != "pixel_values" or hasattr(module, "get_text_features"):
        tokenizer = _optional(transformers.AutoTokenizer, name)
    if getattr(module.config, "vision_config", None) is not None:
        processor = _optional(transformers.AutoProcessor, name)
    elif getattr(module, "main_input_name", "") == "pixel_values":
        processor = _optional(transformers.AutoImageProcessor, name)
    return tokenizer, processor


def _optional(cls: Any, name: str) -> Any:
    try:
        return cls.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError, TypeError):
        return None


def _diffusers(path: Path, dtype: torch.dtype | None) -> Any:
    diffusers = need("diffusers", extra="diffusers")
    wanted = json.loads((path / "config.json").read_text()).get("_class_name", "")
    cls = getattr(diffusers, wanted, None)
    if cls is None:
        raise UnsupportedModel(
            f"{path} names the class {wanted!r}, which diffusers does not have.{did_you_mean(wanted, dir(diffusers))}"
        )
    return cls.from_pretrained(path, use_safetensors=True, **({"torch_dtype": dtype} if dtype else {}))
