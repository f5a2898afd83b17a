"""What every tokenizer can do, and how one is found in a file or a folder."""

import hashlib
import json
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxlm.core.errors import DataError

END = "<|endoftext|>"
"""The end-of-document token of the tokenizers trained here."""
KNOWN_ENDS = (END, "</s>", "<|end_of_text|>", "<eos>", "[SEP]")
"""Tried in this order where no file names the end-of-document token."""
CONFIGS = ("special_tokens_map.json", "tokenizer_config.json")
"""Files beside the model that name special tokens; the later one wins."""


class Tokenizer(ABC):
    """Text to ids and back.

    vocab: number of ids. eos: ends every document. bos: what this tokenizer itself puts before a
    text, or None. pad: fills rows; eos where the files name no other.
    """

    file: ClassVar[str]
    vocab: int
    bos: int | None
    eos: int
    pad: int

    def __init__(self, data: bytes, config: dict[str, Any]):
        self._data, self._config = data, config

    @abstractmethod
    def _ids(self, text: str, parse_special: bool, add_special: bool) -> list[int]: ...

    @abstractmethod
    def _batch(self, texts: list[str], parse_special: bool) -> list[list[int]]: ...

    @abstractmethod
    def _text(self, ids: list[int], skip_special: bool) -> str: ...

    @abstractmethod
    def token_bytes(self) -> np.ndarray:
        """int32 [vocab]: the bytes of UTF-8 that each id stands for, 0 for special tokens.

        A space that a tokenizer invents before the first word is counted as text.
        """

    def encode(
        self, text: str, *, parse_special: bool = False, add_special: bool = True
    ) -> list[int]:
        """Ids of one text, with what the model's own tokenizer adds unless not `add_special`.

        Text that looks like a special token stays text unless `parse_special`. Raises DataError for
        a lone surrogate, which no UTF-8 can hold.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                "text", f"character {error.start} is a lone surrogate; write valid Unicode"
            ) from None
        return self._ids(text, parse_special, add_special)

    def encode_batch(self, texts: list[str], *, parse_special: bool = False) -> list[list[int]]:
        """Ids of many texts without lone surrogates, on all cores, nothing added."""
        return self._batch(texts, parse_special)

    def decode(self, ids: Any, *, skip_special: bool = True) -> str:
        """Text of ids (a list or a 1-D array). Raises DataError for ids outside the vocabulary."""
        ids = [int(i) for i in ids]
        if outside := [i for i in ids if not 0 <= i < self.vocab]:
            raise DataError(
                "ids", f"{outside[0]} is outside the vocabulary; ids go from 0 to {self.vocab - 1}"
            )
        return self._text(ids, skip_special)

    @cached_property
    def digest(self) -> str:
        """sha256 of the model file's bytes and of the special ids that were read from the rest."""
        special = json.dumps([self.file, self.bos, self.eos, self.pad]).encode()
        return hashlib.sha256(hashlib.sha256(self._data).digest() + special).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write the model file, byte for byte, and tokenizer_config.json into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.file).write_bytes(self._data)
        config = json.dumps(self._config, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")


def load(path: str | Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, in a SentencePiece .model, or in a folder with one.

    The files in CONFIGS beside it name the special tokens. Raises DataError naming what is missing.
    """
    path = Path(path).expanduser()
    model = _model_file(path)
    try:
        data = model.read_bytes()
        configs = [_config(model.parent / name) for name in CONFIGS]
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror}") from error
    config = {key: value for each in configs for key, value in each.items()}
    if model.suffix == ".json":
        from jaxlm.text.huggingface import HuggingFace

        return HuggingFace(data, config, str(model))
    from jaxlm.text.sentencepiece import SentencePiece

    return SentencePiece(data, config, str(model))


def named(config: dict[str, Any], key: str) -> str | None:
    """The special token under `key`, such as eos_token: a string, or an object with its content."""
    value = config.get(key)
    return value.get("content") if isinstance(value, dict) else value


def _model_file(path: Path) -> Path:
    if path.is_dir():
        for name in ("tokenizer.json", "tokenizer.model", "spiece.model"):
            if (path / name).is_file():
                return path / name
        raise DataError(
            str(path), "no tokenizer.json, tokenizer.model or spiece.model in this folder"
        )
    if not path.is_file():
        raise DataError(
            str(path), "no such file; name a tokenizer.json, a .model or a folder with one"
        )
    if path.suffix not in (".json", ".model"):
        raise DataError(
            str(path), "not a tokenizer; name a tokenizer.json or a SentencePiece .model"
        )
    return path


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(str(path), f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(str(path), "an object is meant, with keys such as eos_token")
    return found
