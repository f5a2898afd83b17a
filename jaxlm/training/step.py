"""One update. It knows no objective, no model and no LoRA: it is given them.

State is parameters and optimizer state. Randomness and data are functions of the step, so a run
that stops and goes on is the run that never stopped.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxlm.core.tree import Mask, Params, combine, partition, widened
from jaxlm.objectives.base import Batch, Objective, Sums
from jaxlm.training.cached import by_parts, split

if TYPE_CHECKING:
    from jaxlm.models.transformer import Forward

Metrics = dict[str, Array]


@partial(
    jax.tree_util.register_dataclass, data_fields=["step", "params", "opt_state"], meta_fields=[]
)
@dataclass
class TrainState:
    """What an update changes. No optimizer, no key: the caller passes them."""

    step: Array
    """Updates asked for so far, int32 []; skipped ones count."""
    params: Params
    """Every parameter, trained or frozen."""
    opt_state: optax.OptState
    """Of the trained parameters alone."""


def train_step(
    state: TrainState,
    batch: Batch,
    key: Array,
    *,
    forward: "Forward",
    objective: Objective,
    tx: optax.GradientTransformation,
    trainable: Mask,
    microbatches: int,
) -> tuple[TrainState, Metrics]:
    """One update: differentiates only what is trainable, sums over microbatches, divides once.

    batch: arrays [B, L]; B a multiple of microbatches. key: the run's root; the step is folded in
    here, then each row its index. A NaN or infinite gradient leaves parameters and optimizer state
    bit for bit as they were, and counts as skipped.

    Returns the next state, and sums: loss, weight, the objective's own, grad_norm (of the mean
    gradient, before clipping) and skipped.
    """
    live, frozen = partition(state.params, trainable)
    keys = row_keys(key, state.step, batch["tokens"].shape[0])
    objective, batch = by_parts(objective, forward, state.params, batch, keys, microbatches)

    def loss(live: Params, batch: Batch, keys: Array) -> tuple[Array, Sums]:
        sums = objective.loss(forward, combine(live, frozen), batch, keys)
        return sums.loss + sum(sums.auxiliary.values()), sums

    grads, sums = accumulate(jax.grad(loss, has_aux=True), live, batch, keys, microbatches)
    weight = jnp.where(sums.weight > 0, sums.weight, 1.0)  # nothing but filler: 0 / 1
    grads = jax.tree.map(lambda g: g / weight, widened(grads))
    norm = optax.tree.norm(grads)
    good = jnp.isfinite(norm) & jnp.isfinite(sums.loss)
    # In float32 also when parameters are stored in 16 bits: moments and norms need the range.
    updates, opt_state = tx.update(grads, state.opt_state, widened(live))
    moved = optax.apply_updates(widened(live), updates)

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(good, new.astype(old.dtype), old)

    live = jax.tree.map(keep, moved, live)
    opt_state = jax.tree.map(keep, opt_state, state.opt_state)
    metrics = {
        "loss": sums.loss,
        "weight": sums.weight,
        **sums.auxiliary,
        **sums.extra,
        "grad_norm": norm,
        "skipped": (~good).astype(jnp.int32),
    }
    return TrainState(state.step + 1, combine(live, frozen), opt_state), metrics


def compile_step(
    step: Any, state: TrainState, batch: Batch, key: Array, options: dict[str, Any] | None = None
) -> jax.stages.Compiled:
    """`step` compiled for arrays like these, with the compiler's `options`. The state is donated,
    and the next one lies where it lay: left to itself XLA moves some leaves, and a compiled step
    does not take them back.
    """
    lies = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(
        step, donate_argnums=0, out_shardings=(lies, None), compiler_options=options or None
    )
    return jitted.lower(state, batch, key).compile()


def eval_step(params: Params, batch: Batch, *, forward: "Forward", objective: Objective) -> Sums:
    """The objective's sums over one batch, without dropout."""
    return objective.loss(forward, params, batch, None)


def row_keys(key: Array, step: Array, rows: int) -> Array:
    """A key per row [B] of this step: the same however the batch is split."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(partial(jax.random.fold_in, step_key))(jnp.arange(rows))


def accumulate(
    grad: Any, live: Params, batch: Batch, keys: Array, microbatches: int
) -> tuple[Params, Sums]:
    """Gradients and sums over the batch, `microbatches` parts one after the other, in float32."""
    if microbatches == 1:
        return grad(live, batch, keys)
    parts = split((batch, keys), microbatches)
    shapes = jax.eval_shape(grad, live, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, _wide(s.dtype)), shapes)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, grad(live, *part)), None

    return jax.lax.scan(add, zeros, parts)[0]


def _wide(dtype: Any) -> Any:
    return jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype
