"""T5's span corruption and UL2's mixture of denoisers: texts to pairs of source and target.

Raffel et al. 2020, section 3.1.4, and t5.data.preprocessors; Tay et al. 2022, section 3.1, table 1.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.core.errors import ConfigError

Pair = tuple[np.ndarray, np.ndarray]
"""Source and target ids, int32 [n] and [m], each with its end token."""


class Denoiser(NamedTuple):
    """One of UL2's. mode: R(egular), X(treme) or S(equential), whose target is the text's end."""

    mode: str
    rate: float
    """Share of the text that is the target."""
    mean_span: float
    """Mean length of a span in tokens; of no use to S."""


DENOISERS = (
    Denoiser("R", 0.15, 3),
    Denoiser("R", 0.15, 8),
    Denoiser("S", 0.25, 0),
    Denoiser("X", 0.5, 3),
    Denoiser("X", 0.5, 8),
    Denoiser("X", 0.15, 64),
    Denoiser("X", 0.5, 64),
)
"""The seven of Tay et al. 2022, table 1."""


def span_corrupted(
    ids: np.ndarray,
    rng: np.random.Generator,
    *,
    rate: float,
    mean_span: float,
    sentinels: Sequence[int],
    eos: int,
) -> Pair:
    """A text of ids [n] with a sentinel for each noise span, and the spans after their sentinels.

    The text starts with what is kept and ends with noise. One of fewer than two tokens has no
    noise. Raises ConfigError where there are fewer sentinels than spans.
    """
    if ids.size < 2:
        return _ended(ids, eos), _ended(sentinels[:1], eos)
    noise, spans = noise_counts(ids.size, rate, mean_span)
    check_sentinels(sentinels, spans)
    lengths = np.empty(2 * spans, np.int64)
    lengths[::2] = _segmented(ids.size - noise, spans, rng)
    lengths[1::2] = _segmented(noise, spans, rng)
    noisy = np.repeat(np.arange(2 * spans) % 2, lengths).astype(bool)
    firsts = np.cumsum(lengths) - lengths
    marks = np.asarray(sentinels[:spans], np.int32)
    kept, dropped = np.flatnonzero(~noisy), np.flatnonzero(noisy)
    source = np.insert(ids[kept], np.cumsum(lengths[::2]), marks)
    target = np.insert(ids[dropped], np.searchsorted(dropped, firsts[1::2]), marks)
    return _ended(source, eos), _ended(target, eos)


def noise_counts(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """(noise tokens, noise spans) of a text of two or more tokens; one of each, and one kept
    before each span, at the least.
    """
    noise = min(max(round(length * rate), 1), length - 1)
    return noise, min(max(round(noise / mean_span), 1), noise, length - noise)


def raw_length(source_length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """(tokens of text, target length) such that the source has at most `source_length` tokens.

    As random_spans_helper of t5.data.preprocessors; both lengths count the end token. Raises
    ConfigError where not even two tokens of text have room.
    """
    source, target, tokens = *_lengths(2, rate, mean_span), 2
    if source > source_length:
        raise ConfigError("length", f"{source_length} has no room for a span; use {source} or more")
    while (longer := _lengths(tokens + 1, rate, mean_span))[0] <= source_length:
        (source, target), tokens = longer, tokens + 1
    if rate == 0.5 and target > source:  # as t5, which prefers equal lengths
        return tokens - 1, target - 1
    return tokens, target


def prefix_split(n: int, rng: np.random.Generator) -> int:
    """Length of the prefix of a text of n >= 2 tokens, uniform over 1..n-1 (Raffel et al. 2020,
    section 3.2.1).
    """
    return int(rng.integers(1, n))


def sequential_split(n: int, rng: np.random.Generator, rate: float = 0.25) -> int:
    """Length of the prefix of a text of n >= 2 tokens whose target is `rate` of it in the mean,
    its length uniform (S-denoising, Tay et al. 2022, section 3.1.2).
    """
    most = min(max(round(2 * rate * n) - 1, 1), n - 1)
    return n - int(rng.integers(1, most + 1))


def denoised(
    ids: np.ndarray,
    rng: np.random.Generator,
    *,
    sentinels: Sequence[int],
    eos: int,
    denoisers: Sequence[Denoiser] = DENOISERS,
    modes: Mapping[str, int] | None = None,
) -> Pair:
    """A text of ids [n] as one of the denoisers, each as likely, makes it.

    modes: the id that comes before the source, by mode. S puts one sentinel where the prefix ends,
    and before the rest. Raises ConfigError as `span_corrupted`.
    """
    denoiser = denoisers[int(rng.integers(len(denoisers)))]
    if denoiser.mode == "S" and ids.size > 1:
        check_sentinels(sentinels, 1)
        cut = sequential_split(ids.size, rng, denoiser.rate)
        source = _ended([*ids[:cut], sentinels[0]], eos)
        target = _ended([sentinels[0], *ids[cut:]], eos)
    else:
        rate, mean = denoiser.rate, max(denoiser.mean_span, 1)
        source, target = span_corrupted(
            ids, rng, rate=rate, mean_span=mean, sentinels=sentinels, eos=eos
        )
    if modes is None:
        return source, target
    return np.append(np.int32(modes[denoiser.mode]), source), target


def check_sentinels(sentinels: Sequence[int], spans: int) -> None:
    """Raise ConfigError where there are fewer sentinels than spans."""
    if len(sentinels) < spans:
        what = f"has {len(sentinels)} sentinels (<extra_id_0>, ...) where a text needs {spans}"
        raise ConfigError("tokenizer", f"{what}; use one with {spans} or more, or longer spans")


def _lengths(tokens: int, rate: float, mean_span: float) -> tuple[int, int]:
    """(source, target) of a text of so many tokens, with sentinels and end tokens."""
    noise, spans = noise_counts(tokens, rate, mean_span)
    return tokens - noise + spans + 1, noise + spans + 1


def _segmented(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [segments]: lengths of 1 or more with the sum `items`, every such row as likely."""
    cuts = np.sort(rng.permutation(items - 1)[: segments - 1]) + 1
    return np.diff(cuts, prepend=0, append=items)


def _ended(ids: np.ndarray | Sequence[int], eos: int) -> np.ndarray:
    return np.append(np.asarray(ids, np.int32), np.int32(eos))
