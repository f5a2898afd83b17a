"""What a run says of itself, and what it starts from, without a weight being read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.config.load import load as load_config
from jaxlm.config.schema import RunConfig
from jaxlm.core.errors import CheckpointError
from jaxlm.families.heads import Labels, named
from jaxlm.hub import load as folders
from jaxlm.hub.load import Folder
from jaxlm.inference import imported
from jaxlm.models.spec import ModelSpec
from jaxlm.text import tokenizer as tokenizers
from jaxlm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Run:
    """What a run directory says of itself."""

    folder: Path
    config: RunConfig
    tokenizer: Tokenizer
    spec: ModelSpec


class Origin(NamedTuple):
    """What `init` names."""

    spec: ModelSpec
    tokenizer: str
    """The folder or name with its tokenizer."""
    labels: Labels
    """Of a classifier."""
    config: dict[str, Any] | None
    """The config.json that it came with, if it did."""
    folder: Folder | None
    """The Hugging Face folder that it is, if it is one."""


def open_run(folder: str | Path) -> Run:
    """Raises CheckpointError when `folder` is not a run directory."""
    path = Path(folder)
    if imported.is_imported(path):
        raise CheckpointError(str(path), "is an import and no run; train from it with init=FOLDER")
    if not (path / "config.yaml").is_file():
        raise CheckpointError(
            str(path),
            "is neither a run (config.yaml) nor a Hugging Face folder (config.json); name one",
        )
    if not (path / "tokenizer").is_dir():
        raise CheckpointError(
            str(path), "has no tokenizer/: train it to its first step, or put it back from a copy"
        )
    config = load_config(str(path / "config.yaml"), [])
    tokenizer = tokenizers.load(path / "tokenizer")
    spec = config.model.filled(vocab=tokenizer.vocab, max_length=config.length)
    return Run(path, config, tokenizer, spec)


def origin(folder: str) -> Origin:
    """What a run starts from. Raises CheckpointError for what is neither a run, an import nor a
    Hugging Face folder.
    """
    path = Path(folder)
    if folders.is_folder(folder):
        opened = folders.open_folder(folder)
        labels = named(opened.config, opened.spec)
        return Origin(opened.spec, folder, labels, opened.config, opened)
    tokenizer = str(path / "tokenizer")
    if imported.is_imported(path):
        opened = imported.open_imported(path)
        labels = named(opened.config, opened.spec)
        return Origin(opened.spec, tokenizer, labels, opened.config, None)
    run = open_run(path)
    came = imported.open_imported(path).config if imported.kept(path).is_file() else None
    return Origin(run.spec, tokenizer, labels_of(run.config), came, None)


def labels_of(config: RunConfig) -> Labels:
    """What the scores of a run's classifier mean; nothing where it is none."""
    objective = config.objective
    if objective.type == "classification":
        return Labels(objective.labels, objective.problem)
    return Labels(objective.labels) if objective.type == "token_classification" else Labels()
