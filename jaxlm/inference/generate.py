"""Generation with a cache of keys and values: one pass over the prompts, then a token at a time.

An encoder-decoder reads the prompts as its source, and writes after its start token.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import process_allgather

from jaxlm.core.errors import ConfigError
from jaxlm.core.tree import Params
from jaxlm.inference.sample import check, sample
from jaxlm.models.cache import Cache, empty_cache
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import Batch, Forward

STEPS = 64
"""Prompts and caches are padded to a multiple of this, so that few lengths are compiled."""


class Generator:
    """The compiled parts of generation for one network; made once, used for many prompts."""

    def __init__(self, forward: Forward, spec: ModelSpec):
        self._forward, self._spec = forward, spec
        self._prefill = jax.jit(self._first, static_argnames="size")
        self._next = jax.jit(self._one, donate_argnums=(1,))

    def tokens(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> Iterator[np.ndarray]:
        """Yield the next token of every prompt, int32 [B], `max_tokens` times.

        The cache changes no token, but of a dynamic rope beyond its trained length: as in
        transformers, what the cache holds is not turned again for every longer row.

        prompts: token ids, of any lengths. A row's tokens depend on its own prompt, its index and
        the seed. Raises ConfigError when a prompt is empty or what is asked for does not fit the
        model's positions.
        """
        check(max_tokens, temperature, top_p, top_k, seed)
        longest = self._check_prompts(prompts, max_tokens)
        width, source = self._width(longest), None
        if self._spec.structure == "encoder-decoder":
            source = _source(prompts, width)
            prompts, width = [[self._spec.encoder.start]] * len(prompts), 1
        how = (
            jnp.float32(temperature),
            jnp.float32(top_p),
            jnp.int32(min(top_k, self._spec.vocab)),
        )
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(np.arange(len(prompts)))
        size = width + -(-max_tokens // STEPS) * STEPS
        first = partial(self._prefill, params, keys=keys, how=how)
        start = jnp.int32(0), *_left(prompts, width), source
        token, cache = first(*start, size=size)
        said: list[np.ndarray] = []
        for count in range(1, max_tokens):
            if longest + count == self._turning:  # what was read before turns otherwise now
                new = np.stack([*said, _here(token)], axis=1).tolist()
                so_far = [[*row, *more] for row, more in zip(prompts, new, strict=True)]
                width = self._width(longest + count)
                size = width + -(-(max_tokens - count) // STEPS) * STEPS
                ahead = first(jnp.int32(count), *_left(so_far, width), None, size=size)
            else:
                ahead = self._next(params, cache, token, keys, jnp.int32(count), how)
            said.append(_here(token))  # while the device works on the next
            yield said[-1]
            token, cache = ahead
        yield _here(token)

    @property
    def _turning(self) -> int:
        """The length at which a decoder's longrope changes its factors; 0: it has none."""
        rope, alone = self._spec.rope, self._spec.structure == "decoder"
        return rope.original_length + 1 if rope.scaling == "longrope" and alone else 0

    def _width(self, length: int) -> int:
        return min(-(-length // STEPS) * STEPS, self._spec.max_length)

    def _first(
        self,
        params: Params,
        count: Array,
        tokens: Array,
        real: Array,
        source: Batch | None,
        *,
        keys: Array,
        how: tuple,
        size: int,
    ) -> tuple[Array, Cache]:
        spec, batch = self._spec, {"tokens": tokens, "positions": tokens, **(source or {})}
        dtype = jax.eval_shape(self._forward.hidden, params, batch, None)[0].dtype
        cache = empty_cache(
            spec.layers,
            tokens.shape[0],
            size,
            spec.kv_heads,
            spec.head_dim,
            dtype,
        )
        scores, cache = self._forward.decode(params, tokens, cache._replace(incoming=real), source)
        return self._draw(scores, keys, count, how), cache

    def _one(
        self, params: Params, cache: Cache, token: Array, keys: Array, count: Array, how: tuple
    ) -> tuple[Array, Cache]:
        scores, cache = self._forward.decode(params, token[:, None], cache)
        return self._draw(scores, keys, count, how), cache

    def _draw(self, scores: Array, keys: Array, count: Array, how: tuple) -> Array:
        keys = jax.vmap(lambda key: jax.random.fold_in(key, count))(keys)
        return sample(scores.astype(jnp.float32), keys, *how)

    def _check_prompts(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> int:
        vocab, most = self._spec.vocab, self._spec.max_length
        if self._spec.structure == "encoder" or self._spec.head.labels:
            what = "a classifier" if self._spec.head.labels else "an encoder"
            raise ConfigError("MODEL", f"is {what}, which continues no text; name a decoder")
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise ConfigError("--prompt", "is empty; write at least one token of text")
        if worst := [i for prompt in prompts for i in prompt if not 0 <= i < vocab]:
            raise ConfigError("--prompt", f"id {worst[0]} is outside the vocabulary of {vocab} ids")
        longest = max(len(prompt) for prompt in prompts)
        if self._spec.structure == "encoder-decoder":
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


def _here(token: Array) -> np.ndarray:
    """The tokens of all rows, on each process."""
    if token.is_fully_addressable:
        return np.asarray(token)
    return np.asarray(process_allgather(token, tiled=True))


def _left(prompts: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows [B, width] int32, which of their tokens are real), so that all rows end together."""
    tokens = np.zeros((len(prompts), width), np.int32)
    real = np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        real[row, width - len(prompt) :] = True
    return tokens, real


def _source(prompts: Sequence[Sequence[int]], width: int) -> dict[str, np.ndarray]:
    """The source of a batch as Forward has it: rows [B, width], padded on the right."""
    tokens = np.zeros((len(prompts), width), np.int32)
    lengths = np.array([len(prompt) for prompt in prompts])
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    places = np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape)
    real = places < lengths[:, None]
    segments = real.astype(np.int32)
    return {"source": tokens, "source_positions": places * segments, "source_segments": segments}
