"""A BERT fine-tuned on labeled texts by jaxlm and by transformers' Trainer, in turn.

Both start from the same folder of random weights, one for each seed, and see as many examples in an
update: jaxlm packed into rows, Trainer padded to the longest of a batch, its default. The rates are
of whole trainings but for what jaxlm compiles before its first update.
"""

import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.text.tokenizer import Tokenizer
from jaxlm.text.train import train as train_tokenizer
from measure.pipe import Answer, SideError, cores

Texts = list[tuple[str, str]]


def trainer(shape: dict[str, Any], rounds: int, steps: int) -> Answer:
    """Examples a second, and accuracy on what is held out, of both sides.

    A round is a seed. shape["texts"]: a folder with train.tsv and dev.tsv, text<TAB>label. Raises
    SideError where it, torch or transformers is missing.
    """
    if not shape.get("texts"):
        raise SideError("needs --texts FOLDER with train.tsv and dev.tsv: text<TAB>label in lines")
    source = Path(shape["texts"])
    told, held = (_read(source / f"{name}.tsv") for name in ("train", "dev"))
    own = train_tokenizer("bpe", shape["vocab"], [text for text, _ in told], "encoder")
    sides = {"trainer": _theirs, "jaxlm": _ours}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    right: dict[str, list[float]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as root:
        for seed in range(rounds):
            base = _base(shape, own, Path(root) / f"base{seed}", seed)
            names = list(sides)
            for name in names if seed % 2 else names[::-1]:
                out = Path(root) / f"{name}{seed}"
                rate, accuracy = sides[name](shape, base, source, out, seed, (told, held))
                rates[name].append(rate)
                right[name].append(accuracy)
    found: Answer = {}
    for name in sides:
        found[f"examples_per_second_{name}"] = statistics.median(rates[name])
        found[f"accuracy_{name}"] = statistics.mean(right[name])
    ratios = [a / b for a, b in zip(rates["jaxlm"], rates["trainer"], strict=True)]
    found["ratio"] = statistics.median(ratios)
    found["standard_errors_apart"] = _apart(right["jaxlm"], right["trainer"])
    return {**found, "per_round": {"examples_per_second": rates, "accuracy": right}}


def _apart(one: list[float], other: list[float]) -> float:
    """How many standard errors of their difference two means are apart."""
    errors = [np.std(each, ddof=1) ** 2 / len(each) for each in (one, other)]
    apart = abs(statistics.mean(one) - statistics.mean(other))
    return float(apart / max(np.sqrt(sum(errors)), 1e-9))


def _base(shape: dict[str, Any], own: Tokenizer, folder: Path, seed: int) -> Path:
    """A BERT of random weights with its classifier, without dropout, and its tokenizer."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    torch.manual_seed(seed)
    fields = {
        **shape["bert"],
        "vocab_size": own.vocab,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": own.pad,
        "num_labels": 2,
    }
    config = transformers.BertConfig(**fields)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    own.save(folder)
    return folder


def _ours(
    shape: dict[str, Any],
    base: Path,
    source: Path,
    out: Path,
    seed: int,
    texts: tuple[Texts, Texts],
) -> tuple[float, float]:
    examples, epochs = len(texts[0]), shape["epochs"]
    words = {
        "init": base,
        "objective.type": "classification",
        "data.train": source / "train.tsv",
        "data.validation": source / "dev.tsv",
        "evaluate.batches": 1000,
        "evaluate.every": 0,
        "checkpoint.every": 0,
        "length": shape["length"],
        "batch": shape["rows"],
        "model.unroll": shape["bert"]["num_hidden_layers"],
        "epochs": epochs,
        "seed": seed,
        "log.every": 1,
        "platform": "cpu",
        "optimizer.learning_rate": shape["learning_rate"],
        "optimizer.schedule.type": "linear",
        "optimizer.weight_decay": 0.0,
        "optimizer.b2": 0.999,
        "run_dir": out,
    }
    command = [sys.executable, "-m", "jaxlm", "train", *(f"{k}={v}" for k, v in words.items())]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SideError(done.stderr.strip().splitlines()[-1])
    rows = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    seconds = sum(row["seconds"] for row in rows if "seconds" in row)
    return examples * epochs / seconds, rows[-1]["validation_accuracy"]


def _theirs(
    shape: dict[str, Any],
    base: Path,
    source: Path,
    out: Path,
    seed: int,
    texts: tuple[Texts, Texts],
) -> tuple[float, float]:
    import datasets  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(cores())
    reader = transformers.AutoTokenizer.from_pretrained(base)

    def rows(texts: Texts) -> Any:
        labeled = [{**reader(text), "labels": int(label)} for text, label in texts]
        return datasets.Dataset.from_list(labeled)

    told, held = map(rows, texts)
    made: Any = transformers.Trainer(
        transformers.BertForSequenceClassification.from_pretrained(base),
        transformers.TrainingArguments(
            output_dir=str(out),
            num_train_epochs=shape["epochs"],
            per_device_train_batch_size=shape["batch"],
            per_device_eval_batch_size=shape["batch"],
            learning_rate=shape["learning_rate"],
            lr_scheduler_type="linear",
            seed=seed,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=1000,
        ),
        train_dataset=told,
        eval_dataset=held,
        data_collator=transformers.DataCollatorWithPadding(reader),
    )
    start = time.perf_counter()
    made.train()
    seconds = time.perf_counter() - start
    found = made.predict(held)
    accuracy = float((found.predictions.argmax(-1) == found.label_ids).mean())
    return len(told) * shape["epochs"] / seconds, accuracy


def _read(path: Path) -> Texts:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            return [(row[0], row[1]) for row in rows if row[0].strip()]
    except OSError as error:
        raise SideError(f"{path}: {error.strerror}") from None
