"""Answers to fixed prompts at each evaluation, and how many of them are right or near it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config.objectives import HEADLESS, Labels, Seq2seq
from jaxlm.config.schema import RunConfig
from jaxlm.core import distributed
from jaxlm.core.errors import ConfigError, DataError
from jaxlm.core.tree import Params
from jaxlm.data import asked
from jaxlm.data.asked import Asked
from jaxlm.data.paired import fitting
from jaxlm.models.spec import ModelSpec
from jaxlm.observe.metrics import replace
from jaxlm.text.tokenizer import Tokenizer
from jaxlm.training import marks, metrics
from jaxlm.training.answers import Answer
from jaxlm.training.evaluate import Gauge

FILE = "samples.jsonl"
SAID = 2
"""Answers that are said at each evaluation; all are in FILE."""

Say = Callable[[str], None]


def read(config: RunConfig, tokenizer: Tokenizer, spec: ModelSpec) -> list[Asked]:
    """The prompts of a run; none without samples.prompts. An encoder-decoder reads them as sources.

    Raises ConfigError and DataError for what cannot be asked.
    """
    chosen = config.samples
    if not chosen.prompts:
        return []
    pair, objective = spec.structure == "encoder-decoder", config.objective
    silent = isinstance(objective, Labels) or objective.type in HEADLESS
    if silent or spec.structure == "encoder":
        what = f"are for models that answer, not for {objective.type}; leave it out"
        raise ConfigError("samples.prompts", what)
    if chosen.prompts == "validation":
        found = _held(config, tokenizer)
    elif pair:
        how = objective if isinstance(objective, Seq2seq) else Seq2seq()
        found = asked.read_sources(chosen.prompts, tokenizer, how, chosen.count)
    else:
        found = asked.read_file(chosen.prompts, tokenizer, config.examples, chosen.count)
    _check_length(found, chosen.tokens, spec)
    if not any(each.expected for each in found):
        what = "answers to compare with; add them to the prompts"
        if chosen.match == "exact":
            raise ConfigError(marks.WHERE, f"exact needs {what}, or use json or regex:")
        if chosen.metrics:
            raise ConfigError("samples.metrics", f"needs {what}, or leave it out")
    return found


def _check_length(prompts: list[Asked], most: int, spec: ModelSpec) -> None:
    """Raise DataError for a prompt that leaves no room for an answer of `most` tokens."""
    apart, positions = spec.structure == "encoder-decoder", spec.max_length
    for each in prompts:
        long = len(each.ids)
        if (max(long, most) if apart else long + most) > positions:
            raise DataError(
                each.where,
                f"{long} tokens of prompt {'or' if apart else 'and'} samples.tokens={most} exceed "
                f"the model's {positions} positions; shorten one",
            )


def _held(config: RunConfig, tokenizer: Tokenizer) -> list[Asked]:
    data, count, objective = config.data, config.samples.count, config.objective
    if objective.type not in ("sft", "seq2seq") or data.validation is None:
        what = "validation is of objective.type=sft or seq2seq with data.validation"
        raise ConfigError("samples.prompts", f"{what}; name a file of prompts")
    own = data.validation if isinstance(data.validation, tuple) else None
    sources, share = own or data.train, None if own else data.validation
    if isinstance(objective, Seq2seq):
        fit = fitting(objective, config.examples.overlong, tokenizer, config.length)
        return asked.held_sources(sources, share, fit, objective, count)  # pyright: ignore
    how = share, tokenizer, config.examples, count
    return asked.held(sources, *how, length=config.length)  # pyright: ignore


def sampling(
    config: RunConfig, prompts: list[Asked], answer: Answer, folder: Path, say: Say
) -> Gauge:
    """samples_match, samples_parsed, samples_schema, and samples_METRIC: of the answers.

    The first three are shares, there when samples.match or samples.json_schema asks for them.
    Raises as `marks.marker`, `marks.fits` and `metrics.metric` do.
    """
    mark = _marking(config)
    scores = {name: metrics.metric(name) for name in config.samples.metrics}

    def gauge(step: int, params: Params, beat: Callable[[], None]) -> dict[str, float]:
        answers = answer([each.ids for each in prompts], params, beat)
        rows = [
            {"step": step, "prompt": each.text, "output": said, "expected": each.expected}
            | mark(said, each.expected)
            for each, said in zip(prompts, answers, strict=True)
        ]
        for each, said in list(zip(prompts, answers, strict=True))[:SAID]:
            say(f"  {_short(each.text)} -> {_short(said)}")
        distributed.agree("samples", lambda: _write(folder / FILE, step, rows))
        marked = [name for name in ("match", "parsed", "schema") if name in rows[0]]
        found = {name: float(np.mean([row[name] for row in rows])) for name in marked}
        each = zip(answers, prompts, strict=True)
        pairs = [(said, asked.expected) for said, asked in each if asked.expected]
        found |= {name: score(pairs) for name, score in scores.items()}
        return {f"samples_{name}": value for name, value in found.items()}

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
