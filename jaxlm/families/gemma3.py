"""Gemma 3, text (Kamath et al. 2025): Gemma 2 with normalized queries and keys for score caps.

Layers with a window have another rope.
"""

from typing import Any

from jaxlm.families import gemma2, llama
from jaxlm.families.config import Config, Fields, Key
from jaxlm.families.family import Family
from jaxlm.families.heads import SEQUENCE, scored
from jaxlm.families.rope import Dialect, read_layered, write_layered
from jaxlm.families.windows import read_size, read_types, sliding_layers, window
from jaxlm.models.spec import ModelSpec

KEYS = (
    Key("vocab_size", "vocab", 262208),
    Key("hidden_size", "embed", 2304),
    Key("intermediate_size", "mlp", 9216),
    Key("num_hidden_layers", "layers", 26),
    Key("num_attention_heads", "heads", 8),
    Key("num_key_value_heads", "kv_heads", 4),
    Key("head_dim", "head_dim", 256),
    Key("max_position_embeddings", "max_length", 131072),
    Key("rms_norm_eps", "norm.eps", 1e-6),
    Key("final_logit_softcapping", "scale.logits_cap"),
    Key("tie_word_embeddings", "tied", True),
)
ROPE = Dialect(theta=1e6)
LOCAL = "rope_local_base_freq"
PATTERN = "sliding_window_pattern"
WEIGHTS = (*gemma2.WEIGHTS, *llama.QK_NORMS)
UNREAD = frozenset({"hidden_act", f"_{PATTERN}"})
"""Keys that transformers writes and does not read."""


def fields(config: Config, known: Fields) -> Fields:
    """The scales, the windows, the activation and both ropes."""
    layers, every = known["layers"], config.get(PATTERN, 6)
    if every < 1:
        raise config.error(PATTERN, "is not a number of layers")
    near = read_types(config, layers, [(layer + 1) % every != 0 for layer in range(layers)])
    windows = window(read_size(config, 4096), near)
    rope = read_layered(config, known["max_length"], ROPE, LOCAL)
    plain = rope.get("rope.scaling", "none") == "none"
    if not windows["window.size"] or (plain and rope["rope.local_theta"] == rope["rope.theta"]):
        rope["rope.local_theta"] = 0.0
    return gemma2.shared(config, known) | {"norm.qk": "head"} | windows | rope


def others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `fields`. Versions without layer_types know a regular pattern only."""
    near = sliding_layers(spec)
    every = near.index(False) + 1 if False in near else spec.layers + 1
    keys = gemma2.shared_others(spec) | write_layered(spec, ROPE, LOCAL)
    return keys | {PATTERN: every}


FAMILY = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    KEYS,
    fields,
    others,
    WEIGHTS,
    llama.IGNORED,
    UNREAD,
    classifiers={SEQUENCE: "Gemma3TextForSequenceClassification"},
    more=scored(),
)
