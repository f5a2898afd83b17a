"""Answers to fixed prompts at each evaluation, and the share of them that is right."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config.schema import RunConfig
from jaxlm.core import distributed
from jaxlm.core.errors import ConfigError, DataError
from jaxlm.core.tree import Params
from jaxlm.data import asked
from jaxlm.data.asked import Asked
from jaxlm.inference.generate import Generator
from jaxlm.observe.metrics import replace
from jaxlm.text.tokenizer import Tokenizer
from jaxlm.training import marks
from jaxlm.training.evaluate import Gauge

FILE = "samples.jsonl"
SAID = 2
"""Answers that are said at each evaluation; all are in FILE."""

Say = Callable[[str], None]


def read(config: RunConfig, tokenizer: Tokenizer, positions: int) -> list[Asked]:
    """The prompts of a run; none without samples.prompts. positions: of the model.

    Raises ConfigError and DataError for what cannot be asked.
    """
    chosen = config.samples
    if not chosen.prompts:
        return []
    if chosen.prompts == "validation":
        found = _held(config, tokenizer)
    else:
        found = asked.read_file(chosen.prompts, tokenizer, config.examples, chosen.count)
    for each in found:
        if len(each.ids) + chosen.tokens > positions:
            raise DataError(
                each.where,
                f"{len(each.ids)} tokens of prompt and samples.tokens={chosen.tokens} exceed the "
                f"model's {positions} positions; shorten one",
            )
    if chosen.match == "exact" and not any(each.expected for each in found):
        what = "exact needs answers to compare with; add them to the prompts, or use json or regex:"
        raise ConfigError(marks.WHERE, what)
    return found


def _held(config: RunConfig, tokenizer: Tokenizer) -> list[Asked]:
    data, count = config.data, config.samples.count
    if config.objective.type != "sft" or data.validation is None:
        what = "validation is of objective.type=sft with data.validation; name a file of prompts"
        raise ConfigError("samples.prompts", what)
    own = data.validation if isinstance(data.validation, tuple) else None
    share = None if own else data.validation
    chosen = own or data.train, share, tokenizer, config.examples, count
    return asked.held(*chosen, length=config.length)  # pyright: ignore


def sampling(
    config: RunConfig,
    prompts: list[Asked],
    generator: Generator,
    tokenizer: Tokenizer,
    folder: Path,
    say: Say,
    *,
    shards: int,
) -> Gauge:
    """samples_match, samples_parsed and samples_schema: shares of the answers, greedy ones.

    Each is there when samples.match or samples.json_schema asks for it. shards: over how many
    devices the rows split. Raises as `marks.marker` and `marks.fits` do.
    """
    mark, most = _marking(config), config.samples.tokens

    def gauge(step: int, params: Params, beat: Callable[[], None]) -> dict[str, float]:
        answers = _answers(prompts, params, generator, tokenizer, most, shards, beat)
        rows = [
            {"step": step, "prompt": each.text, "output": answer, "expected": each.expected}
            | mark(answer, each.expected)
            for each, answer in zip(prompts, answers, strict=True)
        ]
        for each, answer in list(zip(prompts, answers, strict=True))[:SAID]:
            say(f"  {_short(each.text)} -> {_short(answer)}")
        distributed.agree("samples", lambda: _write(folder / FILE, step, rows))
        marked = [name for name in ("match", "parsed", "schema") if name in rows[0]]
        return {f"samples_{name}": float(np.mean([row[name] for row in rows])) for name in marked}

    return gauge


def _marking(config: RunConfig) -> Callable[[str, str | None], dict[str, bool]]:
    """(an answer, what is expected) -> what is said of it."""
    match, schema = config.samples.match, config.samples.json_schema
    right, parse = marks.marker(match) if match else (None, None)
    fits = marks.fits(schema) if schema else None
    if fits and parse not in (None, marks.parse_json):
        raise ConfigError("samples.json_schema", "is of JSON; leave it out, or match json")
    parse = marks.parse_json if fits else parse

    def mark(answer: str, expected: str | None) -> dict[str, bool]:
        found: dict[str, bool] = {}
        if right:
            found["match"] = right(answer, expected)
        if parse:
            try:
                parsed, found["parsed"] = parse(answer), True
            except ValueError:
                parsed, found["parsed"] = None, False
            if fits:
                found["schema"] = found["parsed"] and fits(parsed)
        return found

    return mark


def _answers(
    prompts: list[Asked],
    params: Params,
    generator: Generator,
    tokenizer: Tokenizer,
    most: int,
    shards: int,
    beat: Callable[[], None],
) -> list[str]:
    starts = [each.ids for each in prompts]
    whole = starts + starts[:1] * (-len(starts) % shards)
    said = np.zeros((len(whole), 0), np.int32)
    for tokens in generator.tokens(params, whole, max_tokens=most):
        said = np.concatenate([said, tokens[:, None]], 1)
        beat()
        if np.isin(said, tokenizer.ends).any(1).all():
            break
    rows = zip(starts, said.tolist(), strict=False)
    return [tokenizer.continuation(start, row) for start, row in rows]


def _write(path: Path, step: int, rows: list[dict[str, Any]]) -> None:
    """Put the rows of a step into the file, instead of those of this step and later ones."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # an answer may hold other breaks
    except FileNotFoundError:
        lines = []
    kept = [line for line in lines if line and json.loads(line)["step"] < step]
    new = [json.dumps(row, ensure_ascii=False) for row in rows]
    replace(path, "".join(f"{line}\n" for line in (*kept, *new)).encode())


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 100 else f"{shown[:60]}...{shown[-36:]}"
