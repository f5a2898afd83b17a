"""Learning-rate schedules: from updates done to a rate.

Adding one is a function here, a row in SCHEDULES, and its keys in config/optimizers.py.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from jaxlm.config import optimizers as keys

Rate = Callable[[Any], Any]


def constant(s: keys.Constant, peak: float, steps: int) -> Rate:
    """The rate stays at its peak."""
    return optax.constant_schedule(peak)


def linear(s: keys.Linear, peak: float, steps: int) -> Rate:
    """On a line from the peak to `final` x peak at the last step."""
    return optax.linear_schedule(peak, peak * s.final, max(steps - s.warmup, 1))


def cosine(s: keys.Cosine, peak: float, steps: int) -> Rate:
    """Half a cosine from the peak to `final` x peak (Loshchilov & Hutter 2017, eq. 5)."""
    return optax.cosine_decay_schedule(peak, max(steps - s.warmup, 1), alpha=s.final)


def warmup_stable_decay(s: keys.WarmupStableDecay, peak: float, steps: int) -> Rate:
    """The peak, then a line to `final` x peak over the last share `decay` of the steps."""
    left = max(steps - s.warmup, 1)
    falling = min(max(round(s.decay * steps), 1), left)
    return optax.linear_schedule(peak, peak * s.final, falling, transition_begin=left - falling)


def inverse_square_root(s: keys.InverseSquareRoot, peak: float, steps: int) -> Rate:
    """peak x sqrt(warmup / step) (Vaswani et al. 2017, eq. 3)."""
    return lambda count: peak * jnp.sqrt(s.warmup / jnp.maximum(count + s.warmup, 1))


SCHEDULES: dict[str, Callable[..., Rate]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "wsd": warmup_stable_decay,
    "inverse_sqrt": inverse_square_root,
}


def schedule(s: Any, peak: float, steps: int) -> Rate:
    """Updates done -> rate: a linear warm-up from peak / warmup, then the schedule's own fall."""
    after = SCHEDULES[s.type](s, peak, steps)
    if not s.warmup:
        return after
    warm = optax.linear_schedule(peak / s.warmup, peak, max(s.warmup - 1, 1))
    return optax.join_schedules([warm, after], [s.warmup])


def unfinished(s: Any, steps: int) -> str | None:
    """What to say of a warm-up that does not end within the run's `steps`, if it does not."""
    if s.warmup <= steps:
        return None
    share = steps / s.warmup
    return (
        f"optimizer.schedule.warmup={s.warmup} is longer than the run of {steps} steps: the rate "
        f"only reaches {share:.0%} of its peak; use {max(steps // 10, 1)} or so"
    )
