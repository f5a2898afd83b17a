"""What a whole run takes: tokens, days, energy and money."""

from dataclasses import dataclass

from jaxlm.plan.sketch import Sketch


@dataclass(frozen=True)
class Rate:
    """How fast a step is. The share of the peak by both conventions."""

    seconds: float
    tokens_per_second: float
    """Of one device."""
    mfu_causal: float
    mfu_full: float


@dataclass(frozen=True)
class Total:
    """Of all steps without a stop; None is what is not known."""

    steps: int
    tokens: int
    days: float
    kilowatt_hours: float | None
    dollars: float | None


def rate(sketch: Sketch) -> Rate | None:
    """None where the device's speed is not known."""
    time, peak = sketch.time, sketch.machine.device.peak
    if time is None or peak is None:
        return None
    load = sketch.load
    causal = load.product_flops + load.attention_flops
    full = causal + (load.attention_flops if sketch.model.spec.structure == "decoder" else 0)
    each = load.tokens / time.total
    return Rate(time.total, each, each * causal / peak, each * full / peak)


def total(sketch: Sketch) -> Total | None:
    """None where the steps or the time of one are not known."""
    steps, found = sketch.model.config.steps, rate(sketch)
    if not steps or not found:
        return None
    machine = sketch.machine
    hours = steps * found.seconds / 3600
    watts, price = machine.device.watts, machine.device.price
    return Total(
        steps=steps,
        tokens=steps * sketch.tokens,
        days=hours / 24,
        kilowatt_hours=watts and watts * machine.count * hours / 1000,
        dollars=price and price.dollars * machine.count * hours,
    )
