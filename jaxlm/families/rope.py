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
    older, newer = config.part("rope_scaling"), config.part("rope_parameters")
    beside = _beside(config, dialect)
    found = [_parsed(part, length, dialect, beside) for part in (older, newer) if part]
    if older and newer and found[0] != found[1]:
        raise config.error("rope_scaling", "says other than rope_parameters; remove one of them")
    return found[0] if found else _parsed(Config({}), length, dialect, beside)


def read_layered(config: Config, length: int, dialect: Dialect, local_key: str) -> Fields:
    """The same, of a family with another base in layers with a window. Both bases are set."""
    newer, beside = config.part("rope_parameters"), _beside(config, dialect)
    parts = {kind: newer.part(kind) if newer else None for kind in (FULL, SLIDING)}
    older = config.part("rope_scaling")
    found = [_parsed(part, length, dialect, beside) for part in (older, parts[FULL]) if part]
    if len(found) == 2 and found[0] != found[1]:
        raise config.error("rope_scaling", "says other than rope_parameters; remove one of them")
    fields = found[0] if found else _parsed(Config({}), length, dialect, beside)
    local = config.get(local_key, 0.0)
    near = parts[SLIDING]
    if near:
        if (kind := _kind(near)) != "default":
            raise near.error("rope_type", f"is not supported in layers with a window: {kind}")
        theta = near.get("rope_theta", local or LOCAL_THETA)
        if local and theta != local:
            raise near.error("rope_theta", f"is not {local_key}={local}")
        local = theta
    return fields | {"rope.local_theta": local or LOCAL_THETA}


def write_rope(spec: ModelSpec, dialect: Dialect = PLAIN) -> dict[str, Any]:
    """The keys of both dialects."""
    rope = spec.rope
    scaling = _scaling(rope, dialect)
    newer: dict[str, Any] = {"rope_type": "default"} | _renamed(scaling)
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


def _beside(config: Config, dialect: Dialect) -> _Beside:
    share = config.get(dialect.share_key, 0.0) if dialect.share_key else 0.0
    key = dialect.original_key
    return _Beside(
        config.get(dialect.theta_key, 0.0), share, config.get(key, dialect.original) if key else 0
    )


def _kind(part: Config) -> str:
    """The scaling's name; older files call the key `type`, some have both."""
    return part.get("rope_type", part.get("type", "default"))


def _parsed(part: Config, length: int, dialect: Dialect, beside: _Beside) -> Fields:
    theta = part.get("rope_theta", beside.theta or dialect.theta)
    if beside.theta and theta != beside.theta:
        raise part.error("rope_theta", f"is not {dialect.theta_key}={beside.theta} beside it")
    fields: Fields = {"rope.theta": theta}
    share = part.get("partial_rotary_factor", beside.share or dialect.share)
    if beside.share and share != beside.share:
        raise part.error("partial_rotary_factor", f"is not {dialect.share_key}={beside.share}")
    if not dialect.share_key and share != 1.0:
        raise part.error("partial_rotary_factor", "is not supported in this family")
    fields["rope.share"] = share
    part.any("type")
    kind = _kind(part)
    kind = "longrope" if kind in dialect.renamed else kind
    if kind == "default":
        return fields
    if kind not in dialect.kinds:
        known = ", ".join(("default", *dialect.kinds))
        key = "rope_type" if "rope_type" in part else "type"
        raise part.error(key, f"is not supported; known are {known}")
    original = part.get("original_max_position_embeddings", beside.original or length)
    if beside.original and original != beside.original:
        what = f"is not {dialect.original_key}={beside.original} beside it"
        raise part.error("original_max_position_embeddings", what)
    if original < 1:
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
    fields: Fields = {f"rope.{name}": part.need(name, float) for name in names}
    return fields | {"rope.original_length": original}


def _yarn(part: Config, length: int, original: int) -> Fields:
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

WRITTEN = {
    "none": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "beta_fast", "beta_slow", "attention_factor"),
    "longrope": ("attention_factor",),
}
"""Fields of Rope that export writes under the same name; an attention_factor of 0 is left out."""


def _scaling(rope: Rope, dialect: Dialect) -> dict[str, Any]:
    """rope_scaling, empty without one."""
    if rope.scaling == "none":
        return {}
    plain = rope.scaling in ("linear", "dynamic", "longrope")
    found: dict[str, Any] = {"type" if plain else "rope_type": rope.scaling}
    found |= {name: getattr(rope, name) for name in WRITTEN[rope.scaling] if getattr(rope, name)}
    if rope.scaling == "longrope":
        found |= {"short_factor": list(rope.short), "long_factor": list(rope.long)}
    if rope.scaling in ("llama3", "yarn", "longrope") and not dialect.original_key:
        found["original_max_position_embeddings"] = rope.original_length
    return found


def _renamed(scaling: dict[str, Any]) -> dict[str, Any]:
    """The same object in the newer dialect, which has `rope_type` for `type`."""
    return {"rope_type" if key == "type" else key: value for key, value in scaling.items()}
