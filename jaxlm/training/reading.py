"""The data of a run, as its objective reads it."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxlm.config.objectives import Contrastive, Denoising, Labels, Mlm, Seq2seq
from jaxlm.config.schema import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.data import contrastive, examples, labeled, labeling, paired, pipeline, seq2seq
from jaxlm.data.cache import Tokens
from jaxlm.data.classified import Reads
from jaxlm.data.columns import Wanted
from jaxlm.data.contrastive import PairAudit
from jaxlm.data.corrupted import corrupted
from jaxlm.data.labeling import LabelAudit
from jaxlm.data.masked import check_mask, masked
from jaxlm.data.packing import Rows, Windows
from jaxlm.data.pipeline import Dataset, Opener
from jaxlm.text.tokenizer import Tokenizer
from jaxlm.training.corruption import corruption

Say = Callable[[str], None]
AUDIT, LOST = "audit.json", "dropped.jsonl"


def opener(config: RunConfig, tokenizer: Tokenizer, say: Say, verify: bool = True) -> Opener:
    """How the sources of a run are opened. verify: as of corpus.open_corpus."""
    chosen, how, length = config.objective, config.examples, config.length
    if chosen.type == "sft":
        return pipeline.answers(tokenizer, how, length=length, say=say)
    if isinstance(chosen, Labels):
        return labeling.opener(tokenizer, chosen, how, reads(config), length=length, say=say)
    if isinstance(chosen, Contrastive):
        return contrastive.opener(tokenizer, chosen, how.overlong, length=length, say=say)
    if isinstance(chosen, Seq2seq):
        start = config.model.encoder.start
        return paired.opener(tokenizer, chosen, how, length=length, start=start, say=say)
    return documents(config, tokenizer, say, verify)


def reads(config: RunConfig) -> Reads:
    """What the model of a run reads besides tokens."""
    model = config.model
    pair = model.structure == "encoder-decoder"
    return Reads(model.embedding.types > 1, model.encoder.start if pair else None)


def documents(config: RunConfig, tokenizer: Tokenizer, say: Say, verify: bool = True) -> Opener:
    """How sources of documents are opened. Raises ConfigError for a token that is not there."""
    return pipeline.documents(
        tokenizer,
        _rows(config, tokenizer),
        parse_special=config.data.parse_special,
        cache=config.data.cache,
        say=say,
        verify=verify,
    )


def _rows(config: RunConfig, tokenizer: Tokenizer) -> Callable[[Tokens], Rows]:
    """From a stream of documents to the rows that the objective learns from."""
    chosen, model = config.objective, reads(config)
    length, seed = config.length, config.seed
    if isinstance(chosen, Mlm):
        check_mask(tokenizer)
        return lambda stream: masked(
            stream, tokenizer, chosen, length=length, types=model.types, seed=seed
        )
    if isinstance(chosen, Denoising):
        how, shape = corruption(chosen, tokenizer), chosen.rows
        return lambda stream: corrupted(
            stream, tokenizer, how, shape=shape, length=length, start=model.start, seed=seed
        )
    return lambda stream: Windows(stream, length, tokenizer.vocab, tokenizer.pad)


def read(
    config: RunConfig, tokenizer: Tokenizer, say: Say, *, verify: bool = True
) -> tuple[Dataset, Dataset | None]:
    """The training and the validation data. Raises DataError and ConfigError.

    verify: compare the digests of tokens with those of their manifests; of several processes that
    read the same folder one does, and all compare their data afterwards.
    """
    data, length, pad = config.data, config.length, tokenizer.pad
    how = opener(config, tokenizer, say, verify)
    train, held = pipeline.open_data(
        data.train, data.validation, how, length=length, pad=pad, seed=config.seed
    )
    if isinstance(config.objective, Labels):
        _check_labels(config.objective, train)
    _check_learns(config, train)
    if data.replay is None:
        return train, held
    open_ = documents(config, tokenizer, say, verify)
    share, rows = data.replay.weight or 0.0, open_(data.replay, 0.0)
    say(f"{data.replay.path}: {share:.3g} of the rows, again, of {rows.train.count:,}")
    return train.replaying(rows.train, share), held


def _check_labels(wanted: Wanted, train: Dataset) -> None:
    """Raise DataError where all that is left to learn from has one label."""
    counted: Counter[str] = Counter()
    for audit in train.audits:
        counted.update(audit.labels if isinstance(audit, LabelAudit) else {})
    labeled.check_classes(counted, wanted, "data.train")


def _check_learns(config: RunConfig, train: Dataset) -> None:
    """Raise ConfigError where nothing is learned: from texts that are their own positives without
    dropout, and in a batch that holds no negative.
    """
    alone = any(isinstance(a, PairAudit) and a.alone == a.examples for a in train.audits)
    if alone and not (config.model.dropout or (config.lora.rank and config.lora.dropout)):
        what = "0 makes a text and its positive, which is itself, one vector: nothing is learned"
        raise ConfigError("model.dropout", f"{what}; use 0.1, or name two columns of texts")
    hard = any(isinstance(audit, PairAudit) and audit.negatives for audit in train.audits)
    if config.objective.type == "contrastive" and config.batch == 1 and not hard:
        what = "1 leaves a text nothing to be told from: there are no hard negatives"
        raise ConfigError("batch", f"{what}; use 8 or more")


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
    if isinstance(config.objective, Labels):
        return labeled.texts(data.train, config.objective, held)
    if isinstance(config.objective, Contrastive):
        return contrastive.texts(data.train, config.objective, held)
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
