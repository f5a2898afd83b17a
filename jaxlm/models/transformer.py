"""The one transformer body, and the network as pure functions of a plain dict.

Decoder-only is one causal Stack. Encoders and cross-attention are another Stack with other
settings, not another body. Layers are always scanned: a speed setting never changes the tree.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import Layout
from jaxlm.core.tree import Params
from jaxlm.models.attention import attend_cached, attention
from jaxlm.models.axes import AXES
from jaxlm.models.cache import Cache, KeyValues, write_cache
from jaxlm.models.experts import Experts
from jaxlm.models.heads import logits, padded_vocab, select_head
from jaxlm.models.layers import Dense, Kernel, Mlp, Normalize, dropout
from jaxlm.models.rope import rotary, rotate
from jaxlm.models.scores import Scores
from jaxlm.models.spec import ModelSpec

Batch = dict[str, Array]
Aux = dict[str, Array]

REMAT: dict[str, Any] = {
    "products": jax.checkpoint_policies.save_only_these_names("product", "attention"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Forward(NamedTuple):
    """The network as pure functions. Keys is a key per row [B], or None: no dropout."""

    hidden: Callable[[Params, Batch, Array | None], tuple[Array, Aux]]
    """tokens, positions and, when rows are packed, segments [B, L] -> hidden states [B, L, D] after
    the final norm, and sums to add to the loss."""
    head: Callable[[Params], Params]
    """The few leaves the logits need: what the loss differentiates beside the hidden states."""
    logits: Callable[[Params, Array], Array]
    """(head, [..., D]) -> [..., padded V] float32; columns beyond the vocabulary are -1e9."""
    decode: Callable[[Params, Array, Cache], tuple[Array, Cache]]
    """tokens [B, L] after what the cache holds -> logits of the last [B, V], the longer cache."""


class Attention(nn.Module):
    """Multi-head attention with grouped keys and values, over the sequence or over a cache."""

    spec: ModelSpec
    layout: Layout
    dtype: DTypeLike
    causal: bool

    @nn.compact
    def __call__(
        self, x: Array, segments: Array | None, turn: Any, cache: KeyValues | None, near: Any
    ) -> tuple[Array, KeyValues | None]:
        """near: whether this layer has the spec's window, bool or bool []."""
        spec = self.spec
        embed, size = (spec.embed,), spec.head_dim
        dense = partial(Dense, dtype=self.dtype, scale=spec.init_scale)
        q = dense(embed, (spec.heads, size), bias=spec.bias.qkv, name="q")(x)
        k = dense(embed, (spec.kv_heads, size), bias=spec.bias.qkv, name="k")(x)
        v = dense(embed, (spec.kv_heads, size), bias=spec.bias.qkv, name="v")(x)
        if spec.norm.qk != "none":
            q, k = self._normalized(q, "q_norm"), self._normalized(k, "k_norm")
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        how = Scores(
            spec.scale.query or size**-0.5, self.causal, spec.window.size, spec.scale.scores_cap
        )
        if cache is None:
            y = self._attend(q, k, v, segments, how, near)
        else:
            cache = write_cache(cache, k, v)
            y = attend_cached(q, cache, segments, how, windowed=near)
        out = dense((spec.heads, size), embed, bias=spec.bias.out, scale=_out_scale(spec), name="o")
        return out(y), cache

    def _normalized(self, x: Array, name: str) -> Array:
        together = x.reshape(*x.shape[:2], -1) if self.spec.norm.qk == "all" else x
        return Normalize(self.spec.norm, name=name)(together).reshape(x.shape)

    def _attend(
        self, q: Array, k: Array, v: Array, segments: Array | None, how: Scores, near: Any
    ) -> Array:
        attend = partial(attention, layout=self.layout, backend=self.spec.attention)
        if isinstance(near, bool):
            return attend(q, k, v, segments, how=how if near else how._replace(window=0))
        return jax.lax.cond(  # both are in the program, and a layer runs its own
            near,
            partial(attend, how=how),
            partial(attend, how=how._replace(window=0)),
            *(q, k, v, segments),
        )


class Block(nn.Module):
    """Attention and MLP around the residual stream. A layer of the scan."""

    spec: ModelSpec
    layout: Layout
    dtype: DTypeLike
    causal: bool

    @nn.compact
    def __call__(
        self, x: Array, shared: tuple[Any, ...], layer: Array, cache: KeyValues | None
    ) -> tuple[Array, KeyValues | None]:
        spec, (segments, turns, keys) = self.spec, shared
        near = _windowed(spec, layer)
        turn = turns and jax.tree.map(partial(_either, near), turns[1], turns[0])
        attend = Attention(spec, self.layout, self.dtype, self.causal, name="attn")
        y, cache = attend(self._before(x, "attn"), segments, turn, cache, near)
        read = x
        x = self._residual(x, self._after(y, "attn"), keys, 2 * layer + 1)
        y = self._mlp(self._before(read if spec.parallel else x, "mlp"))
        return self._residual(x, self._after(y, "mlp"), keys, 2 * layer + 2), cache

    def _mlp(self, x: Array) -> Array:
        spec = self.spec
        if spec.experts.count:
            return Experts(spec, self.layout, self.dtype, _out_scale(spec), name="experts")(x)
        return Mlp(
            spec.mlp,
            spec.activation,
            spec.gated,
            spec.bias.mlp,
            self.dtype,
            spec.init_scale,
            _out_scale(spec),
            name="mlp",
        )(x)

    def _before(self, x: Array, name: str) -> Array:
        placed = self.spec.norm.place != "after"
        return Normalize(self.spec.norm, name=f"{name}_norm")(x) if placed else x

    def _after(self, x: Array, name: str) -> Array:
        placed = self.spec.norm.place != "before"
        return Normalize(self.spec.norm, name=f"{name}_out_norm")(x) if placed else x

    def _residual(self, x: Array, y: Array, keys: Array | None, site: Array) -> Array:
        x = x + dropout(y, self.spec.dropout, keys, site)
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
    """`spec.layers` blocks, scanned, and the final norm."""

    spec: ModelSpec
    layout: Layout
    dtype: DTypeLike
    causal: bool

    @nn.compact
    def __call__(
        self, x: Array, shared: tuple[Any, ...], cache: KeyValues | None
    ) -> tuple[Array, KeyValues | None]:
        spec, block = self.spec, Block
        if spec.remat != "none":
            block = nn.remat(Block, policy=REMAT[spec.remat], prevent_cse=False)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0, 0),  # pyright: ignore[reportArgumentType]
            length=spec.layers,
            unroll=spec.unroll,
        )
        x, cache = blocks(spec, self.layout, self.dtype, self.causal, name="blocks")(
            x, shared, jnp.arange(spec.layers), cache
        )
        return Normalize(spec.norm, name="final_norm")(x), cache


class Transformer(nn.Module):
    """Embedding and a decoder Stack. The head's leaf is declared here and used by `heads`."""

    spec: ModelSpec
    layout: Layout
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        segments: Array | None,
        positions: Array,
        keys: Array | None = None,
        cache: KeyValues | None = None,
    ) -> tuple[Array, KeyValues | None]:
        spec = self.spec
        init = nn.initializers.normal(spec.init_scale)
        x = Table((padded_vocab(spec), spec.embed), init, self.layout, name="embed")(tokens)
        x = x * jnp.asarray(spec.scale.embed, x.dtype)
        turns = None
        if spec.positions == "learned":
            table = Table((spec.max_length, spec.embed), init, self.layout, name="positions")
            x = x + table(positions)
        elif spec.positions == "rope":
            turn = partial(rotary, positions, spec.head_dim, max_length=spec.max_length)
            turns = turn(spec.rope), turn(spec.rope.local)
        x = dropout(x.astype(self.dtype), spec.dropout, keys, 0)
        x = self.layout.constrain(x, "batch", None, None)
        if not spec.tied:
            Kernel((spec.embed, padded_vocab(spec)), init, name="head")()
        stack = Stack(spec, self.layout, self.dtype, causal=True, name="decoder")
        return stack(x, (segments, turns, keys), cache)


class Table(nn.Module):
    """Rows by index: token embedding and learned positions."""

    shape: tuple[int, int]
    initializer: Callable[..., Array]
    layout: Layout

    @nn.compact
    def __call__(self, index: Array) -> Array:
        table = self.param("embedding", self.initializer, self.shape)
        # Whole rows for the lookup: else the partitioner rematerializes the activations.
        return self.layout.constrain(table, "vocab" if self.name == "embed" else None, None)[index]


def _out_scale(spec: ModelSpec) -> float:
    """Radford et al. 2019, section 2.3: the residual's variance does not grow with depth."""
    return spec.init_scale / math.sqrt(2 * spec.layers)


def make_forward(spec: ModelSpec, layout: Layout, dtype: DTypeLike) -> Forward:
    """The pure functions of a filled spec (see ModelSpec.filled), computing in `dtype`.

    Raises ConfigError when heads, mlp or the vocabulary do not divide over the mesh.
    """
    check_divides(spec, layout)
    apply: Any = Transformer(spec, layout, dtype).apply

    def hidden(params: Params, batch: Batch, keys: Array | None) -> tuple[Array, Aux]:
        x, _ = apply(
            {"params": params}, batch["tokens"], batch.get("segments"), batch["positions"], keys
        )
        return x, {}

    def decode(params: Params, tokens: Array, cache: Cache) -> tuple[Array, Cache]:
        segments, positions, cache = cache.extend(tokens)
        x, values = apply({"params": params}, tokens, segments, positions, None, cache.key_values())
        scores = head_logits(select_head(params), x[:, -1:])  # not [B, L, V]: prompts are long
        return scores[:, 0, : spec.vocab], cache.with_values(values)

    head_logits = partial(logits, spec=spec, layout=layout, dtype=dtype)
    return Forward(hidden, select_head, head_logits, decode)


def init_params(spec: ModelSpec, layout: Layout, key: Array, dtype: DTypeLike) -> Params:
    """Random parameters stored in `dtype`, made where they lie: the same on every mesh."""
    shardings = jax.tree.map(lambda s: s.sharding, param_shapes(spec, layout, dtype))
    return jax.jit(partial(_init, spec, layout, dtype), out_shardings=shardings)(key)


def param_shapes(spec: ModelSpec, layout: Layout, dtype: DTypeLike) -> Params:
    """The parameters as ShapeDtypeStructs with their shardings, without making any."""
    shapes = jax.eval_shape(partial(_init, spec, layout, dtype), jax.random.key(0))
    return layout.placed(shapes, AXES)


def _init(spec: ModelSpec, layout: Layout, dtype: DTypeLike, key: Array) -> Params:
    one = jnp.ones((layout.size("batch"), 8), jnp.int32)
    plain = spec.model_copy(update={"attention": "full"})  # a kernel may not take so short a row
    params = Transformer(plain, layout, jnp.float32).init(key, one, one, one)["params"]
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def check_divides(spec: ModelSpec, layout: Layout) -> None:
    """Refuse what a mesh cannot split: query heads, the MLP, the (padded) vocabulary."""
    sizes = {"heads": spec.heads, "mlp": spec.mlp, "vocab": padded_vocab(spec)}
    for axis, size in sizes.items():
        if size % (shards := layout.size(axis)):
            fits = math.gcd(shards, *sizes.values())
            raise ConfigError(
                "mesh.tensor",
                f"model.{axis}={size} does not split over {shards} devices; use mesh.tensor={fits}",
            )
