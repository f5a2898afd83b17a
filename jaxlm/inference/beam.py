"""Beam search: of many continuations the likeliest for their length, as transformers finds them.

A step takes the likeliest of all one-token continuations of a prompt's beams. Those that end are
kept by their score, the sum of log-probabilities over length ** penalty; the best of the others are
the next beams. The search for a prompt is over when its likeliest beam, as long as it is now,
scores no higher than the worst that is kept: early_stopping=False of transformers.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.core.errors import ConfigError
from jaxlm.core.tree import Params
from jaxlm.inference import prompts as given
from jaxlm.inference import slots
from jaxlm.inference.prompts import Prompts, here, left, padded
from jaxlm.models.cache import Cache
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import Batch, Forward

LOW = -1e9
"""Below every score: what transformers has instead of minus infinity."""
STEEPEST = 5.0
"""The largest length penalty: no power of a length overflows."""


class Beam(NamedTuple):
    """A continuation of a prompt, with the token that ends it if there is one."""

    ids: list[int]
    score: float
    """The sum of its tokens' log-probabilities, in nats, over length ** penalty; of float32."""


class Rules(NamedTuple):
    """What a search goes by."""

    ends: Array
    """[E] int32"""
    lengths: Array
    """[T] float32: what a sum of 1, 2, ... T log-probabilities is divided by."""
    most: Array
    """int32 []: an answer of so many tokens ends."""


class Ended(NamedTuple):
    """The best that have ended, best first; LOW and not real where there are fewer than K."""

    tokens: Array
    """[B, K, T] int32"""
    lengths: Array
    """[B, K] int32"""
    scores: Array
    """[B, K] float32"""
    real: Array
    """[B, K] bool"""


class Search(NamedTuple):
    """The state of the search for B prompts, with K beams each."""

    tokens: Array
    """[B, K, T] int32: the beams, likeliest first."""
    sums: Array
    """[B, K] float32: of their log-probabilities."""
    parents: Array
    """[B, K] int32: which of the beams before each continues."""
    ended: Ended
    open: Array
    """[B] bool: whether something better may still end."""
    count: Array
    """int32 []: tokens of each beam."""


class BeamSearch:
    """The compiled parts of beam search for one network; made once, used for many prompts."""

    def __init__(self, forward: Forward, spec: ModelSpec):
        self._forward, self._spec = forward, spec
        self._begin = jax.jit(self._first, static_argnames=("beams", "size"))
        self._run = jax.jit(self._rest, static_argnames="own", donate_argnums=(1, 2))

    def beams(
        self,
        params: Params,
        prompts: Prompts,
        *,
        beams: int,
        max_tokens: int,
        ends: Sequence[int],
        length_penalty: float = 1.0,
    ) -> list[list[Beam]]:
        """The `beams` best continuations of every prompt, best first. 1 beam is greedy.

        prompts: token ids, of any lengths; on a mesh as many as split over its batch axis. Beams
        depend on their own prompt alone. ends: ids that end a continuation; the longest have
        `max_tokens`. length_penalty: larger is for longer ones. The whole search runs on the
        device; what is said of the cache at `Generator.tokens` is so here too. Raises ConfigError
        as `Generator.tokens` does, and for more beams than ids.
        """
        ends = tuple(dict.fromkeys(ends))
        check(self._spec.vocab, beams, max_tokens, ends, length_penalty)
        longest = given.check(self._spec, prompts, max_tokens)
        tokens, real, source = given.rows(self._spec, prompts)
        room, own = padded(max_tokens), tokens.shape[1]
        powers = np.arange(1, room + 1, dtype=np.float64) ** length_penalty
        rules = Rules(jnp.array(ends, jnp.int32), jnp.float32(powers), jnp.int32(max_tokens))
        begin = partial(self._begin, params, rules, beams=beams)
        search, cache = begin(None, tokens, real, source, size=own + room)
        until = given.turning(self._spec) - longest
        if 0 < until < max_tokens:  # what was read before turns otherwise then
            search, cache = self._run(params, search, cache, rules, jnp.int32(until), own=own)
            if here(search.open).any():
                said = here(search.tokens)[..., :until].tolist()
                each = zip(prompts, said, strict=True)
                so_far = [[*prompt, *beam] for prompt, its in each for beam in its]
                wide, own = given.width(self._spec, longest + until), 0
                search, cache = begin(search, *left(so_far, wide), None, size=wide + room)
        search, _ = self._run(params, search, cache, rules, rules.most, own=own)
        rows, lengths, scores, _ = jax.tree.map(here, search.ended)
        sizes = np.ndindex(scores.shape)
        found = [Beam(rows[at][: lengths[at]].tolist(), float(scores[at])) for at in sizes]
        return [found[at : at + beams] for at in range(0, len(found), beams)]

    def _first(
        self,
        params: Params,
        rules: Rules,
        search: Search | None,
        tokens: Array,
        real: Array,
        source: Batch | None,
        *,
        beams: int,
        size: int,
    ) -> tuple[Search, Cache]:
        """After one pass over the prompts [B, L], or over each with its beams so far [B * K, L]."""
        params, times = (params, beams) if search is None else (slots.repeated(params, beams), 1)
        scores, cache = given.read(
            self._forward, self._spec, params, tokens, real, source, size=size
        )
        if search is None:
            search = _empty(tokens.shape[0], beams, rules.lengths.size)
        return advance(search, jnp.repeat(scores, times, 0), rules), _repeated(cache, times)

    def _rest(
        self, params: Params, search: Search, cache: Cache, rules: Rules, until: Array, *, own: int
    ) -> tuple[Search, Cache]:
        """Until beams have `until` tokens or nothing better can end. own: the first column of the
        cache that a prompt's beams do not share.
        """
        params = slots.repeated(params, search.parents.shape[1])

        def step(state: tuple[Search, Cache]) -> tuple[Search, Cache]:
            search, cache = state
            last = jax.lax.dynamic_index_in_dim(search.tokens, search.count - 1, 2)
            cache = _reordered(cache, search.parents, own)
            scores, cache = self._forward.decode(params, last.reshape(-1, 1), cache)
            return advance(search, scores, rules), cache

        def more(state: tuple[Search, Cache]) -> Array:
            return state[0].open.any() & (state[0].count < until)

        return jax.lax.while_loop(more, step, (search, cache))


def check(
    vocab: int, beams: int, max_tokens: int, ends: Sequence[int], length_penalty: float
) -> None:
    """Raise ConfigError for a search that cannot be."""
    if max_tokens < 1:
        raise ConfigError("--max-tokens", f"{max_tokens} is not positive; use 1 or more")
    if beams < 1:
        raise ConfigError("--beams", f"{beams} is not positive; 1 is greedy, 4 is usual")
    if beams > vocab:
        raise ConfigError("--beams", f"{beams} is more than the {vocab} ids there are; use fewer")
    if not abs(length_penalty) <= STEEPEST:
        what = f"{length_penalty} is not in [-{STEEPEST:g}, {STEEPEST:g}]; 1 is the mean"
        raise ConfigError("--length-penalty", what)
    if wrong := [end for end in ends if not 0 <= end < vocab]:
        raise ConfigError("ends", f"id {wrong[0]} is outside the vocabulary of {vocab} ids")
    if max(2, 1 + len(ends)) > vocab:
        raise ConfigError("ends", f"leave nothing of {vocab} ids to go on with; name fewer")


def check_beside(
    beams: int, length_penalty: float, *, temperature: float, top_p: float, top_k: int
) -> None:
    """Raise ConfigError for beams that are to be sampled, and a penalty without beams."""
    if beams != 1 and (temperature != 0 or top_p != 1 or top_k != 0):
        what = "finds what is likeliest; leave --temperature, --top-p and --top-k out, or use 1"
        raise ConfigError("--beams", what)
    if beams == 1 and length_penalty != 1:
        raise ConfigError("--length-penalty", "is of beam search; add --beams 4 or leave it out")


def advance(search: Search, scores: Array, rules: Rules) -> Search:
    """The search after one more token. scores: of it [B * K, V], after each beam.

    There are K candidates that may end, and K more for each id that ends, so that K go on.
    """
    (rows, beams), vocab, at = search.sums.shape, scores.shape[-1], search.count
    likely = jax.nn.log_softmax(scores.astype(jnp.float32)).reshape(rows, beams, vocab)
    likely = (likely + search.sums[..., None]).reshape(rows, -1)
    sums, chosen = jax.lax.top_k(likely, max(2, 1 + rules.ends.size) * beams)
    parents, token = chosen // vocab, chosen % vocab
    tokens = _taken(search.tokens, parents)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[..., None], at, 2)
    ends = jnp.isin(token, rules.ends) | (at + 1 == rules.most)
    going, best = jax.lax.top_k(sums + LOW * ends, beams)
    may = ends & (jnp.arange(sums.shape[1])[None] < beams)
    new = sums / rules.lengths[at] + LOW * ~may + LOW * ~search.open[:, None]
    ended = _merged(search.ended, Ended(tokens, jnp.full_like(token, at + 1), new, may))
    worst = jnp.where(ended.real.all(1), ended.scores[:, -1], LOW)
    better = going[:, 0] / rules.lengths[at] > worst
    if beams == 1:  # greedy: the first end is the last
        better &= ~ended.real[:, 0]
    tokens, parents = _taken(tokens, best), _taken(parents, best)
    return Search(tokens, going, parents, ended, search.open & better, at + 1)


def _empty(rows: int, beams: int, room: int) -> Search:
    """Before the first token: of equal beams only one counts."""
    none, tokens = jnp.zeros((rows, beams), jnp.int32), jnp.zeros((rows, beams, room), jnp.int32)
    low = jnp.full((rows, beams), LOW, jnp.float32)
    ended = Ended(tokens, none, low, none > 0)
    zero = jnp.zeros((), jnp.int32)
    return Search(tokens, low.at[:, 0].set(0), none, ended, jnp.ones(rows, bool), zero)


def _merged(ended: Ended, new: Ended) -> Ended:
    """The best of both, as many as there were."""
    both = jax.tree.map(lambda *each: jnp.concatenate(each, 1), ended, new)
    _, best = jax.lax.top_k(both.scores, ended.scores.shape[1])
    return jax.tree.map(partial(_taken, chosen=best), both)


def _taken(x: Array, chosen: Array) -> Array:
    """x [B, N, ...] at `chosen` [B, K] of the N: [B, K, ...]."""
    return jnp.take_along_axis(x, chosen.reshape(chosen.shape + (1,) * (x.ndim - 2)), 1)


def _repeated(cache: Cache, times: int) -> Cache:
    """Each row of a cache so many times in turn."""
    by_layer = {"keys": cache.keys, "values": cache.values, "source": cache.source}
    by_row = {name: getattr(cache, name) for name in ("segments", "counts", "source_segments")}
    by_layer = jax.tree.map(lambda x: jnp.repeat(x, times, 1), by_layer)
    by_row = jax.tree.map(lambda x: jnp.repeat(x, times, 0), by_row)
    return cache._replace(**by_layer, **by_row)


def _reordered(cache: Cache, parents: Array, own: int) -> Cache:
    """The cache of the beams that continue `parents` [B, K]; columns before `own` are alike."""

    def moved(kept: Array) -> Array:
        columns = kept[:, :, own:]
        beams = columns.reshape(kept.shape[0], *parents.shape, *columns.shape[2:])
        new = jax.vmap(_taken, (0, None))(beams, parents).reshape(columns.shape)
        return jax.lax.dynamic_update_slice_in_dim(kept, new, own, 2)

    return cache._replace(keys=moved(cache.keys), values=moved(cache.values))
