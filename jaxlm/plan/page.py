"""A plan as data, and as text."""

from dataclasses import asdict
from typing import Any

from jaxlm.config.schema import RunConfig
from jaxlm.core.words import count, duration, size
from jaxlm.plan.ahead import Ahead
from jaxlm.plan.cost import rate, total
from jaxlm.plan.likeness import unlike
from jaxlm.plan.meshes import Option, differing, larger, nearest, ranked
from jaxlm.plan.sketch import Sketch
from jaxlm.plan.steptime import table
from jaxlm.plan.tuning import Tuned, alternatives

SHARES = "parameters", "gradients", "optimizer", "activations", "loss", "collectives"


def plan(sketch: Sketch, ahead: Ahead | None = None) -> dict[str, Any]:
    """All that is said of a sketch, as JSON has it: the same keys of every sketch, None or nothing
    where something is not known or not asked. Bytes are of one device, seconds of a step.
    """
    use, config, device = sketch.use, sketch.model.config, sketch.machine.device
    whole = total(sketch)
    return {
        "device": str(sketch.machine),
        "devices": sketch.machine.count,
        "mesh": sketch.sizes,
        "model": {key: sketch.model.facts[key] for key in ("parameters", "trained")},
        "memory": {
            **{name: getattr(use, name) for name in SHARES},
            "apart": use.apart,
            "total": use.total,
            "limit": sketch.limit and round(sketch.limit),
            "fits": sketch.fits,
        },
        "nearest": [_option(option, config) for option in _fitting(sketch)],
        "tokens_per_step": sketch.tokens,
        "step": _speed(sketch),
        "run": asdict(whole) if whole else None,
        "price": asdict(device.price) if device.price else None,
        "watts": {"number": device.watts, "source": device.watts_source},
        "meshes": [_option(option, config) for option in ranked(sketch)],
        "tuning": [_tuned(each, config) for each in alternatives(sketch)],
        "compiled": ahead and _said(ahead),
    }


def _fitting(sketch: Sketch) -> list[Option]:
    """What makes it fit, where it does not."""
    if sketch.fits is not False:
        return []
    more = nearest(sketch) or [larger(sketch)]
    return [option for option in more if option]


def _speed(sketch: Sketch) -> dict[str, Any] | None:
    time, speed, differs = sketch.time, rate(sketch), unlike(sketch)
    if time is None or speed is None:
        return None
    fit = table()["fit"]
    return {
        **{k: v for k, v in asdict(time).items() if k != "communication"},
        "communication": dict(time.communication),
        **asdict(speed),
        "published": fit["rows"],
        "unlike": differs,
        "fit": None if differs else fit["left_out"],
    }


def _said(ahead: Ahead) -> dict[str, Any]:
    kinds = {kind: each._asdict() for kind, each in ahead.collectives.items()}
    return asdict(ahead) | {"collectives": kinds}


def text(found: dict[str, Any]) -> str:
    """A plan in lines."""
    axes = [f"{axis}={n}" for axis, n in found["mesh"].items() if n > 1]
    mesh = " x ".join(axes) or "one copy"
    many = "device" if found["devices"] == 1 else "devices"
    model = found["model"]
    part = model["trained"] < model["parameters"]
    trained = f"{count(model['trained'])} of them trained" if part else "all trained"
    lines = [
        f"{found['device']}: {found['devices']:,} {many}, {mesh}",
        f"{count(model['parameters'])} parameters, {trained}; "
        f"{count(found['tokens_per_step'])} tokens a step",
        "",
        *_memory(found),
        *_step(found),
        *_run(found),
        "",
        *_meshes(found["meshes"]),
        *_tuning(found["tuning"]),
        *_compiled(found),
    ]
    return "\n".join(lines)


def _memory(found: dict[str, Any]) -> list[str]:
    memory = found["memory"]
    lines = ["memory of one device, estimated:"]
    lines += [f"  {name:<14}{size(memory[name]):>9}" for name in SHARES]
    if memory["apart"]:
        lines.append(f"  {'not at once':<14}{'-' + size(memory['apart']):>9}")
    has = f" of {size(memory['limit'])}" if memory["limit"] else ""
    says = {True: ": fits", False: ": does not fit", None: "; what the device has is not known"}
    lines.append(f"  {'together':<14}{size(memory['total']):>9}{has}{says[memory['fits']]}")
    if memory["fits"] is False:
        for each in found["nearest"]:
            on = f"--device {each['device']} " if each["device"] != found["device"] else ""
            lines.append(f"  fits with {on}{_words(each)}")
        if not found["nearest"]:
            lines.append("  nothing was found that fits")
    return lines


def _step(found: dict[str, Any]) -> list[str]:
    if (step := found["step"]) is None:
        return ["", "time of a step: not known for this device"]
    parts = "products", "attention", "glue", "exposed", "jitter", "optimizer"
    shown = ", ".join(f"{name} {step[name] / step['seconds']:.0%}" for name in parts if step[name])
    net = ", ".join(f"{axis} {s:.3g} s" for axis, s in step["communication"].items() if s)
    return [
        "",
        *_trust(step),
        f"  {step['seconds']:.3g} s: {shown}",
        f"  network, hidden or not: {net or 'none'}",
        f"  {step['tokens_per_second']:,.0f} tokens/s a device; MFU {step['mfu_causal']:.1%} "
        f"(causal: 6N + 6LTd), {step['mfu_full']:.1%} (full: 6N + 12LTd)",
    ]


def _trust(step: dict[str, Any]) -> list[str]:
    """How far the time of a step can be trusted."""
    if fit := step["fit"]:
        return [
            f"time of a step, by a model that is off by {fit['mean']:.0%} on average and "
            f"{fit['most']:.0%} at most on published runs it was not fitted to:"
        ]
    return [
        f"time of a step, which no published run checks: the {step['published']} are of dense "
        "decoders, trained whole;",
        f"this one is {', '.join(step['unlike'])}:",
    ]


def _run(found: dict[str, Any]) -> list[str]:
    if (run := found["run"]) is None:
        return ["", "the whole run: not known; it needs steps=N and a device whose speed is known"]
    price, watts = found["price"], found["watts"]
    energy, money = "energy not known: no published power", "price not known"
    if run["kilowatt_hours"] is not None:
        energy = f"{run['kilowatt_hours']:,.0f} kWh ({watts['number']:g} W, {watts['source']})"
    if run["dollars"] is not None:
        each = f"${price['dollars']:.2f} a device and hour"
        money = f"${run['dollars']:,.0f} ({each}, {price['date']}, {price['source']})"
    days = duration(86400 * run["days"])
    return [
        "",
        f"{run['steps']:,} steps: {count(run['tokens'])} tokens, {days} without a stop",
        f"  {energy}",
        f"  {money}",
    ]


def _meshes(options: list[dict[str, Any]]) -> list[str]:
    lines = ["meshes, the best first:"]
    for each in options:
        time = f"{each['seconds']:.3g} s" if each["seconds"] else ""
        lack = "" if each["fits"] is not False else "  does not fit"
        lines.append(f"  {time:>8}  {size(each['total']):>8}  {_words(each)}{lack}")
    return lines if options else ["meshes: none divides the model and its batch"]


def _tuning(ways: list[dict[str, Any]]) -> list[str]:
    if not ways:
        return []
    lines = [
        "",
        "against that, adapters of rank 16 on every kernel of such a model that is trained "
        "(init=DIR); no published run checks their speed:",
    ]
    for each in ways:
        speed = f", {each['tokens_per_second']:,.0f} tokens/s a device" if each["seconds"] else ""
        lack = "" if each["fits"] is not False else ", which it does not fit"
        lines.append(
            f"  {each['name']:<6} {count(each['trained'])} trained, {size(each['total'])} a device "
            f"on {each['device']}{lack}{speed}: {_words(each)}"
        )
    return lines


def _compiled(found: dict[str, Any]) -> list[str]:
    if (ahead := found["compiled"]) is None:
        return []
    memory = found["memory"]
    limit = f" of {size(memory['limit'])}" if memory["limit"] else ""
    lines = [
        "",
        f"compiled for {found['device']} in {ahead['seconds']:.0f} s, with at most "
        f"{size(ahead['process_bytes'])} of this machine's memory:",
        f"  memory of one device: {size(ahead['peak'])}{limit} at once "
        f"({size(memory['total'])} estimated), {size(ahead['arguments'])} of it the state",
        f"  {ahead['kernels']} kernels such as attention's",
    ]
    for kind, each in ahead["collectives"].items():
        lines.append(
            f"  {kind:<20}{each['count']:>8,} times a step, {size(each['bytes'])} a device"
        )
    return lines


def _words(each: dict[str, Any]) -> str:
    return " ".join(each["overrides"])


def _option(option: Option, config: RunConfig) -> dict[str, Any]:
    """An option with what a person adds to the command that was given, of `config`."""
    sketch = option.sketch
    return {
        "overrides": differing(config, option.overrides),
        "device": str(sketch.machine),
        "total": sketch.use.total,
        "fits": sketch.fits,
        "seconds": sketch.time.total if sketch.time else None,
    }


def _tuned(each: Tuned, config: RunConfig) -> dict[str, Any]:
    found = rate(each.sketch)
    return _option(Option(each.overrides, each.sketch), config) | {
        "name": each.name,
        "trained": each.trained,
        "tokens_per_second": found.tokens_per_second if found else None,
    }
