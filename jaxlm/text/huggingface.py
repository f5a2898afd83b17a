"""tokenizer.json: byte-level BPE, WordPiece and Unigram through the `tokenizers` library."""

import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers

from jaxlm.core.errors import DataError
from jaxlm.text import files
from jaxlm.text.files import named
from jaxlm.text.tokenizer import KNOWN_ENDS, Tokenizer

HIDDEN = "\0hidden\0"
RARE = "\U00013000"
"""A character that vocabularies do not have: the first hieroglyph."""
ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"))
"""Keys of the special tokens that every model knows."""


class HuggingFace(Tokenizer):
    """A tokenizer.json. `where` names it in errors."""

    file = "tokenizer.json"

    def __init__(self, data: bytes, config: dict[str, Any], where: str = file):
        super().__init__(data, config)
        self._where = where
        ids = self._parsing.get_vocab(with_added_tokens=True)
        if not ids:
            raise DataError(where, "its vocabulary is empty; download it again")
        if len({*ids.values()}) < len(ids):
            raise DataError(where, "tokens share an id in its vocabulary; download it again")
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
    def _parsing(self) -> tokenizers.Tokenizer:
        """Special tokens inside a text become their ids."""
        backend = self._made(self._data)
        backend.no_truncation()  # some files switch it on, and documents would lose their ends
        backend.no_padding()
        self._beyond = add_listed(backend, files.listed(self.config), self._where)
        flag_special(backend, files.specials(self.config))
        return backend

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """Special tokens inside a text stay text. The switch alone is not thread-safe."""
        state = json.loads(self._parsing.to_str())
        if state["model"].get("type") == "Unigram":
            _hide_special(state)
        backend = self._made(json.dumps(state).encode())
        backend.encode_special_tokens = True
        return backend

    def _made(self, data: bytes) -> tokenizers.Tokenizer:
        try:
            return tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the library has no kinds of its own
            raise DataError(self._where, f"not a tokenizer.json: {error}") from error

    @cached_property
    def names(self) -> dict[str, int]:
        """As every tokenizer's."""
        added = self._parsing.get_added_tokens_decoder().items()
        return {token.content: index for index, token in added if token.special}

    def cut(self, vocab: int) -> "HuggingFace":
        """As every tokenizer's."""
        keyed = {name for key, name in self.special.items() if key not in ROLES}
        beyond = {name for name, index in self.names.items() if index >= vocab} & keyed
        beyond -= {named(self.config, role) for role in ROLES}
        ids = self._parsing.get_vocab(with_added_tokens=True)
        if {name for name, index in ids.items() if index >= vocab} != beyond or not beyond:
            return self
        state = json.loads(self._data)
        kept = [token for token in state["added_tokens"] if token["content"] not in beyond]
        data = json.dumps({**state, "added_tokens": kept}, ensure_ascii=False).encode()
        return HuggingFace(data, files.without(self.config, beyond), self._where)

    def _first(self) -> int | None:
        """The id that the file's own post-processor puts before a text."""
        try:
            self._parsing.encode(RARE)
        except Exception as error:
            wrong = f"cannot encode what it does not know: {error}; download it again"
            raise DataError(self._where, wrong) from error
        bare = self._parsing.encode("a", add_special_tokens=False).ids
        full = self._parsing.encode("a", add_special_tokens=True).ids
        return full[0] if bare and full[: len(bare)] != bare else None

    def _ids(self, text: str, parse_special: bool, add_special: bool) -> list[int]:
        backend = self._parsing if parse_special else self._plain
        return backend.encode(text, add_special_tokens=add_special).ids

    def _batch(self, texts: list[str], parse_special: bool) -> list[list[int]]:
        backend = self._parsing if parse_special else self._plain
        found = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def _text(self, ids: list[int], skip_special: bool) -> str:
        return self._parsing.decode(ids, skip_special_tokens=skip_special)

    def token_bytes(self) -> np.ndarray:
        """As every tokenizer's; a WordPiece that begins a word counts the space before it."""
        decoder = json.dumps(json.loads(self._parsing.to_str())["decoder"])
        if '"ByteLevel"' in decoder:
            size = len  # each character of a piece stands for one byte
        elif '"WordPiece"' in decoder:
            size = _wordpiece_bytes
        else:
            size = piece_bytes
        added = self._parsing.get_added_tokens_decoder()
        sizes = np.zeros(self.vocab, np.int32)
        for piece, index in self._parsing.get_vocab(with_added_tokens=True).items():
            if index not in added:
                sizes[index] = size(piece)
            elif not added[index].special:
                sizes[index] = len(piece.encode())
        return sizes


def add_listed(
    backend: tokenizers.Tokenizer, tokens: dict[int, tokenizers.AddedToken], where: str
) -> tuple[str, ...]:
    """Add tokens by id, and return those that were not in the vocabulary.

    Raises DataError where an id would be another.
    """
    known, beyond = backend.get_added_tokens_decoder(), []
    for index, token in tokens.items():
        if backend.token_to_id(token.content) is None:
            beyond.append(token.content)
        if repr(known.get(index)) != repr(token):
            backend.add_tokens([token])
        if (found := backend.token_to_id(token.content)) != index:
            raise DataError(
                where, f"its vocabulary has {token.content!r} at {found}, tokens added at {index}"
            )
    return tuple(beyond)


def flag_special(backend: tokenizers.Tokenizer, names: Iterable[str]) -> None:
    """Have the named tokens that are in the vocabulary found in a text, or kept from it."""
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for name in names:
        token = known.get(name) or tokenizers.AddedToken(name, normalized=False)
        if backend.token_to_id(name) is not None and not token.special:
            token.special = True
            backend.add_special_tokens([token])


def _hide_special(state: dict[str, Any]) -> None:
    """Keep special pieces of a unigram vocabulary from being found in a text as other pieces are.

    state: a tokenizer.json, changed in place. Their ids stay, under names that no text has.
    """
    vocab = state["model"]["vocab"]
    special = {token["content"] for token in state["added_tokens"] if token["special"]}
    inside = special & {piece for piece, _ in vocab}
    state["model"]["vocab"] = [
        [HIDDEN + piece if piece in inside else piece, score] for piece, score in vocab
    ]
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in inside]


def piece_bytes(piece: str) -> int:
    """Bytes of a SentencePiece-like piece, where U+2581 is a space and <0x0A> one byte."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return 1
    return len(piece.replace("\u2581", " ").encode())


def _wordpiece_bytes(piece: str) -> int:
    return len(piece[2:].encode()) if piece.startswith("##") else 1 + len(piece.encode())
