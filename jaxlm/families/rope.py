"""Rotary positions in config.json, in both dialects.

    rope_theta, rope_scaling, partial_rotary_factor     older: beside one another
    rope_parameters                                     newer: in one object, per layer type in some

Both are written; where a file has both, they must agree.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxlm.families.config import Config, Fields
from jaxlm.models.spec import ModelSpec, Rope

FULL, SLIDING = "full_attention", "sliding_attention"
LOCAL_THETA = 10000.0
"""Of Gemma 3, when absent."""


@dataclass(frozen=True)
class Dialect:
    """What a family calls its keys, and what transformers takes for absent ones."""

    theta: float = 10000.0
    theta_key: str = "rope_theta"
    share: float = 1.0
    share_key: str = ""
    """The older key of the share of a head that turns; "": the family turns all of it."""
    original_key: str = ""
    """The key beside the objects that holds the trained length; "": it is inside them."""
    original: int = 0
    """Its value when absent."""
    kinds: tuple[str, ...] = ("linear", "dynamic", "llama3", "yarn", "longrope")
    renamed: tuple[str, ...] = ()
    """Older names of longrope."""


PLAIN = Dialect()


def read_rope(config: Config, length: int, dialect: Dialect = PLAIN) -> Fields:
    """rope.* of a file in which all layers turn alike, and max_length where a scaling sets it.

    length: the file's max_position_embeddings.
    """
    return _agreed(config, config.part("rope_parameters"), length, dialect)


def read_layered(config: Config, length: int, dialect: Dialect, local_key: str) -> Fields:
    """The same, of a family with another base in layers with a window. Both bases are set."""
    newer = config.part("rope_parameters")
    full, near = (newer.part(kind) if newer else None for kind in (FULL, SLIDING))
    fields = _agreed(config, full, length, dialect)
    beside = _positive(config, local_key)
    local = beside or LOCAL_THETA
    if near:
        if (kind := _kind(near)) != "default":
            raise near.error("rope_type", f"is not supported in layers with a window: {kind}")
        local = _positive(near, "rope_theta") or local
    if beside and local != beside:
        raise config.error(local_key, f"is not rope_theta={local} of {SLIDING}")
    return fields | {"rope.local_theta": local}


def write_rope(spec: ModelSpec, dialect: Dialect = PLAIN) -> dict[str, Any]:
    """The keys of both dialects."""
    rope = spec.rope
    scaling = _scaling(rope, dialect)
    newer: dict[str, Any] = {"rope_type": "default"}
    newer |= {"rope_type" if key == "type" else key: value for key, value in scaling.items()}
    newer["rope_theta"] = rope.theta
    if rope.scaling in ("llama3", "yarn", "longrope"):
        newer["original_max_position_embeddings"] = rope.original_length
    keys: dict[str, Any] = {dialect.theta_key: rope.theta}
    if dialect.share_key:
        newer["partial_rotary_factor"] = keys[dialect.share_key] = rope.share
    if rope.scaling == "dynamic":
        keys["max_position_embeddings"] = rope.original_length
    if dialect.original_key:
        longer = rope.scaling == "longrope"
        keys[dialect.original_key] = rope.original_length if longer else spec.max_length
    return keys | {"rope_scaling": scaling or None, "rope_parameters": newer}


def write_layered(spec: ModelSpec, dialect: Dialect, local_key: str) -> dict[str, Any]:
    """The same, with the base of layers with a window."""
    keys = write_rope(spec, dialect)
    keys[local_key] = spec.rope.local_theta or spec.rope.theta
    near = {"rope_type": "default", "rope_theta": keys[local_key]}
    return keys | {"rope_parameters": {FULL: keys["rope_parameters"], SLIDING: near}}


class _Beside(NamedTuple):
    """What stands beside the objects; 0 is absent."""

    theta: float
    share: float
    original: int


def _agreed(config: Config, newer: Config | None, length: int, dialect: Dialect) -> Fields:
    """What rope_scaling and the newer object say, or the one that is there."""
    beside = _Beside(
        _positive(config, dialect.theta_key),
        _positive(config, dialect.share_key) if dialect.share_key else 0.0,
        config.get(dialect.original_key, dialect.original) if dialect.original_key else 0,
    )
    parts = [part for part in (config.part("rope_scaling"), newer) if part]
    found = [_parsed(part, length, dialect, beside) for part in parts or [Config({})]]
    if found[0] != found[-1]:
        raise config.error("rope_scaling", "says other than rope_parameters; remove one of them")
    return found[0]


def _positive(config: Config, key: str) -> float:
    """A base or a share; 0 when absent."""
    value = config.get(key, 0.0)
    if value <= 0 and key in config:
        raise config.error(key, "is not positive")
    return value


def _kind(part: Config) -> str:
    """The scaling's name; older files call the key `type`, some have both."""
    return part.get("rope_type", part.get("type", "default"))


def _parsed(part: Config, length: int, dialect: Dialect, beside: _Beside) -> Fields:
    """rope.* of one object."""
    theta = _positive(part, "rope_theta") or beside.theta or dialect.theta
    if beside.theta and theta != beside.theta:
        raise part.error("rope_theta", f"is not {dialect.theta_key}={beside.theta} beside it")
    share = _positive(part, "partial_rotary_factor") or beside.share or dialect.share
    if beside.share and share != beside.share:
        raise part.error("partial_rotary_factor", f"is not {dialect.share_key}={beside.share}")
    if not dialect.share_key and share != 1.0:
        raise part.error("partial_rotary_factor", "is not supported in this family")
    fields: Fields = {"rope.theta": theta, "rope.share": share}
    kind = _kind(part)
    kind = "longrope" if kind in dialect.renamed else kind
    if kind == "default":
        return fields
    if kind not in dialect.kinds:
        key = "rope_type" if "rope_type" in part else "type"
        known = ", ".join(("default", *dialect.kinds))
        raise part.error(key, f"is not supported; known are {known}")
    if theta <= 1:
        raise part.error("rope_theta", f"is {theta}; a base that is stretched is over 1")
    original = part.get("original_max_position_embeddings", beside.original or length)
    if beside.original and original != beside.original:
        what = f"is not {dialect.original_key}={beside.original} beside it"
        raise part.error("original_max_position_embeddings", what)
    if original < 2:
        raise part.error("original_max_position_embeddings", "is not a length")
    return fields | {"rope.scaling": kind} | READERS[kind](part, length, original)


def _factor(part: Config) -> float:
    """By how much a scaling stretches."""
    factor = part.need("factor", float)
    if factor < 1:
        raise part.error("factor", "is less than 1")
    return factor


def _linear(part: Config, length: int, original: int) -> Fields:
    return {"rope.factor": _factor(part)}


def _dynamic(part: Config, length: int, original: int) -> Fields:
    if original != length:
        what = f"is not max_position_embeddings={length}, from which transformers stretches"
        raise part.error("original_max_position_embeddings", what)
    factor = _factor(part)
    stretched = round(factor * length)
    return {"rope.factor": factor, "rope.original_length": length, "max_length": stretched}


def _llama3(part: Config, length: int, original: int) -> Fields:
    names = ("factor", "low_freq_factor", "high_freq_factor")
    factor, low, high = (part.need(name, float) for name in names)
    if high <= low:
        raise part.error("high_freq_factor", f"is not more than low_freq_factor={low}")
    return {
        "rope.factor": factor,
        "rope.low_freq_factor": low,
        "rope.high_freq_factor": high,
        "rope.original_length": original,
    }


def _yarn(part: Config, length: int, original: int) -> Fields:
    part.any("finetuned")  # how the factor was come by
    factor = _factor(part)
    if not part.get("truncate", True):
        raise part.error("truncate", "is not supported")
    top, bottom = part.get("mscale", 0.0), part.get("mscale_all_dim", 0.0)
    warmth = part.get("attention_factor", 0.0)
    if not warmth and top and bottom:
        warmth = (0.1 * top * math.log(factor) + 1) / (0.1 * bottom * math.log(factor) + 1)
    return {
        "rope.factor": factor,
        "rope.beta_fast": part.get("beta_fast", 0.0) or 32.0,
        "rope.beta_slow": part.get("beta_slow", 0.0) or 1.0,
        "rope.attention_factor": warmth,
        "rope.original_length": original,
    }


def _longrope(part: Config, length: int, original: int) -> Fields:
    warmth, factor = part.get("attention_factor", 0.0), part.get("factor", 0.0)
    if not warmth and factor and factor != length / original:
        warmth = math.sqrt(1 + math.log(max(factor, 1.0)) / math.log(original))
    return {
        "rope.short": part.numbers("short_factor"),
        "rope.long": part.numbers("long_factor"),
        "rope.attention_factor": warmth,
        "rope.original_length": original,
    }


READERS: dict[str, Callable[[Config, int, int], Fields]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
"""Of each scaling: (its object, the file's length, the trained length) -> fields."""

USED: dict[str, tuple[str, ...]] = {
    "none": (),
    "linear": ("factor",),
    "dynamic": ("factor", "original_length"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_length"),
    "yarn": ("factor", "beta_fast", "beta_slow", "attention_factor", "original_length"),
    "longrope": ("attention_factor", "short", "long", "original_length"),
}
"""Fields of Rope that each scaling reads, beside theta, local_theta and share."""

RENAMED = {
    "short": "short_factor",
    "long": "long_factor",
    "original_length": "original_max_position_embeddings",
}
"""Of those, the ones that config.json calls otherwise."""


def _scaling(rope: Rope, dialect: Dialect) -> dict[str, Any]:
    """rope_scaling, empty without one. An attention_factor of 0 is left out."""
    if rope.scaling == "none":
        return {}
    oldest = rope.scaling in ("linear", "dynamic", "longrope")  # readers that want `type`
    found: dict[str, Any] = {"type" if oldest else "rope_type": rope.scaling}
    beside = rope.scaling == "dynamic" or dialect.original_key
    for name in USED[rope.scaling]:
        value = getattr(rope, name)
        if value and not (name == "original_length" and beside):
            found[RENAMED.get(name, name)] = list(value) if isinstance(value, tuple) else value
    return found
