"""Prompts: what fits a model, rows of one length, and the one pass over them."""

from collections.abc import Sequence

import jax
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import process_allgather

from jaxlm.core.errors import ConfigError
from jaxlm.core.tree import Params
from jaxlm.models.cache import Cache, empty_cache
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import Batch, Forward

Prompts = Sequence[Sequence[int]]

STEPS = 64
"""Prompts and caches are padded to a multiple of this, so that few lengths are compiled."""


def padded(length: int) -> int:
    """The next multiple of STEPS."""
    return -(-length // STEPS) * STEPS


def width(spec: ModelSpec, length: int) -> int:
    """How wide rows are of which the longest has `length` tokens."""
    return min(padded(length), spec.max_length)


def turning(spec: ModelSpec) -> int:
    """The length at which a decoder's longrope changes its factors; 0: it has none."""
    rope, alone = spec.rope, spec.structure == "decoder"
    return rope.original_length + 1 if rope.scaling == "longrope" and alone else 0


def check(spec: ModelSpec, prompts: Prompts, max_tokens: int) -> int:
    """The length of the longest. Raises ConfigError for what the model cannot continue so far."""
    vocab, most = spec.vocab, spec.max_length
    if spec.structure == "encoder" or spec.head.labels:
        what = "a classifier" if spec.head.labels else "an encoder"
        raise ConfigError("MODEL", f"is {what}, which continues no text; name a decoder")
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ConfigError("--prompt", "is empty; write at least one token of text")
    if worst := [i for prompt in prompts for i in prompt if not 0 <= i < vocab]:
        raise ConfigError("--prompt", f"id {worst[0]} is outside the vocabulary of {vocab} ids")
    longest = max(len(prompt) for prompt in prompts)
    if spec.structure == "encoder-decoder":
        if max(longest, max_tokens) > most:
            what = f"{longest} tokens of prompt or {max_tokens} of answer exceed the model's"
            raise ConfigError("--max-tokens", f"{what} {most} positions; use fewer")
        return longest
    if longest + max_tokens > most:
        room = most - longest
        advice = f"use {room} or a shorter prompt" if room > 0 else "shorten the prompt"
        raise ConfigError(
            "--max-tokens",
            f"{longest} tokens of prompt and {max_tokens} more exceed the model's {most} "
            f"positions; {advice}",
        )
    return longest


def rows(
    spec: ModelSpec, prompts: Prompts
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray] | None]:
    """(what the decoder begins with, which of it is real, the source of an encoder-decoder)."""
    wide = width(spec, max(len(prompt) for prompt in prompts))
    if spec.structure != "encoder-decoder":
        return *left(prompts, wide), None
    start = [[spec.encoder.start]] * len(prompts)
    return *left(start, 1), _source(prompts, wide)


def read(
    forward: Forward,
    spec: ModelSpec,
    params: Params,
    tokens: Array,
    real: Array,
    source: Batch | None,
    *,
    size: int,
) -> tuple[Array, Cache]:
    """(scores of the token after each row [B, V], a cache with `size` columns that has the rows).

    tokens int32, real bool: [B, L], as `left` gives them. source: as Forward has it.
    """
    batch = {"tokens": tokens, "positions": tokens, **(source or {})}
    dtype = jax.eval_shape(forward.hidden, params, batch, None)[0].dtype
    cache = empty_cache(spec.layers, tokens.shape[0], size, spec.kv_heads, spec.head_dim, dtype)
    return forward.decode(params, tokens, cache._replace(incoming=real), source)


def left(prompts: Prompts, wide: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows [B, wide] int32, which of their tokens are real), so that all rows end together."""
    tokens = np.zeros((len(prompts), wide), np.int32)
    real = np.zeros((len(prompts), wide), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, wide - len(prompt) :] = prompt
        real[row, wide - len(prompt) :] = True
    return tokens, real


def _source(prompts: Prompts, wide: int) -> dict[str, np.ndarray]:
    """The source of a batch as Forward has it: rows [B, wide], padded on the right."""
    tokens = np.zeros((len(prompts), wide), np.int32)
    lengths = np.array([len(prompt) for prompt in prompts])
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    places = np.broadcast_to(np.arange(wide, dtype=np.int32), tokens.shape)
    real = places < lengths[:, None]
    segments = real.astype(np.int32)
    return {"source": tokens, "source_positions": places * segments, "source_segments": segments}


def here(rows: Array) -> np.ndarray:
    """All rows [B, ...], on each process."""
    if rows.is_fully_addressable:
        return np.asarray(rows)
    return np.asarray(process_allgather(rows, tiled=True))
