"""Which logical axes each parameter has: the one table that sharding and Muon read.

A row is the end of a parameter's name, as a regular expression, and the axes of its dimensions
without the layer's. Every parameter matches exactly one row; a test holds that for every preset.
What stands for a quantized kernel has the kernel's axes.
"""

import math

from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import Layout
from jaxlm.models.spec import ModelSpec, padded_vocab

AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("embed/embedding", ("vocab", "embed")),
    ("(embed|head)/new_rows", ("whole", "embed")),
    ("positions/embedding", ("length", "embed")),
    ("types/embedding", ("whole", "embed")),
    ("relative/embedding", ("whole", "heads")),
    (r"(attn|cross)/q/kernel(_\w+)?", ("embed", "heads", "head_dim")),
    (r"(attn|cross)/[kv]/kernel(_\w+)?", ("embed", "kv_heads", "head_dim")),
    (r"(attn|cross)/o/kernel(_\w+)?", ("heads", "head_dim", "embed")),
    ("(attn|cross)/q/(bias|lora_m)", ("heads", "head_dim")),
    ("(attn|cross)/[kv]/(bias|lora_m)", ("kv_heads", "head_dim")),
    (r"mlp/(gate|up)/kernel(_\w+)?", ("embed", "mlp")),
    (r"mlp/down/kernel(_\w+)?", ("mlp", "embed")),
    ("mlp/(gate|up)/(bias|lora_m)", ("mlp",)),
    ("(attn/o|cross/o|mlp/down)/(bias|lora_m)", ("norm",)),
    ("(attn|attn_out|cross|cross_out|mlp|mlp_out|embed|final)_norm/(scale|bias)", ("norm",)),
    ("attn/[qk]_norm/scale", ("norm",)),
    ("experts/router/kernel", ("embed", "whole")),
    (r"experts/(gate|up)/kernel(_\w+)?", ("experts", "embed", "mlp")),
    (r"experts/down/kernel(_\w+)?", ("experts", "mlp", "embed")),
    ("head/kernel", ("embed", "vocab")),
    ("head/bias", ("vocab",)),
    ("head/labels/kernel", ("embed", "whole")),
    ("head/labels/bias", ("whole",)),
    ("head/transform/kernel", ("embed", "norm")),
    ("head/(transform/bias|norm/(scale|bias))", ("norm",)),
    ("(attn|cross)/[qkv]/lora_a0?", ("embed", "rank")),
    ("(attn|cross)/q/lora_b0?", ("rank", "heads", "head_dim")),
    ("(attn|cross)/[kv]/lora_b0?", ("rank", "kv_heads", "head_dim")),
    ("(attn|cross)/o/lora_a0?", ("heads", "head_dim", "rank")),
    ("mlp/(gate|up)/lora_a0?", ("embed", "rank")),
    ("mlp/(gate|up)/lora_b0?", ("rank", "mlp")),
    ("mlp/down/lora_a0?", ("mlp", "rank")),
    ("(attn/o|cross/o|mlp/down)/lora_b0?", ("rank", "embed")),
    (r"experts/(gate|up)/lora_a0?", ("experts", "embed", "rank")),
    (r"experts/(gate|up)/lora_b0?", ("experts", "rank", "mlp")),
    (r"experts/down/lora_a0?", ("experts", "mlp", "rank")),
    (r"experts/down/lora_b0?", ("experts", "rank", "embed")),
    ("experts/[a-z]+/lora_scale", ("experts",)),
    ("(attn|cross|mlp)/[a-z]+/lora_(scale|drop)", ()),
)

INPUTS = {
    ("embed", "heads", "head_dim"): 1,
    ("embed", "kv_heads", "head_dim"): 1,
    ("heads", "head_dim", "embed"): 2,
    ("embed", "mlp"): 1,
    ("mlp", "embed"): 1,
}
"""How many leading dimensions of a kernel with these axes are its input; the rest is its output."""


def check_divides(spec: ModelSpec, layout: Layout) -> None:
    """Refuse what a mesh cannot split: query heads, the MLP, the (padded) vocabulary, experts."""
    sizes = {"heads": spec.heads, "mlp": spec.mlp, "vocab": padded_vocab(spec)}
    for axis, size in sizes.items():
        if size % (shards := layout.size(axis)):
            fits, rest = math.gcd(shards, *sizes.values()), shards * layout.mesh.shape["fsdp"]
            what = f"model.{axis}={size} does not split over {shards} devices"
            use = f"mesh.tensor={fits} mesh.fsdp={rest // fits}"
            raise ConfigError("mesh.tensor", f"{what}; use {use}")
    count, shards = spec.experts.count, layout.size("experts")
    if shards == 1 or (count and count % shards == 0):
        return
    rest = shards * layout.mesh.shape["fsdp"]
    fits = max((n for n in range(1, shards) if math.gcd(count, rest) % n == 0), default=1)
    what = f"model.experts.count={count} does not split over {shards} devices"
    if not count:
        fits, what = 1, "the model has no experts to split"
    raise ConfigError("mesh.expert", f"{what}; use mesh.expert={fits} mesh.fsdp={rest // fits}")
