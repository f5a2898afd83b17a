"""What every tokenizer can do, and how one is found in a file or a folder."""

import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxlm.core.errors import DataError
from jaxlm.text import files, words
from jaxlm.text.frames import Frame, PairFrame

END = "<|endoftext|>"
"""The end-of-document token of the tokenizers trained here."""
KNOWN_ENDS = (END, "</s>", "<|end_of_text|>", "<eos>", "[SEP]")
"""Tried in this order where no file names the end-of-document token."""
KNOWN_MASKS = ("[MASK]", "<mask>")
"""Tried in this order where no file names the token of what is masked."""
SENTINEL = "<extra_id_{}>"
"""T5's names for what stands for a dropped span (Raffel et al. 2020), counted from 0."""
FORMS = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("spiece.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
)
"""The files that a tokenizer is read from. The first form that a folder has is the one."""
OWN_MODEL = "sentencepiece_model"
"""The key of tokenizer_config.json that names the file to prefer to tokenizer.json."""


class Tokenizer(ABC):
    """Text to ids and back.

    vocab: number of ids. eos: ends every document. ends: all ids that end generation, eos first.
    bos: what this tokenizer itself puts before a text, or None. pad: fills rows; eos where the
    files name no other. config: what the files beside the model say. templates: chat templates by
    name, each (the file it is from, its source); jaxlm.text.chat renders them.
    """

    file: ClassVar[str]
    vocab: int
    bos: int | None
    eos: int
    pad: int

    def __init__(self, data: bytes, config: dict[str, Any]):
        self._data, self.config = data, config
        self._beyond: tuple[str, ...] = ()
        self.templates: dict[str, tuple[str, str]] = {}

    @abstractmethod
    def _ids(self, text: str, parse_special: bool, add_special: bool) -> list[int]: ...

    @abstractmethod
    def _batch(self, texts: list[str], parse_special: bool) -> list[list[int]]: ...

    @abstractmethod
    def _text(self, ids: list[int], skip_special: bool) -> str: ...

    @abstractmethod
    def _located(self, text: str, parse_special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids without what is added, and the characters [start, end) of each."""

    @abstractmethod
    def _pieces(self) -> list[str | None]:
        """The text of each id, None for special tokens, words.PART for parts of a character."""

    @abstractmethod
    def _apart(self, before: str, after: str) -> bool:
        """Whether texts that meet are cut there, so that no id has a part of both."""

    @property
    @abstractmethod
    def frame(self) -> Frame:
        """What the model's own tokenizer puts around a text."""

    @property
    @abstractmethod
    def pair_frame(self) -> PairFrame:
        """What the model's own tokenizer puts around a pair of texts."""

    @property
    @abstractmethod
    def unk(self) -> int | None:
        """The id of what the vocabulary does not have, or None."""

    @property
    @abstractmethod
    def names(self) -> dict[str, int]:
        """Every special token's id by its name: what no text becomes."""

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
        _check_unicode(text)
        return self._ids(text, parse_special, add_special)

    def encode_offsets(
        self, text: str, *, parse_special: bool = False
    ) -> tuple[list[int], np.ndarray]:
        """(ids of one text, nothing added; int32 [T, 2], the characters [start, end) of each id).

        White space at the ends of a span belongs to no word and is left out, unless the id has
        nothing else. The parts of one character share its span; what stands for no character has
        an empty one. Raises DataError for a lone surrogate.
        """
        _check_unicode(text)
        ids, spans = self._located(text, parse_special)
        return ids, words.trimmed(text, spans)

    def framed(self, ids: list[int]) -> list[int]:
        """Ids of a text with what the model's own tokenizer puts around it."""
        return self.frame.around(ids)

    def joined(
        self, first: list[int], second: list[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """(ids, token types) of a text, or of a pair, with what the model's tokenizer puts around.

        Token types are 0 for a text alone.
        """
        if second is not None:
            return self.pair_frame.around(first, second)
        ids = self.framed(first)
        return ids, [0] * len(ids)

    def word_starts(self) -> np.ndarray:
        """bool [vocab]: whether an id begins a word by what it is, for masking of whole words.

        WordPiece: what has no "##". Others: what begins with white space, as U+2581 is, and what
        the pre-tokenizer cuts off from a letter and from a digit before it: punctuation in
        byte-level BPE, nothing in SentencePiece. Special tokens are words. The first id of a text
        begins a word too, and so does what follows an id of `word_ends`: the caller sees to both.
        """
        return words.starts(self._pieces(), self._apart)

    def word_ends(self) -> np.ndarray:
        """bool [vocab]: whether what follows an id begins a word, whatever it is.

        After special tokens, line ends and tabs, and what the pre-tokenizer cuts off from a letter
        and from a digit after it. Not after a space, which belongs to the word that it precedes.
        """
        return words.ends(self._pieces(), self._apart)

    def sentence_ends(self) -> np.ndarray:
        """bool [vocab]: whether a sentence ends with an id: . ! ? or the end of a line."""
        return words.sentence_ends(self._pieces())

    def beginning(self, text: str) -> list[int]:
        """Ids of a text as documents begin in training: nothing that is put at a text's end."""
        first = [] if self.bos is None else [self.bos]
        return first + self.encode(text, add_special=False)

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

    def continuation(self, start: list[int], ids: list[int]) -> str:
        """The text of `ids` after those of a prompt, up to one that ends it.

        Decoded alone, some drop their first space.
        """
        ids = list(itertools.takewhile(lambda token: token not in self.ends, ids))
        known, whole = self.decode(start), self.decode(start + ids)
        return whole[len(known) :] if whole.startswith(known) else self.decode(ids)

    def cut(self, vocab: int) -> "Tokenizer":
        """Without special tokens at ids of `vocab` and more that a key of the files names and no
        role of the model's, such as image_token: as text they stay text. The tokenizer itself where
        others are there too, which the model must refuse.
        """
        return self

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """All ids that end generation, eos first."""
        return (self.eos,)

    @property
    def special(self) -> dict[str, str]:
        """The special tokens that have a key in the files, such as bos_token, by that key."""
        return files.special(self.config)

    def role(self, name: str) -> int | None:
        """The id of the special token under NAME_token in the files, such as cls_token, or None."""
        return self.names.get(self.special.get(f"{name}_token", ""))

    @property
    def mask(self) -> int | None:
        """The id of what is masked, or None."""
        known = (self.names[name] for name in KNOWN_MASKS if name in self.names)
        named = self.role("mask")
        return next(known, None) if named is None else named

    @cached_property
    def sentinels(self) -> tuple[int, ...]:
        """T5's sentinels, <extra_id_0> first; empty where there are none."""
        names = map(SENTINEL.format, itertools.count())
        return tuple(
            self.names[name] for name in itertools.takewhile(lambda name: name in self.names, names)
        )

    @cached_property
    def digest(self) -> str:
        """sha256 of the model file's bytes and of the special ids that were read from the rest."""
        special = json.dumps([self.file, self.bos, self.eos, self.pad, *self._beyond]).encode()
        return hashlib.sha256(hashlib.sha256(self._data).digest() + special).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write what makes `folder` whole for us and for transformers.

        The model file, byte for byte, tokenizer_config.json, special_tokens_map.json, the chat
        templates and, where more ids than eos end generation, generation_config.json: other keys
        of one that is there stay.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.file).write_bytes(self._data)
        files.write(folder, self.config, self.templates, self.ends)


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "text", f"character {error.start} is a lone surrogate; write valid Unicode"
        ) from None


def load(path: str | Path) -> Tokenizer:
    """The tokenizer in a folder, in a tokenizer.json or in a SentencePiece .model.

    A folder holds one of FORMS; the files beside it name special and added tokens, chat templates
    and, in generation_config.json or config.json, the ids that end generation. Special tokens for
    images and the like that the model there has no rows for are left out. What is not a
    tokenizer.json becomes one in memory; a SentencePiece model that no Hugging Face file speaks of
    is used as it is. Raises DataError naming what is missing.
    """
    path = Path(path).expanduser()
    model = _model_file(path)
    folder = model.parent
    try:
        made = _read(model, files.read_config(folder))
        if (rows := files.rows(folder)) is not None and rows < made.vocab:
            made = made.cut(rows)
        made.ends = (made.eos, *files.other_ends(folder, made.eos))
        made.templates = files.read_templates(folder, made.config)
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror}") from error
    return made


def _read(model: Path, config: dict[str, Any]) -> Tokenizer:
    from jaxlm.text import legacy
    from jaxlm.text.huggingface import HuggingFace
    from jaxlm.text.sentencepiece import SentencePiece

    kind = legacy.kind(model, config)
    if kind is not None:
        data, config = legacy.convert(model, config, kind)
        return HuggingFace(data, config, str(model))
    data = model.read_bytes()
    if model.suffix == ".json":
        return HuggingFace(data, legacy.filled(model, config, data), str(model))
    return SentencePiece(data, config, str(model))


def _model_file(path: Path) -> Path:
    if path.is_dir():
        return _find(path)
    if not path.is_file():
        raise DataError(
            str(path), "no such file; name a tokenizer.json, a .model or a folder with one"
        )
    if path.suffix not in (".json", ".model"):
        raise DataError(
            str(path), "not a tokenizer; name a tokenizer.json or a SentencePiece .model"
        )
    return path


def _find(folder: Path) -> Path:
    own = files.read_json(folder / files.CONFIG).get(OWN_MODEL)
    for model, *others in sorted(FORMS, key=lambda form: form[0] != own):
        if all((folder / name).is_file() for name in (model, *others)):
            return folder / model
    if (folder / "tekken.json").is_file():
        raise DataError(
            str(folder), "tekken.json alone is not read; put the model's tokenizer.json beside it"
        )
    *most, last = (" with ".join(form) for form in FORMS)
    raise DataError(str(folder), f"no {', '.join(most)} or {last} in this folder")
