"""Which logical axes each parameter has: the one table that sharding and Muon read.

A row is the end of a parameter's name, as a regular expression, and the axes of its dimensions
without the layer's. Every parameter matches exactly one row; a test holds that for every preset.
"""

AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("embed/embedding", ("vocab", "embed")),
    ("positions/embedding", ("length", "embed")),
    ("attn/q/kernel", ("embed", "heads", "head_dim")),
    ("attn/[kv]/kernel", ("embed", "kv_heads", "head_dim")),
    ("attn/o/kernel", ("heads", "head_dim", "embed")),
    ("attn/q/bias", ("heads", "head_dim")),
    ("attn/[kv]/bias", ("kv_heads", "head_dim")),
    ("mlp/(gate|up)/kernel", ("embed", "mlp")),
    ("mlp/down/kernel", ("mlp", "embed")),
    ("mlp/(gate|up)/bias", ("mlp",)),
    ("(attn/o|mlp/down)/bias", ("norm",)),
    ("(attn|attn_out|mlp|mlp_out|final)_norm/(scale|bias)", ("norm",)),
    ("attn/[qk]_norm/scale", ("norm",)),
    ("experts/router/kernel", ("embed", "experts")),
    ("experts/(gate|up)/kernel", ("experts", "embed", "mlp")),
    ("experts/down/kernel", ("experts", "mlp", "embed")),
    ("head/kernel", ("embed", "vocab")),
    ("attn/[qkv]/lora_a", ("embed", "rank")),
    ("attn/q/lora_b", ("rank", "heads", "head_dim")),
    ("attn/[kv]/lora_b", ("rank", "kv_heads", "head_dim")),
    ("attn/o/lora_a", ("heads", "head_dim", "rank")),
    ("mlp/(gate|up)/lora_a", ("embed", "rank")),
    ("mlp/(gate|up)/lora_b", ("rank", "mlp")),
    ("mlp/down/lora_a", ("mlp", "rank")),
    ("(attn/o|mlp/down)/lora_b", ("rank", "embed")),
    ("lora_scale", ()),
)

INPUTS = {
    ("embed", "heads", "head_dim"): 1,
    ("embed", "kv_heads", "head_dim"): 1,
    ("heads", "head_dim", "embed"): 2,
    ("embed", "mlp"): 1,
    ("mlp", "embed"): 1,
}
"""How many leading dimensions of a kernel with these axes are its input; the rest is its output."""
