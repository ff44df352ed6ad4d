"""The word-level tokenizer of Tinyworld: a plain Hugging Face tokenizer, and an encoder whose errors name the word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from interneuron.core.errors import InputError, did_you_mean

from . import words as W

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ ' ' + m['role'] + ' : ' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' assistant :' }}{% endif %}"
)
_PIECE = re.compile(r"<\w+>|\w+|[^\w\s]")


def split(text: str) -> list[str]:
    """Words and single punctuation marks: `park, indeed.` and `park , indeed .` read the same."""
    return _PIECE.findall(text)


def check(text: str) -> list[str]:
    """The words of a text. A word outside the vocabulary is an `InputError` that names it."""
    vocabulary = W.vocabulary()
    words = split(text)
    for word in words:
        if word not in vocabulary:
            raise InputError(
                f"tinyworld: {word!r} is not one of the {len(vocabulary)} words of this world."
                f"{did_you_mean(word, vocabulary)} organisms.tinyworld.words lists them by group."
            )
    return words


def encode(text: str, bos: bool = True) -> list[int]:
    """Token ids; a word outside the vocabulary is an `InputError` that names it."""
    vocabulary = W.vocabulary()
    ids = [vocabulary[w] for w in check(text)]
    return [1, *ids] if bos and ids[:1] != [1] else ids


def decode(ids: list[int], specials: bool = False) -> str:
    """The words of token ids, specials left out unless asked for."""
    names = list(W.vocabulary())
    return " ".join(names[i] for i in ids if specials or i > 2)


def build() -> Any:
    """The tokenizer as `transformers.PreTrainedTokenizerFast`: `<bos>` first, chat template, no unknown token."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(W.vocabulary()))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)  # type: ignore[assignment]
    core.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{W.BOS} $A", pair=f"{W.BOS} $A $B", special_tokens=[(W.BOS, 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=W.BOS, eos_token=W.EOS, pad_token=W.PAD, padding_side="right",
        model_max_length=704, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template into a model folder."""
    build().save_pretrained(folder)


def checked(tokenizer: Any) -> Any:
    """The same Hugging Face tokenizer, with errors that name the unknown word (the stock one only says there is none).

    The object is changed in place to a subclass of its own class.
    """
    base: Any = type(tokenizer)

    class TinyworldTokenizer(base):
        def _encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
            for part in (text, text_pair):
                for one in [part] if isinstance(part, str) else part or []:
                    if isinstance(one, str):
                        check(one)
            return super()._encode_plus(text, text_pair, **options)

    tokenizer.__class__ = TinyworldTokenizer
    return tokenizer
