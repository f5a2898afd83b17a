"""SentencePiece models as `tokenizers` makes them, by the class of transformers that reads them."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from jaxlm.core.errors import DataError
from jaxlm.text.files import added

Config = dict[str, Any]
UNIGRAM, BPE = 1, 2
"""Values of trainer_spec.model_type."""
NORMAL, CONTROL, USER, BYTE = 1, 3, 4, 6
"""Types of a piece."""
SPACE = "\u2581"
MOST_SENTINELS = 10_000
TURNS = ("<start_of_turn>", "<end_of_turn>")
"""Gemma's pieces that are special, though its model does not say so."""
NEVER = -1e3
"""A score that keeps byte pieces from being read in a text, as <0x0A>."""
SINGLE, SEVERAL = 1, 3
FLOAT, INT, BOOL, STRING, MESSAGE, BYTES = 2, 5, 8, 9, 11, 12
"""Labels and types of fields, as protocol buffers number them."""
SCHEMA = {
    "ModelProto": (
        ("pieces", 1, SEVERAL, MESSAGE, "Piece"),
        ("trainer_spec", 2, SINGLE, MESSAGE, "TrainerSpec"),
        ("normalizer_spec", 3, SINGLE, MESSAGE, "NormalizerSpec"),
    ),
    "Piece": (
        ("piece", 1, SINGLE, STRING, ""),
        ("score", 2, SINGLE, FLOAT, ""),
        ("type", 3, SINGLE, INT, "1"),
    ),
    "TrainerSpec": (
        ("model_type", 3, SINGLE, INT, "1"),
        ("byte_fallback", 35, SINGLE, BOOL, "false"),
        ("unk_id", 40, SINGLE, INT, "0"),
        ("bos_id", 41, SINGLE, INT, "1"),
        ("eos_id", 42, SINGLE, INT, "2"),
        ("pad_id", 43, SINGLE, INT, "-1"),
    ),
    "NormalizerSpec": (
        ("precompiled_charsmap", 2, SINGLE, BYTES, ""),
        ("add_dummy_prefix", 3, SINGLE, BOOL, "true"),
        ("remove_extra_whitespaces", 4, SINGLE, BOOL, "true"),
        ("escape_whitespaces", 5, SINGLE, BOOL, "true"),
    ),
    "SentencePieceText": (("pieces", 2, SEVERAL, MESSAGE, "Found"),),
    "Found": (
        ("id", 2, SINGLE, INT, ""),
        ("begin", 4, SINGLE, INT, ""),
        ("end", 5, SINGLE, INT, ""),
    ),
}
"""What is read of a model and of an encoded text, by sentencepiece_model.proto and
sentencepiece.proto: message -> (field, number, label, type, default or message). The modules in the
sentencepiece package ask for the newest protobuf there is."""


def read(path: Path) -> Any:
    """The model's protocol buffer. Raises DataError for a file that is none, or of another kind."""
    model = _message("ModelProto")()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise DataError(str(path), f"not a SentencePiece model: {error}") from error
    if not all(isinstance(piece.piece, str) for piece in model.pieces):
        raise DataError(str(path), "not a SentencePiece model: a piece is not UTF-8")
    if model.trainer_spec.model_type not in (UNIGRAM, BPE) or not model.pieces:
        raise DataError(str(path), "not a SentencePiece model of type unigram or bpe")
    return model


def spans(text: str, encoded: bytes) -> tuple[list[int], list[tuple[int, int]]]:
    """(ids, the characters [start, end) of each), of what the library gives as a serialized proto.

    Its places are bytes, and of the pieces that are parts of one character the last has them all.
    """
    found = _message("SentencePieceText").FromString(encoded).pieces
    place = [at for at, letter in enumerate(text) for _ in letter.encode()] + [len(text)]
    located = [(place[piece.begin], place[piece.end]) for piece in found]
    for at in reversed(range(len(located) - 1)):
        start, end = located[at]
        if start == end == located[at + 1][0]:
            located[at] = located[at + 1]
    return [piece.id for piece in found], located


@cache
def _message(wanted: str) -> Any:
    file = FileDescriptorProto(name="sentencepiece_model.proto", package="sentencepiece")
    for message, fields in SCHEMA.items():
        made = file.message_type.add(name=message)
        for name, number, label, kind, more in fields:
            field = made.field.add(name=name, number=number, label=label, type=kind)
            if kind == MESSAGE:
                field.type_name = f".sentencepiece.{more}"
            elif more:
                field.default_value = more
    pool = DescriptorPool()  # one of our own: other libraries register the whole file
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"sentencepiece.{wanted}"))


def tokens(model: Any) -> dict[str, str]:
    """The special tokens that the model itself has, by their keys in tokenizer_config.json."""
    spec, found = model.trainer_spec, {}
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(spec, f"{name}_id")
        if 0 <= index < len(model.pieces):
            found[f"{name}_token"] = model.pieces[index].piece
    return found


def llama(path: Path, config: Config) -> Tokenizer:
    """LlamaTokenizer: a space before the text, or before each part between special tokens (legacy).

    A unigram model, which that class cannot read, is taken by its own settings.
    """
    model = read(path)
    if model.trainer_spec.model_type == UNIGRAM:
        return plain(path, config)
    prefix = config.get("add_prefix_space") is not False
    scheme = ("always" if config.get("legacy") else "first") if prefix else "never"
    backend = Tokenizer(_bpe(model, _scores(model, (NORMAL,))))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    backend.decoder = _decoder(prefix)
    return _with_pieces(backend, model)


def gemma(path: Path, config: Config) -> Tokenizer:
    """GemmaTokenizer: no space before the text; runs of spaces are pieces that users defined."""
    model = read(path)
    scores = _scores(model, (NORMAL, USER))
    backend = Tokenizer(_bpe(model, scores, longest_first=True))
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = _decoder(prefix=False)
    return _with_pieces(backend, model, TURNS)


def t5(path: Path, config: Config) -> Tokenizer:
    """T5Tokenizer: sentinels come last, <extra_id_0> at the highest id (Raffel et al. 2020)."""
    model = read(path)
    count = config.get("extra_ids", 100)
    if type(count) is not int or not 0 <= count <= MOST_SENTINELS:
        raise DataError(str(path), f"extra_ids {count!r}: 0 to {MOST_SENTINELS} are meant")
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(count))]
    vocab = [(piece.piece, piece.score) for piece in model.pieces]
    have = {name for name, _ in vocab}
    vocab += [(name, 0.0) for name in sentinels if name not in have]
    backend = Tokenizer(models.Unigram(vocab, model.trainer_spec.unk_id, byte_fallback=False))
    if charsmap := model.normalizer_spec.precompiled_charsmap:
        backend.normalizer = normalizers.Precompiled(charsmap)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(SPACE, "always")]
    )
    backend.decoder = decoders.Metaspace(SPACE, "always")
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in sentinels])
    return _with_pieces(backend, model)


def plain(path: Path, config: Config) -> Tokenizer:
    """Any model by its own settings of normalization and prefix, so that it encodes as itself.

    Pieces that added_tokens_decoder gives other names to have those.
    """
    model = read(path)
    spec, prefix = model.normalizer_spec, model.normalizer_spec.add_dummy_prefix
    legacy = bool(config.get("legacy", True))
    _rename(model, {i: token.content for i, token in added(path.parent, config).items()})
    user = [piece.piece for piece in model.pieces if piece.type == USER]
    if model.trainer_spec.model_type == BPE:
        made = _bpe(model, _scores(model, (NORMAL,)), ignore_merges=bool(user))
    else:
        made = _unigram(model)
    backend = Tokenizer(made)
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE))
    if prefix and legacy:  # Metaspace puts none before a text that begins with one
        steps.append(normalizers.Replace(Regex(rf"\A{SPACE}"), SPACE * 2))
    backend.normalizer = normalizers.Sequence(steps)
    parts: list[Any] = []
    if prefix:
        scheme = "always" if legacy else "first"
        parts.append(pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False))
    if user:
        longest = "|".join(re.escape(name) for name in sorted(user, key=len, reverse=True))
        parts.append(pre_tokenizers.Split(Regex(longest), "isolated"))
    if parts:
        backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    backend.decoder = _decoder(prefix)
    return _with_pieces(backend, model, types=(CONTROL,))


def _scores(model: Any, types: tuple[int, ...]) -> dict[str, float]:
    return {piece.piece: piece.score for piece in model.pieces if piece.type in types}


def _bpe(
    model: Any,
    scores: dict[str, float],
    *,
    longest_first: bool = False,
    ignore_merges: bool = False,
) -> models.BPE:
    """The pairs that make a piece, best piece first; of one piece, those with the shortest left."""
    order = {name: rank for rank, name in enumerate(scores)}
    sign = -1 if longest_first else 1
    pairs = [
        (-score, sign * order[name], sign * at, name[:at], name[at:])
        for name, score in scores.items()
        for at in range(1, len(name))
        if name[:at] in scores and name[at:] in scores
    ]
    return models.BPE(
        vocab={piece.piece: index for index, piece in enumerate(model.pieces)},
        merges=[(left, right) for *_, left, right in sorted(pairs)],
        unk_token=model.pieces[model.trainer_spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
        ignore_merges=ignore_merges,
    )


def _unigram(model: Any) -> models.Unigram:
    vocab = [(piece.piece, NEVER if piece.type == BYTE else piece.score) for piece in model.pieces]
    spec = model.trainer_spec
    return models.Unigram(vocab, spec.unk_id, byte_fallback=spec.byte_fallback)


def _rename(model: Any, names: dict[int, str]) -> None:
    kept = {piece.piece for index, piece in enumerate(model.pieces) if index not in names}
    for index, name in names.items():
        if index < len(model.pieces) and name not in kept:
            model.pieces[index].piece = name


def _decoder(prefix: bool) -> Any:
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefix else []))


def _with_pieces(
    backend: Tokenizer,
    model: Any,
    special: Iterable[str] = (),
    types: tuple[int, ...] = (CONTROL, USER),
) -> Tokenizer:
    """Control pieces, which no text becomes, and those that users defined, which are never cut."""
    for piece in model.pieces:
        if piece.type in types:
            hidden = piece.type == CONTROL or piece.piece in special
            backend.add_tokens([AddedToken(piece.piece, normalized=False, special=hidden)])
    return backend
