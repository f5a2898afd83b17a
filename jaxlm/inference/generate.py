"""Generation with a cache of keys and values: one pass over the prompts, then a token at a time.

An encoder-decoder reads the prompts as its source, and writes after its start token.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.core.tree import Params
from jaxlm.inference import prompts as given
from jaxlm.inference.prompts import Prompts, here, left, padded
from jaxlm.inference.sample import check, sample
from jaxlm.models.cache import Cache
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import Batch, Forward


class Generator:
    """The compiled parts of generation for one network; made once, used for many prompts."""

    def __init__(self, forward: Forward, spec: ModelSpec):
        self._forward, self._spec = forward, spec
        self._prefill = jax.jit(self._first, static_argnames="size")
        self._next = jax.jit(self._one, donate_argnums=(1,))

    def tokens(
        self,
        params: Params,
        prompts: Prompts,
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
        longest = given.check(self._spec, prompts, max_tokens)
        turn = given.turning(self._spec)
        tokens, real, source = given.rows(self._spec, prompts)
        how = (
            jnp.float32(temperature),
            jnp.float32(top_p),
            jnp.int32(min(top_k, self._spec.vocab)),
        )
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(np.arange(len(prompts)))
        first = partial(self._prefill, params, keys=keys, how=how)
        size = tokens.shape[1] + padded(max_tokens)
        token, cache = first(jnp.int32(0), tokens, real, source, size=size)
        said: list[np.ndarray] = []
        for count in range(1, max_tokens):
            if longest + count == turn:  # what was read before turns otherwise now
                new = np.stack([*said, here(token)], axis=1).tolist()
                so_far = [[*row, *more] for row, more in zip(prompts, new, strict=True)]
                wide = given.width(self._spec, longest + count)
                size = wide + padded(max_tokens - count)
                ahead = first(jnp.int32(count), *left(so_far, wide), None, size=size)
            else:
                ahead = self._next(params, cache, token, keys, jnp.int32(count), how)
            said.append(here(token))  # while the device works on the next
            yield said[-1]
            token, cache = ahead
        yield here(token)

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
        scores, cache = given.read(
            self._forward, self._spec, params, tokens, real, source, size=size
        )
        return self._draw(scores, keys, count, how), cache

    def _one(
        self, params: Params, cache: Cache, token: Array, keys: Array, count: Array, how: tuple
    ) -> tuple[Array, Cache]:
        scores, cache = self._forward.decode(params, token[:, None], cache)
        return self._draw(scores, keys, count, how), cache

    def _draw(self, scores: Array, keys: Array, count: Array, how: tuple) -> Array:
        keys = jax.vmap(lambda key: jax.random.fold_in(key, count))(keys)
        return sample(scores.astype(jnp.float32), keys, *how)
