"""Training a tokenizer from documents. The same documents give the same bytes."""

import hashlib
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxlm.core.errors import DataError
from jaxlm.text.huggingface import HuggingFace
from jaxlm.text.sentencepiece import SentencePiece
from jaxlm.text.tokenizer import END, Tokenizer

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
THREADS = 4  # not the number of cores: the sums of its threads depend on how many there are


def train(type: str, vocab: int, texts: Iterable[str]) -> Tokenizer:
    """Train `type` ("bpe" or "sentencepiece") with at most `vocab` ids, one of them the end token.

    A small corpus gives fewer ids. A large one is sampled by a hash of its documents. Raises
    DataError when there is no text, or when `vocab` is too small for it.
    """
    learn, most = TRAINERS[type]
    documents = sample(texts, most)
    if not any(documents):
        raise DataError("data.train", "holds no text to train a tokenizer on; name other files")
    return learn(vocab, documents)


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


def _bpe(vocab: int, texts: list[str]) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019): every text is a sequence of its ids."""
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
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer, length=len(texts))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    return HuggingFace(backend.to_str().encode(), config)


def _sentencepiece(vocab: int, texts: list[str]) -> Tokenizer:
    """Unigram (Kudo 2018) with byte fallback and no normalization, so that text comes back."""
    model = io.BytesIO()
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
            unk_id=0,
            eos_id=1,
            eos_piece=END,
            bos_id=-1,
            pad_id=-1,
            num_threads=THREADS,
            max_sentence_length=4 * LINE,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rsplit("] ", 1)[-1].split(" with --")[0].rstrip(". ")
        if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            reason = f"is too small for the characters of this text; use {least[1]} or more"
        raise DataError("tokenizer.vocab", f"{vocab} {reason or error}") from error
    config = {"eos_token": END, "pad_token": END, "add_bos_token": False, "add_eos_token": False}
    return SentencePiece(model.getvalue(), config)


def _lines(texts: list[str]) -> Iterator[str]:
    for line in itertools.chain.from_iterable(text.split("\n") for text in texts):
        for start in range(0, len(line), LINE):
            piece = line[start : start + LINE].replace("\0", "")  # its trainer drops such lines
            if piece:
                yield piece


TRAINERS: dict[str, tuple[Callable[[int, list[str]], Tokenizer], int]] = {
    "bpe": (_bpe, BPE_SAMPLE),
    "sentencepiece": (_sentencepiece, SENTENCEPIECE_SAMPLE),
}
