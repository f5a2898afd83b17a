"""Chat templates: messages to the text, and the ids, that a model was tuned on."""

import json
import re
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from jaxlm.core.errors import DataError
from jaxlm.text.builtin import BUILTIN, ENDS
from jaxlm.text.sandbox import Run, Sandbox, running
from jaxlm.text.tokenizer import Tokenizer

Message = Mapping[str, Any]
LONGEST = 200
"""Characters of a template's own complaint that are passed on."""
OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Around what looks like a special token in a message: Unicode keeps them for such use."""


class Rendered(NamedTuple):
    """A chat as text. spans: (start, end) of its {% generation %} blocks, in characters."""

    text: str
    spans: list[tuple[int, int]]


class ChatTemplate:
    """A template in jinja2's language, as transformers reads it, in a sandbox.

    where: the file it is from, for errors. tokens: variables it may use, such as bos_token. Raises
    DataError for one that is not a template.
    """

    def __init__(
        self, source: str, where: str = "chat template", tokens: Mapping[str, Any] | None = None
    ):
        self.source, self._where, self._tokens = source, where, dict(tokens or {})
        try:
            self._template = _sandbox().compiled(source)
        except Exception as error:  # a template is a program: it can fail in any way
            raise self._refused(error) from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **more: Any,
    ) -> Rendered:
        """The text of `messages` (role, content and what else the template reads).

        add_generation_prompt: end with what precedes the assistant's answer. tools: JSON schemas.
        more: other variables of the template. A key of a message whose value is None is left out.
        Raises DataError for messages that are not a list of dicts, for values that JSON has not,
        and for a template that refuses them, fails, reaches out of the sandbox or does not end.
        """
        if not isinstance(messages, list | tuple) or not all(
            isinstance(message, Mapping) for message in messages
        ):
            raise DataError("messages", "a list of {role, content} is meant")
        said = [{k: v for k, v in each.items() if v is not None} for each in messages]
        given = {"messages": said, "tools": tools, "documents": documents}
        given["add_generation_prompt"] = add_generation_prompt
        variables = _plain(self._tokens | more | given)
        run, parts = Run(variables), []
        try:
            with running(run):
                for part in self._template.generate(variables):
                    parts.append(part)
                    run.written += len(part)
        except Exception as error:
            raise self._refused(error) from error
        text = "".join(parts)
        return Rendered(text, self._spans(text, run))

    def apply(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        parse_special: bool = False,
        **how: Any,
    ) -> list[int]:
        """Ids of what `render` gives with the same arguments.

        The template writes the special tokens and the tokenizer adds none, so that a start token is
        never there twice. Those named in messages, tools and so on stay text, unless
        `parse_special`.
        """
        names = _alternatives(tokenizer)
        if names and not parse_special:
            messages, how = _marked([messages, how], re.compile(names))
        return _stretch(tokenizer, self.render(messages, **how).text, first=True)

    def unknown(self, tokenizer: Tokenizer) -> set[str]:
        """What stands in the template like a special token, and is none of the tokenizer's."""
        return set(re.findall(r"<\|\w+\|>", self.source)) - set(tokenizer.names)

    def answers(
        self, tokenizer: Tokenizer, messages: Sequence[Message], **how: Any
    ) -> list[tuple[list[int], int | None]]:
        """What `apply` gives in stretches: (ids, the index of the message that they answer with).

        The index is None between answers. An answer is a {% generation %} block, with what ends it;
        where the template has none, what `messages` up to it add to those before it and the
        assistant's opening. Every stretch is tokenized by itself, as it is when the model answers.
        Raises DataError where answers cannot be told so, and as `render` does.
        """
        if names := _alternatives(tokenizer):
            messages, how = _marked([messages, how], re.compile(names))
        text, blocks = self.render(messages, **how)
        said = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
        if blocks and len(blocks) != len(said):
            what = f"{len(blocks)} generation blocks for {len(said)} answers; write one for each"
            raise DataError(self._where, what)
        spans = blocks or [self._added(tokenizer, text, messages, i, how) for i in said]
        found, end = [], 0
        for index, (start, stop) in zip(said, spans, strict=True):
            found += [(text[end:start], None), (text[start:stop], index)]
            end = stop
        found.append((text[end:], None))
        return [
            (_stretch(tokenizer, part, first=place == 0), index)
            for place, (part, index) in enumerate(found)
        ]

    def _added(
        self, tokenizer: Tokenizer, text: str, messages: Sequence[Message], index: int, how: Any
    ) -> tuple[int, int]:
        """Where in `text` an answer stands, by what is written without and with it."""
        before = self.render(messages[:index], add_generation_prompt=True, **how).text
        through = self.render(messages[: index + 1], **how).text
        if not (through.startswith(before) and text.startswith(through)):
            raise DataError(
                self._where,
                f"writes message {index + 1} otherwise when more follow, so its answers cannot be "
                "told; put {% generation %} around them, or choose examples.template",
            )
        end = len(through.rstrip())
        ended = any(through[:end].endswith(name) for name in tokenizer.names)
        return len(before), end if ended and end > len(before) else len(through)

    def _spans(self, text: str, run: Run) -> list[tuple[int, int]]:
        spans: list[tuple[int, int]] = []
        for start, written in run.blocks:
            end = start + len(written)
            if text[start:end] != written or (spans and start < spans[-1][1]):
                raise DataError(
                    self._where,
                    "a generation block stands inside a macro, a set or another block; "
                    "move it to where the text is written",
                )
            spans.append((start, end))
        return spans

    def _refused(self, error: Exception) -> DataError:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == "<template>"
        ]
        line = getattr(error, "lineno", None) or (lines or [None])[-1]
        what = " ".join(str(error).split()) or type(error).__name__
        what = what if len(what) <= LONGEST else what[:LONGEST] + "..."
        return DataError(f"{self._where}:{line}" if line else self._where, what)


def continued(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that stands after another, without the space that some put at the start."""
    return _inside(tokenizer, text, parse_special=False)


def builtin(tokenizer: Tokenizer, name: str) -> ChatTemplate:
    """One of BUILTIN for a tokenizer. Raises DataError where it lacks a token that stands in it."""
    names = {index: said for said, index in tokenizer.names.items()}
    bos = names.get(-1 if tokenizer.bos is None else tokenizer.bos, "")
    own = {"bos_token": bos, "eos_token": names.get(tokenizer.eos, "")}
    first = (f"{{% set {k} = {json.dumps(v, ensure_ascii=False)} %}}" for k, v in own.items())
    template = ChatTemplate("".join(first) + BUILTIN[name], f"template {name}")
    if lacking := sorted(template.unknown(tokenizer)):
        what = f"{name} writes {lacking[0]}, which the tokenizer does not have; use alpaca or plain"
        raise DataError("examples.template", what)
    return template


def adopt(tokenizer: Tokenizer, name: str) -> None:
    """Make one of BUILTIN the tokenizer's own chat template, and what ends its answers an end.

    Raises DataError as `builtin` does.
    """
    tokenizer.templates["default"] = (f"template {name}", builtin(tokenizer, name).source)
    end = tokenizer.names.get(ENDS.get(name, ""), tokenizer.eos)
    tokenizer.ends = tuple(dict.fromkeys((*tokenizer.ends, end)))


def of(tokenizer: Tokenizer, name: str = "default") -> ChatTemplate:
    """The tokenizer's chat template of that name. Raises DataError when it has none."""
    if name not in tokenizer.templates:
        known = ", ".join(tokenizer.templates)
        raise DataError(
            "chat template",
            f"the tokenizer has none named {name!r}; use one of {known}"
            if known
            else "the tokenizer has none; put a chat_template.jinja beside it",
        )
    where, source = tokenizer.templates[name]
    return ChatTemplate(source, where, tokenizer.special)


def _plain(value: Any) -> Any:
    """A copy made of what JSON has: other objects have methods, which no sandbox knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if value is not None and type(value) not in (str, int, float, bool):
        raise DataError("messages", f"hold a {type(value).__name__}; use what JSON has")
    return value


def _marked(value: Any, names: re.Pattern[str]) -> Any:
    """A copy with marks around the names in its strings."""
    if isinstance(value, str) and names.search(value):
        return names.sub(f"{OPEN}\\g<0>{CLOSE}", re.sub(f"[{OPEN}{CLOSE}]", "", value))
    if isinstance(value, Mapping):
        return {key: _marked(each, names) for key, each in value.items()}
    return [_marked(each, names) for each in value] if isinstance(value, list | tuple) else value


def _alternatives(tokenizer: Tokenizer) -> str:
    """A regular expression of the special tokens' names."""
    return "|".join(re.escape(name) for name in sorted(tokenizer.names, key=len, reverse=True))


def _stretch(tokenizer: Tokenizer, text: str, *, first: bool) -> list[int]:
    """Ids of a part of a marked text. first: nothing stands before it."""
    start, *rest = re.split(f"{OPEN}({_alternatives(tokenizer)}){CLOSE}|[{OPEN}{CLOSE}]", text)
    if first:
        ids = tokenizer.encode(start, parse_special=True, add_special=False)
    else:
        ids = _inside(tokenizer, start, parse_special=True)
    for name, after in zip(rest[::2], rest[1::2], strict=True):
        ids += _inside(tokenizer, name or "", parse_special=False)
        ids += _inside(tokenizer, after, parse_special=True)
    return ids


def _inside(tokenizer: Tokenizer, text: str, *, parse_special: bool) -> list[int]:
    """Ids of a text that stands after another: without the space that some put at the start."""
    if not text:
        return []
    before = tokenizer.encode("\n", add_special=False)
    ids = tokenizer.encode("\n" + text, parse_special=parse_special, add_special=False)
    if ids[: len(before)] == before:
        return ids[len(before) :]
    return tokenizer.encode(text, parse_special=parse_special, add_special=False)


@cache
def _sandbox() -> Sandbox:
    return Sandbox()
