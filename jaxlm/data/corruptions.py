"""What can become of a text: a source, and the target that is learned for it.

span_corruption   sentinels for spans, and the spans (Raffel et al. 2020)
bart              a corrupted text, and the text (Lewis et al. 2019)
ul2               one of several denoisers (Tay et al. 2022)
prefix_lm         a text's beginning, and its rest (Raffel et al. 2020, section 3.2.1)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from jaxlm.core.errors import ConfigError
from jaxlm.data.bart import Noise, noised
from jaxlm.data.masked import check_mask
from jaxlm.data.pair import Pair, Sizes
from jaxlm.data.prefixes import prefix_sizes, prefixed
from jaxlm.data.spans import (
    check_sentinels,
    noise_counts,
    span_corrupted,
    span_sizes,
)
from jaxlm.data.ul2 import Denoiser, denoised, denoised_sizes
from jaxlm.text.tokenizer import Tokenizer


class Corruption(NamedTuple):
    """A way to corrupt texts."""

    what: str
    """It and its settings, to tell it from others."""
    pair: Callable[[np.ndarray, np.random.Generator], Pair]
    """Ids int32 [n] of a text, n >= 1 -> source and target, with nothing around them."""
    sizes: Callable[[np.ndarray], Sizes]
    """Lengths of texts -> the most that their pairs have, which longer texts' have too."""
    check: Callable[[int], None] = lambda longest: None
    """Raises ConfigError where the tokenizer lacks what the longest text needs."""


def span_corruption(tokenizer: Tokenizer, *, rate: float, mean_span: float) -> Corruption:
    """T5's, with the tokenizer's sentinels."""
    how = {"rate": rate, "mean_span": mean_span}
    sentinels = tokenizer.sentinels

    def check(longest: int) -> None:
        _, needed = noise_counts(np.int64(longest), **how)
        check_sentinels(sentinels, int(needed))

    pair = partial(span_corrupted, sentinels=sentinels, **how)
    what = repr(("span_corruption", rate, mean_span))
    return Corruption(what, pair, partial(span_sizes, **how), check)


def ul2(
    tokenizer: Tokenizer, *, denoisers: Sequence[Denoiser], modes: dict[str, str]
) -> Corruption:
    """UL2's. modes: the token before each source by the denoiser's mode; none where it is empty.

    Raises ConfigError for modes whose tokens are not there.
    """
    ids = _mode_ids(tokenizer, denoisers, modes)
    first = [number for number, i in enumerate(tokenizer.sentinels) if i in ids.values()]
    sentinels = tokenizer.sentinels[: min(first, default=None)]

    def check(longest: int) -> None:
        for one in denoisers:
            if one.mode != "S":
                _, needed = noise_counts(np.int64(longest), one.rate, one.mean_span)
                check_sentinels(sentinels, int(needed))
        check_sentinels(sentinels, 1)

    pair = partial(denoised, sentinels=sentinels, denoisers=denoisers, modes=ids or None)
    sizes = partial(denoised_sizes, denoisers=denoisers, modes=bool(ids))
    return Corruption(repr(("ul2", *denoisers, ids)), pair, sizes, check)


def bart(tokenizer: Tokenizer, *, noise: Noise) -> Corruption:
    """BART's, whose target is the text. Raises ConfigError for a tokenizer without a mask token."""
    check_mask(tokenizer, "bart")
    mask, special = tokenizer.mask, list(tokenizer.names.values())
    may, ends = np.ones(tokenizer.vocab, bool), tokenizer.sentence_ends()
    may[special] = False

    def pair(ids: np.ndarray, rng: np.random.Generator) -> Pair:
        how = {"may": may[ids], "ends": ends[ids], "mask": mask, "noise": noise}
        source = noised(ids, rng, **how)
        while source.size > ids.size:  # by masks for spans of nothing: it may not fit its row
            source = noised(ids, rng, **how)
        return source, ids

    def sizes(length: np.ndarray) -> Sizes:
        return Sizes(length, length, 2 * length)

    return Corruption(repr(("bart", *noise)), pair, sizes)


def prefix_lm() -> Corruption:
    """A prefix of any length, and what comes after it."""
    return Corruption("prefix_lm", prefixed, prefix_sizes)


def _mode_ids(
    tokenizer: Tokenizer, denoisers: Sequence[Denoiser], modes: dict[str, str]
) -> dict[str, int]:
    """The id of each mode's token. Raises ConfigError where one is no token of the tokenizer."""
    for mode, name in modes.items():
        if name not in tokenizer.names:
            what = f"{name} is no special token of the tokenizer; add it there, or name another"
            raise ConfigError(f"objective.modes.{mode}", what)
    if modes and (bare := [one.mode for one in denoisers if one.mode not in modes]):
        what = f"is missing, and {' and '.join(modes)} have a token; name one, or none of them"
        raise ConfigError(f"objective.modes.{bare[0]}", what)
    return {mode: tokenizer.names[name] for mode, name in modes.items()}
