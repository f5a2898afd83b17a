"""Optimizers over optax, and the decay mask by name.

Adding one is a function here, a row in OPTIMIZERS, and its keys in config/optimizers.py.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm.config import optimizers as keys
from jaxlm.core import tree
from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import AxesTable, Layout, logical_axes
from jaxlm.core.parts import whole
from jaxlm.core.tree import Params
from jaxlm.training.schedule import Rate, schedule


class Optimizer(NamedTuple):
    """What the loop needs of an optimizer."""

    tx: optax.GradientTransformation
    rate: Rate
    """Updates done (skipped steps do not count) -> the rate of the next one."""
    averaged: Callable[[optax.OptState, Params], Params]
    """(state, trained parameters) -> those that are evaluated, sampled from and exported."""


class Decay(NamedTuple):
    """Decoupled weight decay and the parameters that have it."""

    weight: float
    mask: Any


def adamw(o: keys.AdamW, rate: Rate, decay: Decay, axes: AxesTable) -> optax.GradientTransformation:
    """Loshchilov & Hutter 2019, algorithm 2."""

    def exact(count: Any) -> Any:
        """The rate, with what the bias corrections lack: 1 - b^t in float32 is off by 1e-5."""
        t = count + 1
        first, second = (-jnp.expm1(t * jnp.log1p(b - 1)) / (1 - b**t) for b in (o.b1, o.b2))
        return rate(count) * jnp.sqrt(second) / first

    return optax.adamw(
        exact, o.b1, o.b2, o.eps, mu_dtype=o.state_dtype, weight_decay=decay.weight, mask=decay.mask
    )


def lion(o: keys.Lion, rate: Rate, decay: Decay, axes: AxesTable) -> optax.GradientTransformation:
    """Chen et al. 2023, algorithm 2."""
    return optax.lion(
        rate, o.b1, o.b2, mu_dtype=o.state_dtype, weight_decay=decay.weight, mask=decay.mask
    )


def adafactor(
    o: keys.Adafactor, rate: Rate, decay: Decay, axes: AxesTable
) -> optax.GradientTransformation:
    """Shazeer & Stern 2018, algorithm 4, with an absolute rate instead of a relative one."""
    momentum = [] if o.b1 is None else [optax.ema(o.b1, False, o.state_dtype)]
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        *momentum,
        optax.add_decayed_weights(decay.weight, decay.mask),
        optax.scale_by_learning_rate(rate),
    )


def muon(o: keys.Muon, rate: Rate, decay: Decay, axes: AxesTable) -> optax.GradientTransformation:
    """Jordan et al. 2024, with updates of AdamW's size (Liu et al. 2025, eq. 4): one rate serves
    matrices and the rest. What is a matrix comes from the axes table, not from the rank.
    """
    direction = optax.contrib.muon(
        -1.0,  # decay and rate follow: optax would decay the matrices alone
        beta=o.momentum,
        mu_dtype=o.state_dtype,
        adam_b1=o.b1,
        adam_b2=o.b2,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: matrices(params, axes),
    )
    return optax.chain(
        direction,
        optax.add_decayed_weights(decay.weight, decay.mask),
        optax.scale_by_learning_rate(rate),
    )


def schedule_free_adamw(
    o: keys.ScheduleFreeAdamW, rate: Rate, decay: Decay, axes: AxesTable
) -> optax.GradientTransformation:
    """Defazio et al. 2024, algorithm 1. The state's z starts as the parameters, and is float32: it
    adds up updates that are smaller than bfloat16 can tell.
    """
    base = optax.chain(
        optax.scale_by_rms(o.b2, o.eps, bias_correction=True),
        optax.add_decayed_weights(decay.weight, decay.mask),
        optax.scale_by_learning_rate(rate),
    )
    return optax.contrib.schedule_free(base, rate, b1=o.b1, state_dtype=jnp.float32)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": adamw,
    "lion": lion,
    "adafactor": adafactor,
    "muon": muon,
    "schedule_free_adamw": schedule_free_adamw,
}


def build(o: Any, live: Params, *, steps: int, axes: AxesTable, b_rate: float = 1.0) -> Optimizer:
    """The optimizer of a config section for the trained parameters `live` (arrays or shapes).

    b_rate: what the rate of adapters' B is multiplied by (Hayou et al. 2024, section 4). Raises
    ConfigError for a combination that would train badly in silence.
    """
    free = o.type == "schedule_free_adamw"
    if free and any(leaf.dtype != jnp.float32 for leaf in jax.tree.leaves(live)):
        raise ConfigError(
            "param_dtype",
            f"{o.type} averages in the parameters' type, too coarse here; use param_dtype=float32",
        )
    rate = schedule(o.schedule, o.learning_rate, steps)
    exempt = [re.compile(pattern) for pattern in (*o.no_decay, "/lora_m$")]  # a norm, as it were
    mask = tree.map_named(lambda name, _: not any(p.search(whole(name)) for p in exempt), live)
    tx = OPTIMIZERS[o.type](o, rate, Decay(o.weight_decay, mask), axes)
    if b_rate != 1.0:
        if free:
            raise ConfigError("lora.b_rate", f"{o.type} has one rate; use optimizer.type=adamw")
        tx = optax.chain(tx, faster("/lora_b$", b_rate))
    if o.clip is not None:
        tx = optax.chain(optax.clip_by_global_norm(o.clip), tx)
    return Optimizer(tx, rate, average if free else _same)


def faster(pattern: str, by: float) -> optax.GradientTransformation:
    """The updates of the parameters whose name has `pattern`, times `by`."""
    mine = re.compile(pattern)
    return optax.stateless(
        lambda updates, _: tree.map_named(lambda n, u: u * by if mine.search(n) else u, updates)
    )


def matrices(params: Any, axes: AxesTable) -> Any:
    """Muon's dimension numbers: inputs against outputs for kernels of blocks, None for the rest."""

    def one(name: str, leaf: Any) -> Any:
        dims = logical_axes(name, axes)
        if not name.endswith("/kernel") or "blocks/" not in name or dims is None:
            return None
        first = 2 if dims[1] == "experts" else 1  # each layer's, and each expert's, is a matrix
        split = first + 1 if dims[first] == "embed" else dims.index("embed")
        return optax.contrib.MuonDimensionNumbers(
            tuple(range(first, split)), tuple(range(split, leaf.ndim))
        )

    return tree.map_named(one, params)


def average(state: optax.OptState, live: Params) -> Params:
    """Schedule-free's x, from y (the parameters) and z (Defazio et al. 2024, eq. 4)."""
    is_free = lambda node: isinstance(node, optax.contrib.ScheduleFreeState)  # noqa: E731
    free = next(n for n in jax.tree.leaves(state, is_leaf=is_free) if is_free(n))
    x = optax.contrib.schedule_free_eval_params(free, live)
    return jax.tree.map(lambda a, p: a.astype(p.dtype), x, live)


def _same(state: optax.OptState, live: Params) -> Params:
    return live


def init_state(
    tx: optax.GradientTransformation, live: Params, layout: Layout, axes: AxesTable
) -> optax.OptState:
    """The optimizer's first state, each leaf sharded as its parameter.

    Without out_shardings jit would replicate the moments: zeros depend on no data.
    """

    def init(live: Params) -> optax.OptState:
        # A copy, because schedule-free keeps the parameters and both are donated to the step.
        return tx.init(jax.tree.map(jnp.copy, tree.widened(live)))

    shardings = jax.tree.map(lambda s: s.sharding, state_shapes(tx, live, layout, axes))
    return jax.jit(init, out_shardings=shardings)(live)


def state_shapes(
    tx: optax.GradientTransformation, live: Params, layout: Layout, axes: AxesTable
) -> optax.OptState:
    """The optimizer's state for parameters like `live`, as ShapeDtypeStructs with shardings."""
    return layout.placed(jax.eval_shape(tx.init, tree.widened(live)), axes)
