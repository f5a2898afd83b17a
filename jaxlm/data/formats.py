"""What a record teaches: its format is known by its columns, and becomes messages or a pair.

messages                        [{"role": ..., "content": ...}, ...]
conversations                   [{"from": "human", "value": ...}, ...], ShareGPT's
prompt, completion              two texts that follow one another, or two lists of messages
instruction, input, output      Alpaca's; input may be empty or absent
text                            a text of which everything is learned
"""

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from jaxlm.core.errors import DataError
from jaxlm.data.records import text

Message = dict[str, Any]

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""ShareGPT's names of who speaks -> those of chat templates."""


class Example(NamedTuple):
    """What one record says, still as text."""

    where: str
    """The file and line it is from."""
    messages: tuple[Message, ...] = ()
    """A chat; empty for a pair of texts."""
    prompt: str = ""
    completion: str = ""
    tools: Any = None
    """The chat's tools as JSON schemas, when the record has them."""


class Format(NamedTuple):
    """One way to write examples."""

    name: str
    needs: tuple[str, ...]
    """The columns that it is known by."""
    read: Callable[[dict[str, Any], str], Example]


def detect(columns: Collection[str], where: str, field: str = "text") -> Format:
    """The format with these columns. field: the column of `text`.

    Raises DataError, with the columns and the formats, when it is none.
    """
    formats = (*FORMATS, Format("text", (field,), _text_of(field)))
    for each in formats:
        if set(each.needs) <= set(columns):
            return each
    found = ", ".join(list(columns)[:8]) or "none"
    known = "; ".join(" + ".join(each.needs) for each in formats)
    raise DataError(where, f"the columns are {found}; examples have one of: {known}")


def _messages(record: dict[str, Any], where: str) -> Example:
    messages = _checked(record["messages"], "messages", where)
    return Example(where, messages, tools=_tools(record, where))


def _conversations(record: dict[str, Any], where: str) -> Example:
    turns = record["conversations"]
    if _is_list(turns) and all("role" in turn for turn in turns):
        messages = _checked(turns, "conversations", where)
        return Example(where, messages, tools=_tools(record, where))
    if not _is_list(turns) or not all({"from", "value"} <= turn.keys() for turn in turns):
        what = 'a list of {"from": "human", "value": "..."} is meant'
        raise DataError(where, f"conversations: {what}")
    messages = []
    for number, turn in enumerate(turns, 1):
        if turn["from"] not in ROLES:
            known = ", ".join(ROLES)
            raise DataError(
                where, f"conversations: turn {number} is from {turn['from']!r}; known are {known}"
            )
        messages.append({"role": ROLES[turn["from"]], "content": turn["value"]})
    if isinstance(system := record.get("system"), str) and system:
        messages.insert(0, {"role": "system", "content": system})
    chat = _checked(messages, "conversations", where)
    return Example(where, chat, tools=_tools(record, where))


def _pair(record: dict[str, Any], where: str) -> Example:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        texts = text(record, "prompt", where), text(record, "completion", where)
        return Example(where, prompt=texts[0], completion=texts[1])
    for name in ("prompt", "completion"):
        if not isinstance(said := record[name], str | list):
            kind = type(said).__name__
            raise DataError(where, f"{name} is {kind}; write a text, or a list of messages")
    asked = _checked(prompt, "prompt", where, answered=False)
    answer = _checked(completion, "completion", where)
    context = tuple({**message, "train": False} for message in asked)
    return Example(where, context + answer, tools=_tools(record, where))


def _instruction(record: dict[str, Any], where: str) -> Example:
    asked = {"role": "user", "content": text(record, "instruction", where)}
    if record.get("input"):
        asked["input"] = text(record, "input", where)
    answer = {"role": "assistant", "content": text(record, "output", where)}
    return Example(where, (asked, answer))


def _text_of(field: str) -> Callable[[dict[str, Any], str], Example]:
    return lambda record, where: Example(where, completion=text(record, field, where))


FORMATS = (
    Format("messages", ("messages",), _messages),
    Format("conversations (ShareGPT)", ("conversations",), _conversations),
    Format("prompt, completion", ("prompt", "completion"), _pair),
    Format("instruction, input, output", ("instruction", "output"), _instruction),
)
"""Tried in this order."""


def _tools(record: dict[str, Any], where: str) -> list[Any] | None:
    """The tools of a chat, which tables often hold as JSON."""
    tools = record.get("tools")
    if isinstance(tools, str) and tools:
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise DataError(where, f"tools: not JSON: {error}") from None
    if tools and not _is_list(tools):
        raise DataError(where, "tools: a list of JSON schemas is meant")
    return tools or None


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, Mapping) for each in value)


def _joined(value: Any) -> Any:
    """A content in parts that are all of text, as one text."""
    parts = value if _is_list(value) else []
    said = [part.get("text") for part in parts if part.get("type") == "text"]
    return "".join(said) if said and len(said) == len(parts) and all(said) else value


def _checked(value: Any, name: str, where: str, *, answered: bool = True) -> tuple[Message, ...]:
    """Messages that a template can render. Keys that are null are left out, as arrow adds them."""
    if not value or not _is_list(value):
        raise DataError(where, f'{name}: a list of {{"role": ..., "content": ...}} is meant')
    messages = tuple({k: _joined(v) for k, v in each.items() if v is not None} for each in value)
    for number, message in enumerate(messages, 1):
        if not isinstance(message.get("role"), str):
            raise DataError(where, f"{name}: message {number} has no role; write user or assistant")
        said = message.get("content")
        if not isinstance(said, str) and not (said is None and "tool_calls" in message):
            kind = type(said).__name__
            what = (
                f"{name}: the content of message {number} is {kind}, not a text; write one string"
            )
            raise DataError(where, what)
        if odd := [key for key in ("train", "weight") if message.get(key, 1) not in (0, 1)]:
            what = (
                f"{name}: {odd[0]} of message {number} is {message[odd[0]]!r}; write true or false"
            )
            raise DataError(where, what)
    if answered and not any(message["role"] == "assistant" for message in messages):
        raise DataError(where, f"{name}: no message of the assistant; there is nothing to learn")
    return messages
