"""T5's span corruption: a text with a sentinel for each span, and the spans.

Raffel et al. 2020, sections 3.1.4 and 3.2, and t5.data.preprocessors.
"""

from collections.abc import Sequence

import numpy as np

from jaxlm.core.errors import ConfigError
from jaxlm.data.pair import Pair, Sizes


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


def check_sentinels(sentinels: Sequence[int], spans: int) -> None:
    """Raise ConfigError where there are fewer sentinels than spans."""
    if len(sentinels) < spans:
        what = f"has {len(sentinels)} sentinels (<extra_id_0>, ...) where a text needs {spans}"
        raise ConfigError("tokenizer", f"{what}; use one with {spans} or more, or longer spans")


def _segmented(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [segments]: lengths of 1 or more with the sum `items`, every such row as likely."""
    cuts = np.sort(rng.permutation(items - 1)[: segments - 1]) + 1
    return np.diff(cuts, prepend=0, append=items)
