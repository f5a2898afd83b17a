"""What the record, the report and the share of the peak need to know of a model."""

import re
from collections.abc import Mapping
from typing import Any

import jax

from jaxlm.core import parts, tree
from jaxlm.core.tree import Params
from jaxlm.models.quantize import numbers, total
from jaxlm.models.spec import ModelSpec
from jaxlm.observe import flops

EXPERT = re.compile(r"experts/(gate|up|down)/")
"""Names of kernels of which a token multiplies its chosen share alone."""
OF_SOURCE = re.compile(r"^encoder/|/cross/[kv]/")
"""Names of kernels of an encoder-decoder that multiply its source."""
MULTIPLIES = re.compile(r"(kernel|kernel_int8|kernel_nf4|lora_a|lora_b)$")


def facts(
    live: Params, frozen: Params, spec: ModelSpec, columns: Mapping[str, int]
) -> dict[str, Any]:
    """Parameters, FLOPs per token of a full row, and the peak that they are compared with.

    live, frozen: what is trained and what is not. columns: of each array of a batch: `tokens`, what
    is scored of them, `targets`, if anything is, and an encoder-decoder's `source`, where that is
    not as long; its tokens count as tokens.
    """
    length = columns["tokens"]
    source, scored = columns.get("source", 0), columns.get("targets", 0)
    pair = spec.structure == "encoder-decoder"
    share = (source or length) / length  # tokens of the source per token of the target
    names = list(tree.flatten(live))
    first = min(map(parts.depth_of, names))
    read = pair and all(name.startswith(("decoder/", "head/")) for name in names)

    def is_below(name: str) -> bool:
        """Whether no gradient comes down to it."""
        return 0 < parts.depth_of(name) < first or (read and name.startswith("encoder/"))

    below, passed = tree.partition(frozen, frozenset(filter(is_below, tree.flatten(frozen))))
    looking = keys_seen(spec, length, share)
    blocks = ((n, leaf.shape[0]) for n, leaf in tree.flatten(below).items() if "blocks/" in n)
    depths = {name.partition("/")[0]: layers for name, layers in blocks}
    layers = {"decoder": spec.layers, "encoder": spec.encoder.layers if pair else spec.layers}
    often = {"source": share if pair else 1.0, "head": scored / length}
    of_target = flops.flops_per_token(
        trained=multiplying(live, spec, **often),
        frozen=multiplying(passed, spec, **often),
        below=multiplying(below, spec, **often),
        seen=sum(looking[stack] * layers[stack] for stack in looking),
        seen_below=sum(looking[stack] * depths[stack] for stack in depths),
        heads=spec.heads,
        head_dim=spec.head_dim,
    )
    return {
        "parameters": total(live) + total(frozen),
        "trained": total(live),
        "flops_per_token": round(of_target / (1 + share)) if pair else of_target,
        "flops_formula": flops.FORMULA,
        "peak_flops": flops.peak_flops(jax.devices()[0].device_kind),
    }


def multiplying(params: Params, spec: ModelSpec, *, source: float, head: float) -> int:
    """Numbers that a token multiplies: those of the source and of the head so often per token."""

    def times(name: str) -> float:
        if name == "embed/embedding":
            return head if spec.tied and not spec.head.labels else 0.0
        if not MULTIPLIES.search(name):
            return 0.0
        if EXPERT.search(name):
            return spec.experts.chosen / max(spec.experts.count, 1)
        if name.startswith("head/"):
            return head if spec.head.pool == "none" else 0.0  # what is pooled is one of many
        return source if OF_SOURCE.search(name) else 1.0

    return sum(round(numbers(n, leaf) * times(n)) for n, leaf in tree.flatten(params).items())


def keys_seen(spec: ModelSpec, length: int, share: float) -> dict[str, float]:
    """By stack, how many keys a token looks at in each of its layers.

    Half of the row where attention is causal, else all of it. Of an encoder-decoder a token of the
    target looks at the source too, and the source's look at each other, `share` times as many.
    """
    if spec.structure == "encoder":
        return {"encoder": length}
    if spec.structure == "decoder":
        return {"decoder": length / 2}
    source = share * length
    return {"decoder": length / 2 + source, "encoder": share * source}
