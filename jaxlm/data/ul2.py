"""UL2's mixture of denoisers (Tay et al. 2022, section 3.1)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.data.pair import Pair, Sizes
from jaxlm.data.prefixes import longest_end, sequential_split
from jaxlm.data.spans import check_sentinels, span_corrupted, span_sizes


class Denoiser(NamedTuple):
    """One of UL2's. mode: R(egular), X(treme) or S(equential), whose target is the text's end."""

    mode: str
    rate: float
    """Share of the text that is the target."""
    mean_span: float
    """Mean length of a span in tokens; of no use to S."""


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


def _denoiser_sizes(length: np.ndarray, denoiser: Denoiser) -> Sizes:
    if denoiser.mode != "S":
        return span_sizes(length, denoiser.rate, denoiser.mean_span)
    end = longest_end(length, denoiser.rate)
    return Sizes(length, end + 1, length + 2)
