"""Training a tokenizer from documents. The same documents give the same bytes."""

import hashlib
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxlm.core.errors import DataError
from jaxlm.text import frames
from jaxlm.text.huggingface import HuggingFace
from jaxlm.text.sentencepiece import SentencePiece
from jaxlm.text.tokenizer import END, SENTINEL, Tokenizer

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Words, numbers of up to three digits, punctuation, white space: the split of Llama 3."""
BPE_SAMPLE = 2**28
"""Most characters that byte-level BPE is trained on."""
SENTENCEPIECE_SAMPLE = 2**25
"""Most characters that SentencePiece is trained on; it needs seconds and 100 MB per million."""
LINE = 1000
"""Longest sentence given to SentencePiece, in characters."""
SENTINELS = tuple(SENTINEL.format(number) for number in range(100))
"""As many as T5 has (Raffel et al. 2020)."""
BYTES = 256  # each is an id of byte-level BPE
THREADS = 4  # not the number of cores: the sums of its threads depend on how many there are


class Form(NamedTuple):
    """What a tokenizer has besides text.

    special: tokens by their role. more: others. Of byte-level BPE they are the first ids, in this
    order. pieces: the roles that a SentencePiece model knows, with their ids; the others follow.
    frame: one of frames.OWN, or None for nothing around a text.
    """

    special: Mapping[str, str]
    pieces: Mapping[str, int]
    more: tuple[str, ...] = ()
    frame: str | None = None

    @property
    def tokens(self) -> list[str]:
        """All special tokens, once each."""
        return list(dict.fromkeys((*self.special.values(), *self.more)))

    @property
    def config(self) -> dict[str, Any]:
        """The keys of tokenizer_config.json that say so."""
        found: dict[str, Any] = {f"{role}_token": name for role, name in self.special.items()}
        if self.more:
            found["additional_special_tokens"] = list(self.more)
        if self.frame:  # of which neither has token types
            found["model_input_names"] = ["input_ids", "attention_mask"]
        return found


SPECIAL = {"pad": "<pad>", "eos": "</s>", "mask": "<mask>"}
FORMS = {
    "decoder": Form({"eos": END, "pad": END}, {"unk": 0, "eos": 1}),
    "encoder": Form(
        {"bos": "<s>", **SPECIAL, "cls": "<s>", "sep": "</s>"},
        {"bos": 0, "pad": 1, "eos": 2, "unk": 3},
        frame="roberta",
    ),
    "encoder-decoder": Form(SPECIAL, {"pad": 0, "eos": 1, "unk": 2}, more=SENTINELS, frame="t5"),
}
"""By the structure of the model: RoBERTa's (Liu et al. 2019) and T5's (Raffel et al. 2020)."""


def train(type: str, vocab: int, texts: Iterable[str], structure: str = "decoder") -> Tokenizer:
    """Train `type` ("bpe" or "sentencepiece") with at most `vocab` ids, special tokens included.

    structure: what model it is for, which of FORMS. A small corpus gives fewer ids. A large one is
    sampled by a hash of its documents. Raises DataError when there is no text, or when `vocab` is
    too small for it.
    """
    learn, most = TRAINERS[type]
    documents = sample(texts, most)
    if not any(documents):
        raise DataError("data.train", "holds no text to train a tokenizer on; name other files")
    return learn(vocab, documents, FORMS[structure])


def sample(texts: Iterable[str], most: int) -> list[str]:
    """Documents of at most about `most` characters, chosen by their hash in one pass.

    Whenever more is held, half of the hashes are let go. One document is always kept.
    """
    kept: list[tuple[bytes, str]] = []
    held, keep = 0, 2**64
    for text in texts:
        digest = hashlib.sha256(text.encode()).digest()[:8]
        if int.from_bytes(digest) < keep:
            kept.append((digest, text))
            held += len(text)
        while held > most and len(kept) > 1:
            keep //= 2
            kept = [each for each in kept if int.from_bytes(each[0]) < keep] or [min(kept)]
            held = sum(len(text) for _, text in kept)
    return [text for _, text in kept]


def _bpe(vocab: int, texts: list[str], form: Form) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019): every text is a sequence of its ids."""
    if vocab < (least := len(form.tokens) + BYTES):
        what = f"{vocab} is too small for the bytes and the special tokens; use {least} or more"
        raise DataError("tokenizer.vocab", what)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[_added(name, form) for name in form.tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer, length=len(texts))
    if form.frame:
        ids = {name: index for index, name in enumerate(form.tokens)}
        first, last = form.special.get("bos"), form.special.get("eos")
        backend.post_processor = frames.processor(first, last, ids, frames.OWN[form.frame])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **form.config}
    return HuggingFace(backend.to_str().encode(), config)


def _added(name: str, form: Form) -> str | tokenizers.AddedToken:
    """A special token; what is masked takes the space before it, as the word had one."""
    masks = name == form.special.get("mask")
    return tokenizers.AddedToken(name, lstrip=True, special=True) if masks else name


def _sentencepiece(vocab: int, texts: list[str], form: Form) -> Tokenizer:
    """Unigram (Kudo 2018) with byte fallback and no normalization, so that text comes back."""
    model, roles = io.BytesIO(), ("unk", "bos", "eos", "pad")
    known = {role: name for role, name in form.special.items() if role in form.pieces}
    more = [name for name in form.tokens if name not in known.values()]
    how: dict[str, Any] = {f"{role}_id": form.pieces.get(role, -1) for role in roles}
    how |= {f"{role}_piece": name for role, name in known.items()}
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            num_threads=THREADS,
            max_sentence_length=4 * LINE,
            minloglevel=2,
            control_symbols=more,
            **how,
        )
    except RuntimeError as error:
        reason = str(error).rsplit("] ", 1)[-1].split(" with --")[0].rstrip(". ")
        if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            reason = f"is too small for the characters of this text; use {least[1]} or more"
        raise DataError("tokenizer.vocab", f"{vocab} {reason or error}") from error
    if form.frame:
        config = {**form.config, frames.OWN_FRAME: form.frame}
    else:
        config = {**form.config, "add_bos_token": False, "add_eos_token": False}
    return SentencePiece(model.getvalue(), config)


def _lines(texts: list[str]) -> Iterator[str]:
    for line in itertools.chain.from_iterable(text.split("\n") for text in texts):
        for start in range(0, len(line), LINE):
            piece = line[start : start + LINE].replace("\0", "")  # its trainer drops such lines
            if piece:
                yield piece


TRAINERS: dict[str, tuple[Callable[[int, list[str], Form], Tokenizer], int]] = {
    "bpe": (_bpe, BPE_SAMPLE),
    "sentencepiece": (_sentencepiece, SENTENCEPIECE_SAMPLE),
}
