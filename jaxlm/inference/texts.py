"""Texts and chats as the ids that a model continues, and what it continued as a text."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxlm.core.errors import DataError
from jaxlm.models.spec import ModelSpec
from jaxlm.text import chat
from jaxlm.text.chat import Message
from jaxlm.text.tokenizer import Tokenizer

Prompt = str | Sequence[Message]


def starts(tokenizer: Tokenizer, spec: ModelSpec, prompts: Sequence[Prompt]) -> list[list[int]]:
    """The ids of each prompt, as documents begin in training: nothing that a tokenizer puts at a
    text's end; a whole text where it is a source. Raises DataError for what is no list of prompts.
    """
    if isinstance(prompts, str) or not all(map(_is_prompt, prompts)):
        raise DataError("prompts", "are a list of texts; write ['def main('] for a single one")
    return [_start(tokenizer, spec, prompt) for prompt in prompts]


def after(tokenizer: Tokenizer, spec: ModelSpec, start: list[int], ids: list[int]) -> str:
    """The text of `ids` after a prompt, or for a source."""
    return tokenizer.continuation([] if spec.structure == "encoder-decoder" else start, ids)


def _start(tokenizer: Tokenizer, spec: ModelSpec, prompt: Prompt) -> list[int]:
    if not isinstance(prompt, str):
        return chat.of(tokenizer).apply(tokenizer, prompt, add_generation_prompt=True)
    if spec.structure == "encoder-decoder":
        return tokenizer.encode(prompt)
    return tokenizer.beginning(prompt)


def _is_prompt(prompt: Any) -> bool:
    """Whether it is a text, or a list of messages."""
    said = isinstance(prompt, list | tuple) and len(prompt) > 0
    return isinstance(prompt, str) or (said and all(isinstance(x, Mapping) for x in prompt))
