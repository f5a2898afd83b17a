"""tokenizer.json: byte-level BPE, WordPiece and Unigram through the `tokenizers` library."""

import json
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, processors

from jaxlm.core.errors import DataError
from jaxlm.text import files, frames
from jaxlm.text.files import named
from jaxlm.text.frames import Frame, PairFrame
from jaxlm.text.tokenizer import KNOWN_ENDS, Tokenizer
from jaxlm.text.words import PART

HIDDEN = "\0hidden\0"
RARE = "\U00013000"
"""A character that vocabularies do not have: the first hieroglyph."""
BYTE_LEVEL = decoders.ByteLevel()
"""From the letters that stand for bytes in a byte-level vocabulary to their text."""
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
        self.bos = next(iter(self.frame.before), None)

    @cached_property
    def _parsing(self) -> tokenizers.Tokenizer:
        """Special tokens inside a text become their ids."""
        backend = self._made(self._data)
        backend.no_truncation()  # some files switch it on, and documents would lose their ends
        backend.no_padding()
        self._beyond = add_listed(backend, files.listed(self.config), self._where)
        flag_special(backend, files.specials(self.config))
        _keep_spaces(backend)
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

    @cached_property
    def frame(self) -> Frame:
        """As every tokenizer's: by the file's own post-processor."""
        try:
            self._parsing.encode(RARE)
        except Exception as error:
            wrong = f"cannot encode what it does not know: {error}; download it again"
            raise DataError(self._where, wrong) from error
        return frames.single(self._parsing.encode(self._known))

    @cached_property
    def pair_frame(self) -> PairFrame:
        """As every tokenizer's: by the file's own post-processor."""
        return frames.pair(self._parsing.encode(self._known, self._known), self._where)

    @cached_property
    def _known(self) -> str:
        """A text that has ids: a letter, or else what the vocabulary has."""
        texts = ("a", *self._parsing.get_vocab(with_added_tokens=False))
        known = (text for text in texts if self._parsing.encode(text, add_special_tokens=False).ids)
        return next(known, "a")

    @cached_property
    def unk(self) -> int | None:
        """As every tokenizer's."""
        own = getattr(self._parsing.model, "unk_token", None)
        name = named(self.config, "unk_token") or own
        return self._parsing.token_to_id(name) if name else None

    def _ids(self, text: str, parse_special: bool, add_special: bool) -> list[int]:
        backend = self._parsing if parse_special else self._plain
        return backend.encode(text, add_special_tokens=add_special).ids

    def _batch(self, texts: list[str], parse_special: bool) -> list[list[int]]:
        backend = self._parsing if parse_special else self._plain
        found = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def _located(self, text: str, parse_special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        backend = self._parsing if parse_special else self._plain
        found = backend.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def _text(self, ids: list[int], skip_special: bool) -> str:
        return self._parsing.decode(ids, skip_special_tokens=skip_special)

    def _pieces(self) -> list[str | None]:
        read = self._reader()
        added = self._parsing.get_added_tokens_decoder()
        found: list[str | None] = [None] * self.vocab
        for piece, index in self._parsing.get_vocab(with_added_tokens=True).items():
            if index not in added:
                found[index] = read(piece)
            elif not added[index].special:
                found[index] = piece
        return found

    def _reader(self) -> Callable[[str], str]:
        """From a piece of the vocabulary to the text that it stands for."""
        model = self._parsing.model
        if isinstance(model, models.WordPiece):
            inner = model.continuing_subword_prefix
            return lambda piece: piece[len(inner) :] if piece.startswith(inner) else f" {piece}"
        if '"ByteLevel"' in self._decoder():
            return lambda piece: BYTE_LEVEL.decode([piece])
        return piece_text

    def _apart(self, before: str, after: str) -> bool:
        cutter = self._parsing.pre_tokenizer
        if cutter is None or isinstance(self._parsing.model, models.WordPiece):
            return False
        parts = cutter.pre_tokenize_str(before + after)
        return not any(start < len(before) < end for _, (start, end) in parts)

    def _decoder(self) -> str:
        return json.dumps(json.loads(self._parsing.to_str())["decoder"])

    def token_bytes(self) -> np.ndarray:
        """As every tokenizer's; a WordPiece that begins a word counts the space before it."""
        decoder = self._decoder()
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


def _keep_spaces(backend: tokenizers.Tokenizer) -> None:
    """Have post-processors leave the space in the offsets of what is nothing else."""
    processor: Any = backend.post_processor
    several = isinstance(processor, processors.Sequence)
    for each in processor if several else [processor]:
        if hasattr(each, "trim_offsets"):
            each.trim_offsets = False


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


def piece_text(piece: str) -> str:
    """The text of a SentencePiece-like piece; words.PART for a byte that is no whole character."""
    if byte := re.fullmatch("<0x([0-9A-F]{2})>", piece):
        code = int(byte[1], 16)
        return chr(code) if code < 0x80 else PART
    return piece.replace("\u2581", " ")


def _wordpiece_bytes(piece: str) -> int:
    return len(piece[2:].encode()) if piece.startswith("##") else 1 + len(piece.encode())
