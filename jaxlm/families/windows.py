"""Which layers of a configuration have a window."""

from collections.abc import Sequence

from jaxlm.families.config import Config, Fields, brief
from jaxlm.families.rope import FULL, SLIDING
from jaxlm.models.spec import ModelSpec


def window(size: int, sliding: Sequence[bool]) -> Fields:
    """window.* of a size and of whether each layer has it."""
    if not size or not any(sliding):
        return {"window.size": 0, "window.full": ()}
    full = tuple(layer for layer, near in enumerate(sliding) if not near)
    return {"window.size": size, "window.full": full}


def read_size(config: Config, default: int) -> int:
    """sliding_window; null is none, absent is the family's default."""
    if "sliding_window" not in config:
        return 0 if config.is_null("sliding_window") else default
    size = config.get("sliding_window", 0)
    if size < 1:
        raise config.error("sliding_window", "is not a width; write null for no window")
    return size


def read_types(config: Config, layers: int, otherwise: Sequence[bool]) -> Sequence[bool]:
    """Whether each layer has the window: layer_types, or what the family does without the key."""
    types = config.any("layer_types")
    if types is None:
        return otherwise
    if not isinstance(types, list) or len(types) != layers:
        raise config.error("layer_types", f"is not a list of num_hidden_layers={layers} names")
    if other := [kind for kind in types if kind not in (FULL, SLIDING)]:
        raise config.error("layer_types", f"has {brief(other[0])}; known are {FULL} and {SLIDING}")
    return [kind == SLIDING for kind in types]


def sliding_layers(spec: ModelSpec) -> list[bool]:
    """Whether each layer of a spec has a window."""
    return [
        bool(spec.window.size) and layer not in spec.window.full for layer in range(spec.layers)
    ]


def write_types(spec: ModelSpec) -> list[str]:
    """layer_types."""
    return [SLIDING if near else FULL for near in sliding_layers(spec)]
