"""How long a step takes, on paper: products, attention, glue, and what of the network shows.

Every term is one line; what was fitted to published runs is in constants.yaml, with how well it
fits (tools/fit_planner.py). Seconds of one device throughout; times of devices that work alike.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from jaxlm.plan.devices import Machine

Constants = Mapping[str, float]


@dataclass(frozen=True)
class Load:
    """What one device does in one step."""

    tokens: float
    """Tokens of one device: all tokens of the step over all devices."""
    layers: int
    embed: int
    mlp: int
    """Width of the MLP, of all experts that a token goes through."""
    product_flops: float
    """Per token, forward and backward, of products with parameters."""
    again_flops: float
    """Per token, of the products that the backward pass computes again."""
    attention_flops: float
    """Per token, forward and backward, half of the row where attention is causal."""
    attention_again: bool
    """Whether the backward pass runs the forward's attention again."""
    parameters: float
    """That are sharded and gathered, of the whole model."""
    trained: float
    """Of them those with a gradient."""
    remat: str
    """What is kept of a block: none (is computed again), products, or full (nothing is kept)."""
    microbatches: int = 1
    data: int = 1
    """Copies of the model; over slices, then over hosts."""
    fsdp: int = 1
    expert: int = 1
    """Devices that share the experts, and all else as over `fsdp`."""
    tensor: int = 1
    stages: int = 1
    """Of a pipeline. jaxlm has none: for published runs that do."""
    filled: float = 0.0
    """Share of a pipeline's time that is its bubble."""
    experts: float = 0.0
    """Of `parameters` those of experts."""
    experts_trained: float = 0.0
    """Of `trained` those of experts."""
    gathered: int = 2
    """Bytes of a parameter, or of an activation, on the network."""
    reduced: int = 4
    """Bytes of a gradient's number as the copies of the model add it up. jaxlm's is in the type
    that is computed in, but for head and embedding: float32 is of published runs."""
    spread: bool = False
    """The residual stream is split over the tensor axis too (sequence parallelism). jaxlm's is
    whole there: for published runs that do."""


@dataclass(frozen=True)
class Time:
    """Seconds of one step, by what takes them."""

    products: float
    attention: float
    glue: float
    exposed: float
    """Of the network what no computation hides."""
    bubble: float
    jitter: float
    """Waiting for the slowest of many domains."""
    optimizer: float
    communication: Mapping[str, float]
    """Of the network, hidden or not: fsdp, data, expert, tensor."""

    @property
    def total(self) -> float:
        """All of it."""
        parts = self.products, self.attention, self.glue, self.exposed
        return sum(parts) + self.bubble + self.jitter + self.optimizer


def step_time(load: Load, machine: Machine, constants: Constants | None = None) -> Time | None:
    """The time of a step; None where the device's peak is not known."""
    device, c = machine.device, constants or fitted()
    if device.peak is None or device.hbm is None:
        return None
    rate = device.peak * c.get(f"products_{device.name}", c[f"products_{device.platform}"])
    products = load.tokens * (load.product_flops + load.again_flops) / rate
    # A fused kernel's backward pass is 2.5 forward ones, not 2.
    factor = (3.5 + load.attention_again) / 3
    attention = factor * load.attention_flops * load.tokens / (rate * c["attention"])
    # Passes over the residual stream and the MLP's hidden values: bytes of 16-bit activations.
    widths = 8 * load.embed * (1 if load.spread else load.tensor) + 4 * load.mlp
    reads = {"none": 3.0, "products": 3.0 + c["recompute"]}.get(load.remat, 4.0)
    moved = 2 * widths * reads * load.layers * load.tokens
    glue = moved * c["glue"] / (0.8 * device.hbm)
    network = communication(load, machine)
    compute = products + attention + glue
    exposed = _exposed(network, compute, device.platform, c)
    bubble = (compute + exposed) * load.filled
    domains = machine.count / machine.domain
    jitter = (compute + exposed + bubble) * c["jitter"] * math.log2(max(domains, 1))
    shards = load.fsdp * load.expert * load.tensor * load.stages
    optimizer = 28 * load.trained / shards / (0.8 * device.hbm)  # read 16 B a number, write 12
    return Time(products, attention, glue, exposed, bubble, jitter, optimizer, network)


def _exposed(network: Mapping[str, float], compute: float, platform: str, c: Constants) -> float:
    """What of the network shows: beyond what computation can hide, and at least a part."""
    hidden = c[f"overlap_{platform}"]
    weights = network["fsdp"] + network["data"]
    shown = max(weights - hidden * compute, (1 - hidden) / 2 * weights)
    activations = network["expert"] + network["tensor"]
    return shown + activations * (1 - c[f"overlap_tensor_{platform}"])


def communication(load: Load, machine: Machine) -> dict[str, float]:
    """Seconds on the network by the mesh's axis.

    fsdp: parameters gathered in the forward and in the backward pass of every microbatch, gradients
    scattered after each; those of experts are whole after a gather over fsdp alone. data: gradients
    reduced after every microbatch (XLA leaves that in their loop, for CPUs and TPUs). expert: in
    each layer's forward and backward pass a gather of the tokens and a scatter of what experts add
    to them, and a gather more where the backward pass computes again. tensor: two all-reduces of
    the activations there.
    """
    parts, many = load.tensor * load.stages, load.microbatches
    size = load.gathered * many / parts
    experts = size * (2 * load.experts + load.experts_trained)
    dense = size * (2 * load.parameters + load.trained) - experts
    torus = machine.device.torus
    axes = max(1, sum(side > 1 for side in machine.sides))
    rest = max(1, axes - (load.tensor > 1)) if torus else 1  # a tensor axis takes one of a torus
    few = max(1, rest - (load.expert > 1))
    beside = load.tensor * (load.stages if torus else 1)
    shards = load.fsdp * load.expert
    reduced = 2 * load.reduced * load.trained * many / parts / shards
    wide = load.layers * load.tokens * load.tensor * load.embed * load.gathered
    tokens = (4 + (load.remat != "none")) * wide
    return {
        "fsdp": dense * _gather(machine, shards, beside, rest)
        + experts / load.expert * _gather(machine, load.fsdp, beside * load.expert, few),
        "data": reduced * _gather(machine, load.data, beside * shards, 1),
        "expert": tokens * load.expert * _gather(machine, load.expert, beside, 1),
        "tensor": 8 * wide * _gather(machine, load.tensor, 1, 1),
    }


def _gather(machine: Machine, shards: int, inner: int, axes: int) -> float:
    """Seconds per byte that a device gathers over `shards` devices, `inner` apart from each other.

    axes: of a torus, that it takes. Within the fast network first; what goes beyond is shared by
    the devices of a domain that gather alike.
    """
    near, far = machine.device.near, machine.device.far
    if shards == 1 or near is None or far is None:
        return 0.0
    inside = max(1, min(shards, machine.domain // inner))
    outside = shards / inside
    return (1 - 1 / inside) / (near * axes) + (1 - 1 / outside) / inside / far


def fitted() -> Constants:
    """The constants by name."""
    return {name: row["value"] for name, row in table()["constants"].items()}


@cache
def table() -> dict[str, Any]:
    """constants.yaml: each constant's value and source, and how well the model fits."""
    return yaml.safe_load((Path(__file__).parent / "constants.yaml").read_text())
