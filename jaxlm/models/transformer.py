"""The one transformer body, and the network as pure functions of a plain dict.

A decoder is a causal Stack, an encoder one that is not, an encoder-decoder both, with attention
between them. Layers are always scanned: a speed setting never changes the tree.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlm.core.mesh import Layout
from jaxlm.core.parts import NEW_ROWS
from jaxlm.core.tree import Params
from jaxlm.models.attention import Attention
from jaxlm.models.axes import AXES, check_divides
from jaxlm.models.balance import Aux, Routed, auxiliary
from jaxlm.models.cache import Cache, KeyValues
from jaxlm.models.dense import dropout, layer_keys
from jaxlm.models.depth import scan
from jaxlm.models.experts import Experts
from jaxlm.models.heads import Head, logits, pooled_segments, select_head
from jaxlm.models.layers import Mlp, Normalize, residual_scale
from jaxlm.models.relative import Relative
from jaxlm.models.rope import rotary
from jaxlm.models.rows import looked_up
from jaxlm.models.source import Source, SourceAttention
from jaxlm.models.spec import ModelSpec, padded_vocab

Batch = dict[str, Array]
Told = tuple[KeyValues | None, Routed | None]
"""What layers tell beside hidden states: their part of the cache, and what their routers did."""

REMAT: dict[str, Any] = {
    "products": jax.checkpoint_policies.save_only_these_names("product", "attention"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Forward(NamedTuple):
    """The network as pure functions. Keys is a key per row [B], or None: no dropout.

    A batch has tokens and positions and, when rows are packed, segments, int32 [B, L]; types [B, L]
    where the model has token types; prefix [B, L], true where a segment's prompt is, which a model
    of `prefix` reads and no other; of an encoder-decoder these are the target's, and the source's
    are source, source_positions and, when packed or padded, source_segments [B, S].
    """

    hidden: Callable[[Params, Batch, Array | None], tuple[Array, Aux]]
    """A batch -> hidden states [B, L, D] after the final norm, and what routers add to the loss."""
    head: Callable[[Params], Params]
    """The few leaves the logits need: what the loss differentiates beside the hidden states."""
    logits: Callable[[Params, Array], Array]
    """(head, [..., D]) -> [..., padded V] float32; columns beyond the vocabulary are -1e9. Of a
    classifier [..., labels]."""
    decode: Callable[..., tuple[Array, Cache]]
    """(params, tokens [B, L] after what the cache holds, cache) -> logits of the last [B, V], the
    longer cache. Of an encoder-decoder also the batch that has the source, at the first step."""
    pooled: Callable[[Array, Batch, int], Array]
    """(hidden states [B, L, D], their batch, K) -> what a classifier of sequences scores [B, K, D]:
    segment k + 1 of each row, as the model's head pools, at place k."""


class Shared(NamedTuple):
    """What all layers of a stack read alike."""

    segments: Array | None
    """[B, L] int32; None: each row is one."""
    prefix: Array | None
    """[B, L], true where all of the segment look; None: nowhere."""
    turns: Any
    """Rotations of far-seeing layers and of those with a window, or None."""
    bias: Array | None
    """What is added to scores by distance, float32 [N, D] (scores.spread)."""
    source: Source | None
    keys: Array | None
    """A key per row [B]; None: no dropout."""


class Block(nn.Module):
    """Attention and MLP around the residual stream. A layer of the scan."""

    spec: ModelSpec
    layout: Layout
    dtype: DTypeLike
    causal: bool
    site: int
    """Of the stack's dropouts."""

    @nn.compact
    def __call__(
        self, x: Array, shared: Shared, layer: Array, cache: KeyValues | None
    ) -> tuple[Array, Told]:
        spec, near, site = self.spec, _windowed(self.spec, layer), self.site + 2 * layer
        turn = shared.turns and jax.tree.map(partial(_either, near), *reversed(shared.turns))
        attend = Attention(spec, self.layout, self.dtype, self.causal, name="attn")
        read, keys = x, layer_keys(shared.keys, layer)
        x = self._first(x, layer)
        bias, prefix = shared.bias, shared.prefix
        y, cache = attend(x, shared.segments, turn, bias, cache, near, keys, prefix)
        x = self._residual(read, y, "attn", shared.keys, site + 1)
        if shared.source is not None:
            across = SourceAttention(spec, self.layout, self.dtype, name="cross")
            y = self._before(x, "cross")
            y, cache = across(y, shared.segments, shared.source, cache, keys)
            x = self._residual(x, y, "cross", shared.keys, 2 * spec.layers + 1 + layer)
        y = self._before(read if spec.parallel else x, "mlp")
        y, routed = self._mlp(y, shared.segments, keys)
        return self._residual(x, y, "mlp", shared.keys, site + 2), (cache, routed)

    def _mlp(
        self, x: Array, segments: Array | None, keys: Array | None
    ) -> tuple[Array, Routed | None]:
        spec, out_scale = self.spec, residual_scale(self.spec)
        if spec.experts.count:
            return Experts(spec, self.layout, self.dtype, out_scale, name="experts")(x, segments)
        dense = Mlp(
            spec.mlp,
            spec.activation,
            spec.gated,
            spec.bias.mlp,
            self.dtype,
            spec.init_scale,
            out_scale,
            name="mlp",
        )
        return dense(x, keys), None

    def _first(self, x: Array, layer: Array) -> Array:
        """What attention reads; embeddings that are normalized already are not once more."""
        y = self._before(x, "attn")
        return jnp.where(layer == 0, x, y) if self.spec.embedding.norm else y

    def _before(self, x: Array, name: str) -> Array:
        placed = self.spec.norm.place in ("before", "both")
        return Normalize(self.spec.norm, name=f"{name}_norm")(x) if placed else x

    def _residual(self, x: Array, y: Array, name: str, keys: Array | None, site: Array) -> Array:
        place, out = self.spec.norm.place, Normalize(self.spec.norm, name=f"{name}_out_norm")
        if place in ("after", "both"):
            y = out(y)
        x = x + dropout(y, self.spec.dropout, keys, site)
        if place == "sum":
            x = out(x)
        # Without this XLA shards the batch away and gathers activations instead of weights.
        return self.layout.constrain(x, "batch", None, None)


def _windowed(spec: ModelSpec, layer: Array) -> bool | Array:
    """Whether a layer has the window: for all layers alike, or bool [] of this one."""
    full = set(spec.window.full)
    if not spec.window.size or not full or len(full) == spec.layers:
        return bool(spec.window.size) and not full
    return jnp.array([each not in full for each in range(spec.layers)])[layer]


def _either(first: bool | Array, a: Array, b: Array) -> Array:
    return (a if first else b) if isinstance(first, bool) else jnp.where(first, a, b)


class Stack(nn.Module):
    """Positions and norm of the embeddings, `spec.layers` blocks, scanned, and the final norm."""

    spec: ModelSpec
    layout: Layout
    dtype: DTypeLike
    causal: bool
    site: int = 0
    """Of the first dropout."""

    @nn.compact
    def __call__(
        self,
        x: Array,
        positions: Array,
        segments: Array | None,
        keys: Array | None,
        *,
        prefix: Array | None = None,
        source: Source | None = None,
        cache: KeyValues | None = None,
    ) -> tuple[Array, Told]:
        spec, block = self.spec, Block
        x = self._embedded(x, positions, keys)
        turns = bias = None
        if spec.positions == "rope":
            turn = partial(rotary, positions, spec.head_dim, max_length=spec.max_length)
            turns = turn(spec.rope), turn(spec.rope.local)
        if spec.positions == "relative":
            length = cache.keys.shape[2] if cache else x.shape[1]
            ahead = not self.causal or spec.prefix
            bias = Relative(spec, not ahead, self.layout, name="relative")(length)
        if spec.remat != "none":
            block = nn.remat(Block, policy=REMAT[spec.remat], prevent_cse=False)
        shared = Shared(segments, prefix, turns, bias, source, keys)
        settings = (spec, self.layout, self.dtype, self.causal, self.site)
        x, told = scan(self, block, settings, x, shared, cache)
        return x if spec.norm.place == "sum" else Normalize(spec.norm, name="final_norm")(x), told

    def _embedded(self, x: Array, positions: Array, keys: Array | None) -> Array:
        """Embeddings x [B, L, D] as the first block reads them."""
        spec, offset = self.spec, self.spec.embedding.offset
        x = x * jnp.asarray(spec.scale.embed, x.dtype)
        if spec.positions == "learned":
            rows = spec.max_length + offset
            table = Table(spec, rows, self.layout, self.dtype, name="positions")
            x = x + table(positions + offset)
        if spec.embedding.norm:
            x = Normalize(spec.norm, name="embed_norm")(x)
        x = dropout(x.astype(self.dtype), spec.dropout, keys, self.site)
        return self.layout.constrain(x, "batch", None, None)


class Transformer(nn.Module):
    """Embedding and stacks. The head's leaves are declared here and used by `heads`."""

    spec: ModelSpec
    layout: Layout
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, batch: Batch, keys: Array | None = None, cache: KeyValues | None = None
    ) -> tuple[Array, Told]:
        """A batch as Forward has it -> hidden states [B, L, D]."""
        spec, source, read = self.spec, None, None
        table = Table(spec, padded_vocab(spec), self.layout, self.dtype, name="embed")
        if self.is_initializing():
            Head(spec, self.dtype, name="head")(jnp.zeros((1, spec.embed)))
        if spec.structure == "encoder-decoder":
            source, read = self._source(table, batch, keys)
        x = table(batch["tokens"])
        if spec.embedding.types:
            types = Table(spec, spec.embedding.types, self.layout, self.dtype, name="types")
            x = x + types(batch.get("types", jnp.zeros_like(batch["tokens"])))
        causal = spec.structure != "encoder"
        name = "decoder" if causal else "encoder"
        stack = Stack(spec, self.layout, self.dtype, causal, name=name)
        rows, prefix = batch.get("segments"), batch.get("prefix") if spec.prefix else None
        more = {"prefix": prefix, "source": source, "cache": cache}
        x, (cache, routed) = stack(x, batch["positions"], rows, keys, **more)
        if read is not None and routed is not None:
            routed = jax.tree.map(lambda *layers: jnp.concatenate(layers), read, routed)
        return x, (cache, routed)

    def _source(
        self, table: "Table", batch: Batch, keys: Array | None
    ) -> tuple[Source, Routed | None]:
        """The encoder's output, or nothing where the cache has what is needed of it."""
        spec, segments = self.spec, batch.get("source_segments")
        if "source" not in batch:
            return Source(None, segments), None
        x = table(batch["source"])
        own = spec.model_copy(update={"layers": spec.encoder.layers})
        site = 3 * spec.layers + 1  # after the decoder's dropouts
        encoder = Stack(own, self.layout, self.dtype, False, site, name="encoder")
        hidden, (_, routed) = encoder(x, batch["source_positions"], segments, keys)
        return Source(hidden, segments), routed


class Table(nn.Module):
    """Rows by index, in the wider of the stored and the computing type: they are added up."""

    spec: ModelSpec
    rows: int
    layout: Layout
    dtype: DTypeLike

    @nn.compact
    def __call__(self, index: Array) -> Array:
        init = nn.initializers.normal(self.spec.init_scale)
        table = self.param("embedding", init, (self.rows, self.spec.embed))
        # Whole rows for the lookup: else the partitioner rematerializes the activations.
        rows = self.layout.constrain(table, "vocab" if self.name == "embed" else None, None)[index]
        if self.has_variable("params", NEW_ROWS):
            new = self.get_variable("params", NEW_ROWS)
            rows = looked_up(rows, new, index, self.spec.vocab)
        return rows.astype(jnp.promote_types(table.dtype, self.dtype))


def make_forward(spec: ModelSpec, layout: Layout, dtype: DTypeLike) -> Forward:
    """The pure functions of a filled spec (see ModelSpec.filled), computing in `dtype`.

    Raises ConfigError when heads, mlp or the vocabulary do not divide over the mesh.
    """
    check_divides(spec, layout)
    apply: Any = Transformer(spec, layout, dtype).apply

    def hidden(params: Params, batch: Batch, keys: Array | None) -> tuple[Array, Aux]:
        x, (_, routed) = apply({"params": params}, batch, keys)
        return x, auxiliary(spec, routed)

    def decode(
        params: Params, tokens: Array, cache: Cache, source: Batch | None = None
    ) -> tuple[Array, Cache]:
        segments, positions, cache = cache.extend(tokens)
        if source:
            cache = cache._replace(source_segments=source.get("source_segments"))
        batch: Any = {"tokens": tokens, "positions": positions, "segments": segments}
        batch |= {**(source or {}), "source_segments": cache.source_segments}
        x, (values, _) = apply({"params": params}, batch, None, cache.key_values())
        scores = head_logits(select_head(params, spec), x[:, -1:])  # of [B, L, V]: prompts are long
        return scores[:, 0, : spec.vocab], cache.with_values(values)

    def pooled(x: Array, batch: Batch, count: int) -> Array:
        return pooled_segments(x, batch.get("segments"), count, spec.head.pool)

    head_logits = partial(logits, spec=spec, layout=layout, dtype=dtype)
    return Forward(hidden, partial(select_head, spec=spec), head_logits, decode, pooled)


def init_params(spec: ModelSpec, layout: Layout, key: Array, dtype: DTypeLike) -> Params:
    """Random parameters stored in `dtype`, made where they lie: the same on every mesh."""
    shardings = jax.tree.map(lambda s: s.sharding, param_shapes(spec, layout, dtype))
    return jax.jit(partial(_init, spec, layout, dtype), out_shardings=shardings)(key)


def init_head(spec: ModelSpec, layout: Layout, key: Array, dtype: DTypeLike) -> Params:
    """A random head alone, stored in `dtype` and made where it lies: the same on every mesh."""

    def made(key: Array) -> Params:
        head: Any = Head(spec, jnp.float32).init(key, jnp.zeros((1, spec.embed)))
        return jax.tree.map(lambda leaf: leaf.astype(dtype), {"head": head["params"]})

    lies = layout.shardings(jax.eval_shape(made, key), AXES)
    return jax.jit(made, out_shardings=lies)(key)


def param_shapes(spec: ModelSpec, layout: Layout, dtype: DTypeLike) -> Params:
    """The parameters as ShapeDtypeStructs with their shardings, without making any."""
    shapes = jax.eval_shape(partial(_init, spec, layout, dtype), jax.random.key(0))
    return layout.placed(shapes, AXES)


def _init(spec: ModelSpec, layout: Layout, dtype: DTypeLike, key: Array) -> Params:
    one = jnp.ones((layout.size("batch"), 8), jnp.int32)
    names = "tokens", "positions", "segments", "source", "source_positions", "source_segments"
    plain = spec.model_copy(update={"attention": "full"})  # a kernel may not take so short a row
    params = Transformer(plain, layout, jnp.float32).init(key, dict.fromkeys(names, one))["params"]
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)
