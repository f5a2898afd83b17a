"""Tiny networks, batches and training steps that the tests of several rooms share."""

from collections.abc import Iterable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.core import tree
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.models import lora
from jaxlm.models.axes import AXES
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import make_forward, param_shapes
from jaxlm.objectives.lm import language_model
from jaxlm.training.optim import init_state
from jaxlm.training.step import TrainState, train_step

VOCAB, LENGTH, ROWS = 97, 16, 8
GPT2: dict[str, Any] = {
    "kv_heads": 4,
    "norm": {"type": "layer"},
    "positions": "learned",
    "activation": "gelu_tanh",
    "gated": False,
    "bias": {"qkv": True, "out": True, "mlp": True},
}
"""Changes that make the spec below a GPT-2 instead of a Llama."""
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {**GPT2, "tied": False},
    "gemma": {
        "layers": 3,
        "norm": {"place": "both", "qk": "head", "shift": 1.0},
        "window": {"size": 5, "full": (2,)},
        "rope": {"local_theta": 100.0, "scaling": "linear"},
        "scale": {"embed": 32**0.5, "query": 0.2, "scores_cap": 3.0, "logits_cap": 4.0},
        "activation": "gelu_tanh",
    },
    "mixtral": {"experts": {"count": 4}, "window": {"size": 6}, "tied": False},
    "neox": {**GPT2, "positions": "rope", "rope": {"share": 0.5}, "parallel": True},
    "olmo2": {
        "norm": {"place": "after", "qk": "all"},
        "experts": {"count": 3, "normalized": False},
    },
}
"""Changes that make it each shape whose computation differs."""
_BERT: dict[str, Any] = {
    **GPT2,
    "norm": {"type": "layer", "place": "sum"},
    "embedding": {"types": 2, "offset": 2, "norm": True},
}
PAIRS: dict[str, dict[str, Any]] = {
    "t5": {
        "structure": "encoder-decoder",
        "encoder": {"layers": 3, "start": 1},
        "positions": "relative",
        "relative": {"buckets": 8, "distance": 12},
        "scale": {"query": 1.0, "output": 32**-0.5},
        "gated": False,
        "activation": "relu",
    },
    "bart": {
        **_BERT,
        "structure": "encoder-decoder",
        "embedding": {"offset": 2, "norm": True},
        "head": {"bias": True},
    },
}
"""Encoder-decoders."""
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {
        **_BERT,
        "structure": "encoder",
        "head": {"transform": "gelu", "norm": True, "bias": True},
    },
    "modernbert": {
        "structure": "encoder",
        "layers": 3,
        "norm": {"type": "layer", "bias": False},
        "embedding": {"norm": True},
        "window": {"size": 4, "full": (0,)},
        "rope": {"local_theta": 100.0},
        "head": {"labels": 3, "pool": "mean", "transform": "gelu", "norm": True, "bias": True},
    },
}
"""Encoders, the second with a classifier."""
ROOT = jax.random.key(7)
"""The root of a run's randomness."""


def spec(**changes: Any) -> ModelSpec:
    """A filled spec; two layers of width 32 with grouped heads, unless told otherwise."""
    small = {"layers": 2, "embed": 32, "heads": 4, "kv_heads": 2}
    return ModelSpec.model_validate(small | changes).filled(vocab=VOCAB, max_length=LENGTH)


@cache
def layout(**sizes: int) -> Layout:
    """A mesh of these sizes over the first of the 8 devices; one device without any."""
    return Layout(make_mesh(sizes, jax.devices()[: int(np.prod([*sizes.values(), 1]))]))


def params(spec: ModelSpec, at: Layout | None = None, dtype: Any = jnp.float32) -> tree.Params:
    """Random parameters, norms and biases too, without a compilation: the same on every mesh."""

    def drawn(name: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
        noise = np.random.default_rng([*name.encode()]).normal(size=shape.shape)
        kind = 1 + 0.1 * noise if name.endswith("scale") else 0.2 * noise
        return jax.device_put(jnp.asarray(kind, dtype), shape.sharding)

    return tree.map_named(drawn, param_shapes(spec, at or layout(), dtype))


def batch(rows: int = ROWS, length: int = LENGTH, *, packed: bool = True) -> dict[str, np.ndarray]:
    """Random rows [B, L] with weights from 0 to 2; packed: of two documents and padding."""
    rng = np.random.default_rng(rows * length)
    ids = rng.integers(0, VOCAB, (rows, length + 1)).astype(np.int32)
    cut, end = rng.integers(2, length - 3, (rows, 1)), length - 2 if packed else length
    at = np.arange(length)[None]
    later = (at >= cut) & packed
    real = at < end
    return {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "weights": (rng.uniform(0, 2, ids[:, 1:].shape) * real).astype(np.float32),
        "segments": ((1 + later) * real).astype(np.int32),
        "positions": ((at - later * cut) * real).astype(np.int32),
    }


def loss(spec: ModelSpec, at: Layout | None = None, dtype: Any = jnp.float32) -> Any:
    """(params, batch) -> mean loss of the clm objective."""
    at = at or layout()
    forward, objective = (
        make_forward(spec, at, dtype),
        language_model(z_loss=0.0, shards=at.size("batch")),
    )

    def mean(params: tree.Params, batch: Any) -> jax.Array:
        sums = objective.loss(forward, params, batch, None)
        return sums.loss / sums.weight

    return mean


def trainer(
    spec: ModelSpec,
    tx: optax.GradientTransformation,
    *,
    at: Layout | None = None,
    start: tree.Params | None = None,
    trainable: Iterable[str] = (".",),
    microbatches: int = 1,
    dtype: Any = jnp.float32,
    kl: float = 0.0,
) -> tuple[TrainState, Any]:
    """The first state, and the jitted step (state, batch) -> (state, metrics) of the network.

    trainable: patterns, or a mask.
    """
    at = at or layout()
    start = params(spec, at) if start is None else start
    known = isinstance(trainable, frozenset)
    mask = trainable if known else tree.select(start, trainable)
    opt_state = init_state(tx, tree.partition(start, mask)[0], at, AXES)
    state = TrainState(jax.device_put(jnp.int32(0), at.sharding(())), start, opt_state)
    step = plain_step(spec, tx, mask, at=at, microbatches=microbatches, dtype=dtype, kl=kl)
    lies = jax.tree.map(lambda leaf: leaf.sharding, state)
    return state, jax.jit(partial(step, key=ROOT), out_shardings=(lies, None))


def plain_step(
    spec: ModelSpec,
    tx: optax.GradientTransformation,
    trainable: tree.Mask,
    *,
    at: Layout,
    microbatches: int = 1,
    dtype: Any = jnp.float32,
    kl: float = 0.0,
) -> Any:
    """(state, batch, key) -> (state, metrics): the training step of the clm objective."""
    return partial(
        train_step,
        forward=make_forward(spec, at, dtype),
        objective=language_model(
            z_loss=1e-3, shards=at.size("batch"), kl_to_base=kl, base=lora.without
        ),
        tx=tx,
        trainable=trainable,
        microbatches=microbatches,
    )


def sgd() -> optax.GradientTransformation:
    """Plain gradient descent: what a step computes is seen as it is, not through a sign."""
    return optax.sgd(0.1)


def placed(batch: dict[str, np.ndarray], at: Layout) -> dict[str, jax.Array]:
    """The batch [B, L] on the mesh, rows split."""
    return jax.device_put(batch, at.sharding(("batch", None)))


def assert_close(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    """Two trees with the same names, every leaf equal up to `tolerance` of its largest value, or
    of a hundredth of the largest of all: the gradient of a key's bias, say, is 0 but for rounding.
    """
    a, b = ({k: np.asarray(v, np.float64) for k, v in tree.flatten(x).items()} for x in (a, b))
    assert a.keys() == b.keys()
    least = 0.01 * max(np.abs(y).max(initial=0.0) for y in b.values())
    for name, x in a.items():
        y = b[name]
        scale = max(np.abs(y).max(initial=0.0), least)
        assert x.shape == y.shape and np.abs(x - y).max(initial=0.0) <= tolerance * scale, name


def assert_same(a: Any, b: Any) -> None:
    """Two trees with the same names and types, bit for bit."""
    a, b = tree.flatten(a), tree.flatten(b)
    assert a.keys() == b.keys()
    for name in a:
        x, y = np.asarray(a[name]), np.asarray(b[name])
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes(), name
