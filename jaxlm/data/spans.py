"""T5's span corruption, UL2's mixture of denoisers and prefixes: texts to pairs of source and
target.

Raffel et al. 2020, sections 3.1.4 and 3.2, and t5.data.preprocessors; Tay et al. 2022, section 3.1.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.core.errors import ConfigError

Pair = tuple[np.ndarray, np.ndarray]
"""Source and target ids, int32 [n] and [m], with nothing around them."""


class Sizes(NamedTuple):
    """The most ids that pairs can have, int64 [k] each, by the lengths of their texts [k]."""

    source: np.ndarray
    target: np.ndarray
    both: np.ndarray
    """Of the two together."""


class Denoiser(NamedTuple):
    """One of UL2's. mode: R(egular), X(treme) or S(equential), whose target is the text's end."""

    mode: str
    rate: float
    """Share of the text that is the target."""
    mean_span: float
    """Mean length of a span in tokens; of no use to S."""


def span_corrupted(
    ids: np.ndarray,
    rng: np.random.Generator,
    *,
    rate: float,
    mean_span: float,
    sentinels: Sequence[int],
) -> Pair:
    """A text of ids [n] with a sentinel for each noise span, and the spans after their sentinels.

    The text starts with what is kept and ends with noise. One of fewer than two tokens has no
    noise, and one sentinel is its target. Raises ConfigError where there are fewer sentinels than
    spans.
    """
    check_sentinels(sentinels, 1)
    if ids.size < 2:
        return ids.astype(np.int32), np.array(sentinels[:1], np.int32)
    noise, spans = map(int, noise_counts(np.int64(ids.size), rate, mean_span))
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
    return source.astype(np.int32), target.astype(np.int32)


def noise_counts(
    length: np.ndarray | np.integer, rate: float, mean_span: float
) -> tuple[np.ndarray, np.ndarray]:
    """(noise tokens, noise spans) of texts of `length` tokens; of two or more tokens one of each,
    and one kept before each span, at the least. As random_spans_noise_mask of t5.
    """
    noise = np.clip(np.rint(length * rate), 1, length - 1).astype(np.int64)
    spans = np.clip(np.rint(noise / mean_span), 1, np.minimum(noise, length - noise))
    return noise, spans.astype(np.int64)


def span_sizes(length: np.ndarray, rate: float, mean_span: float) -> Sizes:
    """Of the pairs of `span_corrupted`, none of which is smaller."""
    noise, spans = noise_counts(length, rate, mean_span)
    source, target = length - noise + spans, np.maximum(noise + spans, 1)
    return Sizes(source, target, source + target)


def prefixed(ids: np.ndarray, rng: np.random.Generator) -> Pair:
    """A text cut in two, the length of its first part uniform (Raffel et al. 2020, section 3.2.1).

    One of a single token is all prefix.
    """
    cut = int(rng.integers(1, ids.size)) if ids.size > 1 else ids.size
    return ids[:cut], ids[cut:]


def prefix_sizes(length: np.ndarray) -> Sizes:
    """Of the pairs of `prefixed`."""
    return Sizes(np.maximum(length - 1, 1), length - 1, length)


def denoised(
    ids: np.ndarray,
    rng: np.random.Generator,
    *,
    sentinels: Sequence[int],
    denoisers: Sequence[Denoiser],
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
        source, target = np.append(ids[:cut], sentinels[0]), np.insert(ids[cut:], 0, sentinels[0])
    else:
        rate, mean = denoiser.rate, max(denoiser.mean_span, 1)  # S has none
        source, target = span_corrupted(ids, rng, rate=rate, mean_span=mean, sentinels=sentinels)
    if modes is not None:
        source = np.insert(source, 0, modes[denoiser.mode])
    return source.astype(np.int32), target.astype(np.int32)


def denoised_sizes(length: np.ndarray, denoisers: Sequence[Denoiser], *, modes: bool) -> Sizes:
    """Of the pairs of `denoised`; modes: whether one is before each source."""
    each = [_denoiser_sizes(length, denoiser) for denoiser in denoisers]
    source, target, both = (np.max(sizes, axis=0) for sizes in zip(*each, strict=True))
    return Sizes(source + modes, target, both + modes)


def sequential_split(n: int, rng: np.random.Generator, rate: float = 0.25) -> int:
    """Length of the prefix of a text of n >= 2 tokens whose target is `rate` of it in the mean,
    its length uniform (S-denoising, Tay et al. 2022, section 3.1.2).
    """
    most = int(_longest_end(np.int64(n), rate))
    return n - int(rng.integers(max(1, round(2 * rate * n) - most), most + 1))


def check_sentinels(sentinels: Sequence[int], spans: int) -> None:
    """Raise ConfigError where there are fewer sentinels than spans."""
    if len(sentinels) < spans:
        what = f"has {len(sentinels)} sentinels (<extra_id_0>, ...) where a text needs {spans}"
        raise ConfigError("tokenizer", f"{what}; use one with {spans} or more, or longer spans")


def _longest_end(length: np.ndarray | np.integer, rate: float) -> np.ndarray:
    """Most tokens after the prefix of `sequential_split`."""
    return np.clip(np.rint(2 * rate * length) - 1, 1, length - 1).astype(np.int64)


def _denoiser_sizes(length: np.ndarray, denoiser: Denoiser) -> Sizes:
    if denoiser.mode != "S":
        return span_sizes(length, denoiser.rate, denoiser.mean_span)
    end = _longest_end(length, denoiser.rate)
    return Sizes(length, end + 1, length + 2)


def _segmented(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [segments]: lengths of 1 or more with the sum `items`, every such row as likely."""
    cuts = np.sort(rng.permutation(items - 1)[: segments - 1]) + 1
    return np.diff(cuts, prepend=0, append=items)
