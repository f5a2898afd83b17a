"""SentencePiece .model files (Kudo & Richardson 2018)."""

import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from jaxlm.core.errors import DataError
from jaxlm.text import files, frames, legacy, pieces
from jaxlm.text.files import named
from jaxlm.text.frames import Frame, PairFrame
from jaxlm.text.huggingface import piece_bytes, piece_text
from jaxlm.text.tokenizer import OWN_MODEL, Tokenizer
from jaxlm.text.words import PART


class SentencePiece(Tokenizer):
    """A SentencePiece model. `where` names it in errors.

    U+2581, which SentencePiece writes for a space, decodes as a space.
    """

    file = "tokenizer.model"

    def __init__(self, data: bytes, config: dict[str, Any], where: str = file):
        super().__init__(data, config)
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.load_from_serialized_proto(data)
        except RuntimeError as error:
            raise DataError(where, f"not a SentencePiece model: {error}") from error
        self.vocab = self._model.vocab_size()
        eos = self._id(named(config, "eos_token"), self._model.eos_id())
        if eos is None:
            raise DataError(
                where, "it has no end token; set eos_token in tokenizer_config.json beside it"
            )
        self.eos = eos
        pad = self._id(named(config, "pad_token"), self._model.pad_id())
        self.pad = eos if pad is None else pad
        bos = self._id(named(config, "bos_token"), self._model.bos_id())
        self.bos = bos if config.get("add_bos_token", True) else None
        own = frames.own(config, where)
        t5 = str(config.get("tokenizer_class", "")).startswith("T5")
        self._ends = own is not None or bool(config.get("add_eos_token", t5))
        self._pair = own or frames.each

    def _id(self, name: str | None, otherwise: int) -> int | None:
        """The id of a named piece; where the model has no such piece, its own, if it has one."""
        found = self._model.piece_to_id(name) if name else self._model.unk_id()
        if found != self._model.unk_id():
            return found
        return otherwise if otherwise >= 0 else None

    @cached_property
    def names(self) -> dict[str, int]:
        """As every tokenizer's: the model's control pieces."""
        ids = [i for i in range(self.vocab) if self._model.is_control(i)]
        return {self._model.id_to_piece(i): i for i in {*ids, self.eos, self.pad}}

    @cached_property
    def _boundary(self) -> re.Pattern[str]:
        longest = sorted(self.names, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest)) + ")")

    def _parsed(self, text: str) -> list[int]:
        """Text between special tokens is encoded as a text of its own."""
        ids: list[int] = []
        for part in self._boundary.split(text):
            special = self.names.get(part)
            ids += self._model.encode(part) if special is None else [special]
        return ids

    def _ids(self, text: str, parse_special: bool, add_special: bool) -> list[int]:
        ids = self._parsed(text) if parse_special else self._model.encode(text)
        return self.framed(ids) if add_special else ids

    def _located(self, text: str, parse_special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        ids, spans, at = [], [], 0
        for part in self._boundary.split(text) if parse_special else [text]:
            special = self.names.get(part) if parse_special else None
            found = [special], [(0, len(part))]
            if special is None:
                found = pieces.spans(part, self._model.encode(part, out_type="serialized_proto"))
            ids += found[0]
            spans += [(start + at, end + at) for start, end in found[1]]
            at += len(part)
        return ids, spans

    def _batch(self, texts: list[str], parse_special: bool) -> list[list[int]]:
        if parse_special:
            return [self._parsed(text) for text in texts]
        return self._model.encode(texts, num_threads=os.cpu_count() or 1)

    def _text(self, ids: list[int], skip_special: bool) -> str:
        if skip_special:
            special = set(self.names.values())
            return self._model.decode([i for i in ids if i not in special])
        names = {index: name for name, index in self.names.items()}
        text, run = "", []
        for index in ids:
            if index in names:
                text, run = text + self._model.decode(run) + names[index], []
            else:
                run.append(index)
        return text + self._model.decode(run)

    def save(self, folder: str | Path) -> None:
        """As every tokenizer's, and a tokenizer.json for who cannot read the model by itself.

        The configuration says that the model is the one to prefer here.
        """
        super().save(folder)
        folder = Path(folder)
        try:
            data, config = legacy.convert(folder / self.file, self.config, legacy.PLAIN)
        except DataError:  # models of words and of characters have no such form
            return
        (folder / "tokenizer.json").write_bytes(data)
        files.write(folder, config | {OWN_MODEL: self.file}, self.templates, self.ends)

    @cached_property
    def frame(self) -> Frame:
        """As every tokenizer's: by the configuration, for a model says nothing of it."""
        before = () if self.bos is None else (self.bos,)
        return Frame(before, (self.eos,) if self._ends else ())

    @cached_property
    def pair_frame(self) -> PairFrame:
        """As every tokenizer's."""
        return self._pair(self.frame)

    @property
    def unk(self) -> int | None:
        """As every tokenizer's."""
        return self._model.unk_id()

    def _pieces(self) -> list[str | None]:
        special = set(self.names.values())
        texts = [piece_text(self._model.id_to_piece(index)) for index in range(self.vocab)]
        texts[self._model.unk_id()] = PART
        return [None if index in special else text for index, text in enumerate(texts)]

    def _apart(self, before: str, after: str) -> bool:
        return False  # nothing but the model cuts a text

    def token_bytes(self) -> np.ndarray:
        """As every tokenizer's; a piece of byte fallback is one byte, an unknown piece none."""
        model, special = self._model, set(self.names.values())
        sizes = np.zeros(self.vocab, np.int32)
        for index in range(self.vocab):
            if index not in special and not model.is_unknown(index) and not model.is_unused(index):
                sizes[index] = piece_bytes(model.id_to_piece(index))
        return sizes
