"""The data of a run, as its objective reads it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxlm.config.objectives import Contrastive, Mlm, Pairs, Seq2seq
from jaxlm.config.schema import RunConfig
from jaxlm.data import examples, paired, pairs, pipeline, seq2seq
from jaxlm.data.cache import Tokens
from jaxlm.data.corrupted import corrupted
from jaxlm.data.masked import check_mask, masked
from jaxlm.data.packing import Rows, Windows
from jaxlm.data.pipeline import Dataset, Opener
from jaxlm.text.tokenizer import Tokenizer
from jaxlm.training.corruption import corruption

Say = Callable[[str], None]
AUDIT, LOST = "audit.json", "dropped.jsonl"


def opener(config: RunConfig, tokenizer: Tokenizer, say: Say) -> Opener:
    """How the sources of a run are opened."""
    if config.objective.type == "sft":
        return pipeline.answers(tokenizer, config.examples, length=config.length, say=say)
    if isinstance(config.objective, Contrastive):
        how = config.objective, config.examples.overlong
        return pairs.opener(tokenizer, *how, length=config.length, say=say)
    if isinstance(config.objective, Seq2seq):
        start, how = config.model.encoder.start, (config.objective, config.examples)
        return paired.opener(tokenizer, *how, length=config.length, start=start, say=say)
    return documents(config, tokenizer, say)


def documents(config: RunConfig, tokenizer: Tokenizer, say: Say) -> Opener:
    """How sources of documents are opened. Raises ConfigError for a token that is not there."""
    return pipeline.documents(
        tokenizer,
        _rows(config, tokenizer),
        parse_special=config.data.parse_special,
        cache=config.data.cache,
        say=say,
    )


def _rows(config: RunConfig, tokenizer: Tokenizer) -> Callable[[Tokens], Rows]:
    """From a stream of documents to the rows that the objective learns from."""
    chosen, model = config.objective, config.model
    length, seed = config.length, config.seed
    if isinstance(chosen, Mlm):
        check_mask(tokenizer)
        types = model.embedding.types > 0
        return lambda stream: masked(
            stream, tokenizer, chosen, length=length, types=types, seed=seed
        )
    if isinstance(chosen, Pairs):
        how, shape = corruption(chosen, tokenizer), chosen.rows
        start = model.encoder.start if model.structure == "encoder-decoder" else None
        return lambda stream: corrupted(
            stream, tokenizer, how, shape=shape, length=length, start=start, seed=seed
        )
    return lambda stream: Windows(stream, length, tokenizer.vocab, tokenizer.pad)


def read(config: RunConfig, tokenizer: Tokenizer, say: Say) -> tuple[Dataset, Dataset | None]:
    """The training and the validation data. Raises DataError and ConfigError."""
    data, length, pad = config.data, config.length, tokenizer.pad
    how = opener(config, tokenizer, say)
    train, held = pipeline.open_data(
        data.train, data.validation, how, length=length, pad=pad, seed=config.seed
    )
    if data.replay is None:
        return train, held
    share, rows = data.replay.weight or 0.0, documents(config, tokenizer, say)(data.replay, 0.0)
    say(f"{data.replay.path}: {share:.3g} of the rows, again, of {rows.train.count:,}")
    return train.replaying(rows.train, share), held


def read_validation(config: RunConfig, tokenizer: Tokenizer, say: Say) -> Dataset | None:
    """The validation data alone. Raises DataError and ConfigError."""
    data, how = config.data, opener(config, tokenizer, say)
    return pipeline.open_validation(
        data.train, data.validation, how, length=config.length, pad=tokenizer.pad
    )


def texts(config: RunConfig) -> Iterator[str]:
    """What a tokenizer is trained on."""
    data, share = config.data, config.data.validation
    held = share if isinstance(share, float) else 0.0
    if config.objective.type == "sft":
        return examples.texts(data.train, held)
    if isinstance(config.objective, Contrastive):
        return pairs.texts(data.train, config.objective, held)
    if isinstance(config.objective, Seq2seq):
        return seq2seq.texts(data.train, config.objective, held)
    return pipeline.training_texts(data.train, share)


def report(data: Dataset, tokenizer: Tokenizer, folder: Path, say: Say) -> None:
    """Say what became of the examples, and write it into the run's folder."""
    if not data.audits:
        return
    for audit in data.audits:
        for line in audit.lines(tokenizer.pad == tokenizer.eos):
            say(line)
    found = [audit.summary() for audit in data.audits]
    (folder / AUDIT).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    lost = [json.dumps(each) + "\n" for audit in data.audits for each in audit.lost]
    (folder / LOST).write_text("".join(lost), encoding="utf-8")
