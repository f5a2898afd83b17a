"""tokenizer.json: byte-level BPE, WordPiece and Unigram through the `tokenizers` library."""

import json
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers

from jaxlm.core.errors import DataError
from jaxlm.text.tokenizer import KNOWN_ENDS, Tokenizer, named


class HuggingFace(Tokenizer):
    """A tokenizer.json. `where` names it in errors."""

    file = "tokenizer.json"

    def __init__(self, data: bytes, config: dict[str, Any], where: str = file):
        super().__init__(data, config)
        self._where = where
        ids = self._plain.get_vocab(with_added_tokens=True)
        self.vocab = max(ids.values()) + 1
        end = named(config, "eos_token") or next((name for name in KNOWN_ENDS if name in ids), None)
        if end not in ids:
            wrong = (
                f"eos_token {end!r} is not in the vocabulary" if end else "no end token is named"
            )
            raise DataError(where, f"{wrong}; set eos_token in tokenizer_config.json beside it")
        self.eos = ids[end]
        self.pad = ids.get(named(config, "pad_token") or end, self.eos)
        self.bos = self._first()

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """Special tokens inside a text stay text."""
        backend = self._build()
        names = {named(self._config, key) for key in ("bos_token", "eos_token", "pad_token")}
        for token in backend.get_added_tokens_decoder().values():
            if token.content in names and not token.special:
                # only tokens flagged special can be kept from matching
                special = tokenizers.AddedToken(token.content, normalized=False, special=True)
                backend.add_special_tokens([special])
        backend.encode_special_tokens = True
        return backend

    @cached_property
    def _parsing(self) -> tokenizers.Tokenizer:
        """Special tokens inside a text become their ids. The switch alone is not thread-safe."""
        return self._build()

    def _build(self) -> tokenizers.Tokenizer:
        try:
            backend = tokenizers.Tokenizer.from_buffer(self._data)
        except ValueError as error:
            raise DataError(self._where, f"not a tokenizer.json: {error}") from error
        backend.no_truncation()  # some files switch it on, and documents would lose their ends
        backend.no_padding()
        return backend

    def _first(self) -> int | None:
        """The id that the file's own post-processor puts before a text."""
        bare = self._plain.encode("a", add_special_tokens=False).ids
        full = self._plain.encode("a", add_special_tokens=True).ids
        return full[0] if bare and full[: len(bare)] != bare else None

    def _ids(self, text: str, parse_special: bool, add_special: bool) -> list[int]:
        backend = self._parsing if parse_special else self._plain
        return backend.encode(text, add_special_tokens=add_special).ids

    def _batch(self, texts: list[str], parse_special: bool) -> list[list[int]]:
        backend = self._parsing if parse_special else self._plain
        found = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def _text(self, ids: list[int], skip_special: bool) -> str:
        return self._plain.decode(ids, skip_special_tokens=skip_special)

    def token_bytes(self) -> np.ndarray:
        """As every tokenizer's; a WordPiece that begins a word counts the space before it."""
        decoder = json.dumps(json.loads(self._plain.to_str())["decoder"])
        if '"ByteLevel"' in decoder:
            size = len  # each character of a piece stands for one byte
        elif '"WordPiece"' in decoder:
            size = _wordpiece_bytes
        else:
            size = piece_bytes
        added = self._plain.get_added_tokens_decoder()
        sizes = np.zeros(self.vocab, np.int32)
        for piece, index in self._plain.get_vocab(with_added_tokens=True).items():
            if index not in added:
                sizes[index] = size(piece)
            elif not added[index].special:
                sizes[index] = len(piece.encode())
        return sizes


def piece_bytes(piece: str) -> int:
    """Bytes of a SentencePiece-like piece, where U+2581 is a space and <0x0A> one byte."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return 1
    return len(piece.replace("\u2581", " ").encode())


def _wordpiece_bytes(piece: str) -> int:
    return len(piece[2:].encode()) if piece.startswith("##") else 1 + len(piece.encode())
