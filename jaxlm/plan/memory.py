"""What takes the memory of a training step, and what to change when it does not fit.

The shares are counted from the trees; activations and loss from the shapes, by what the backward
pass keeps. That is an estimate: XLA's own figure for all temporaries, where a program was compiled,
stands beside it.
"""

import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxlm.config.schema import RunConfig
from jaxlm.core.tree import Mask, flatten
from jaxlm.core.words import size
from jaxlm.inference.run import compute_dtype
from jaxlm.models.quantize import numbers
from jaxlm.models.spec import ModelSpec
from jaxlm.objectives.xent import chunk_bytes
from jaxlm.training.facts import EXPERT

_SAID = re.compile(r"RESOURCE_EXHAUSTED|out of memory|bad_alloc", re.IGNORECASE)
# The same status for what more device memory would not cure.
_NOT_MEANT = re.compile(r"shared memory|message larger|too many open files|quota", re.IGNORECASE)


@dataclass(frozen=True)
class Use:
    """Bytes on one device, by what takes them."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    collectives: int = 0
    """Parameters of a layer as they are gathered, and the head, whole."""
    apart: int = 0
    """Of activations, loss and collectives what is never there with the rest: the loss is done
    when the blocks run back. On one device XLA keeps them apart."""

    @property
    def total(self) -> int:
        """All of it, at once."""
        return sum(astuple(self)) - 2 * self.apart


@dataclass(frozen=True)
class Step:
    """What the estimate is made of and an override may change. Named as the config's keys."""

    spec: ModelSpec
    """Filled (ModelSpec.filled)."""
    batch: int
    length: int
    """The most tokens of a text."""
    microbatches: int
    data: int
    """Devices along the mesh's axis `data`."""
    fsdp: int
    """Devices along the mesh's axis `fsdp`."""
    compute_dtype: DTypeLike
    chunk_bytes: int
    """Most bytes of logits that the loss holds at once."""
    tensor: int = 1
    """Devices along the mesh's axis `tensor`."""
    tokens: int | None = None
    """Columns of a row, of an encoder-decoder those of the target; None is `length`."""
    source: int | None = None
    """Columns of an encoder-decoder's source; None is `length`."""
    scored: int | None = None
    """Places of a row of which logits are made; None is all."""
    expert: int = 1
    """Devices along the mesh's axis `expert`."""

    @property
    def shards(self) -> int:
        """Devices that the batch is split over."""
        return self.data * self.fsdp * self.expert

    @property
    def wide(self) -> int:
        """Columns of a row."""
        return self.tokens or self.length

    def shorter(self, part: int) -> "Step":
        """Of texts that are one in `part` as long."""
        keys = "length", "tokens", "source", "scored"
        known = {key: number for key in keys if (number := getattr(self, key))}
        return replace(self, **{key: max(1, number // part) for key, number in known.items()})


def step_of(
    config: RunConfig, spec: ModelSpec, columns: Mapping[str, int], sizes: Mapping[str, int]
) -> Step:
    """The step of a configuration, whose batches have `columns` by array, on a mesh of `sizes`."""
    return Step(
        spec=spec,
        batch=config.batch,
        length=config.length,
        tokens=columns["tokens"],
        source=columns.get("source"),
        scored=columns.get("targets", 0),
        microbatches=config.microbatches,
        data=sizes["data"],
        fsdp=sizes["fsdp"],
        expert=sizes["expert"],
        tensor=sizes["tensor"],
        compute_dtype=compute_dtype(config.compute_dtype),
        chunk_bytes=chunk_bytes(),
    )


def estimate(step: Step, params: Any, opt_state: Any, trained: Mask) -> Use:
    """Bytes on one device in the step.

    params, opt_state: trees of arrays or ShapeDtypeStructs, counted by their shardings (whole where
    they have none). trained: names of the parameters that have a gradient.
    """
    leaves = flatten(params)
    gradients = {name: leaf for name, leaf in leaves.items() if name in trained}
    # With microbatches the sum is kept in float32 beside the gradient that is added to it.
    extra = _numbers(gradients) * 4 if step.microbatches > 1 else 0
    layers, table = _gathered(step, leaves)
    return Use(
        parameters=_bytes(leaves),
        gradients=_bytes(gradients) + extra,
        optimizer=_bytes(opt_state),
        activations=_activations(step),
        loss=_loss(step) + (_head(step) if trained & _head_of(step) else 0),
        collectives=layers + table,
        apart=min(_at_once(step) + layers, _logits(step) + table) if layers else 0,
    )


def memory_table(use: Use, advice: list[str], *, limit: int | None, compiled: Any = None) -> str:
    """The shares as lines, largest first, and what helps.

    advice: of `overrides`. limit: bytes that the device has, where known. compiled: a
    jax.stages.Compiled of the step, where it came that far.
    """
    shares = {field.name: getattr(use, field.name) for field in fields(use)}
    apart = shares.pop("apart")
    shares = {name: number for name, number in shares.items() if number or name != "collectives"}
    lines = ["memory of one device, estimated:"]
    for name, number in sorted(shares.items(), key=lambda item: -item[1]):
        lines.append(f"  {name:<12}{size(number):>10}{number / max(1, use.total):>6.0%}")
    if apart:
        lines.append(f"  {'not at once':<12}{'-' + size(apart):>10}")
    has = f"; the device has {size(limit)}" if limit else ""
    lines.append(f"  {'together':<12}{size(use.total):>10}{has}")
    analysis = compiled.memory_analysis() if compiled is not None else None
    if analysis is not None:
        kept, temporary = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
        lines.append(f"  the compiler counts {size(kept)} of arguments, {size(temporary)} beside")
    return "\n".join([*lines, "what helps most:", *(f"  {line}" for line in advice)])


def overrides(
    step: Step,
    use: Use,
    *,
    optimizer: str,
    state_dtype: str,
    param_dtype: str,
    frozen_dtype: str,
    lora_rank: int,
    pretrained: bool,
) -> list[str]:
    """Three overrides with what each saves, the one that saves most first.

    optimizer: `optimizer.type`; the other names are those of their keys. pretrained: whether the
    run starts from weights: adapters of a random model would learn nothing.
    """
    state = use.parameters + use.gradients + use.optimizer
    saved = dict(_smaller_step(step, use))
    if pretrained and lora_rank == 0:
        saved["lora.rank=8"] = int(0.98 * (use.gradients + use.optimizer))
    if optimizer in _FIRST_MOMENT:
        saved["optimizer.type=adafactor"] = int(0.98 * use.optimizer)
        if state_dtype == "float32" and _FIRST_MOMENT[optimizer]:
            saved["optimizer.state_dtype=bfloat16"] = int(use.optimizer * _FIRST_MOMENT[optimizer])
    if pretrained and lora_rank and frozen_dtype not in ("int8", "nf4"):
        kind = param_dtype if frozen_dtype == "auto" else frozen_dtype
        saved["frozen_dtype=nf4"] = _quantized(step, use, jnp.dtype(kind).itemsize)
    if param_dtype == "float32":
        frozen = 0 if frozen_dtype == "auto" else use.parameters
        saved["param_dtype=bfloat16"] = (use.parameters - frozen + use.gradients) // 2
    if step.data > 1:
        together = f"mesh.data=1 mesh.fsdp={step.data * step.fsdp}"
        saved[together] = state - state // step.data
    best = sorted(saved.items(), key=lambda item: -item[1])[:3]
    while len(best) < 3:  # all else is set already
        best.append(_shorter(step, use, 2 ** (len(best) + 1)))
    return [f"{key}  (about {size(number)} less)" for key, number in best]


_FIRST_MOMENT = {"adamw": 0.25, "schedule_free_adamw": 0.0, "lion": 0.5, "muon": 0.5}
"""Optimizer -> what bfloat16 for its first moment, if it has one, saves of a float32 state."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host had too little memory, by the error or by what it came from.

    XLA raises JaxRuntimeError with the status RESOURCE_EXHAUSTED, when it compiles (TPU) or runs;
    the host raises MemoryError, or std::bad_alloc by way of XLA.
    """
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        if isinstance(seen, MemoryError):
            return True
        if isinstance(seen, jax.errors.JaxRuntimeError) and _SAID.search(text):
            return not _NOT_MEANT.search(text)
        seen = seen.__cause__ or seen.__context__
    return False


def _smaller_step(step: Step, use: Use) -> list[tuple[str, int]]:
    """What the step's own settings would save: microbatches, remat, attention and length."""
    changes: list[tuple[str, Step]] = []
    if parts := _more_microbatches(step):
        changes.append((f"microbatches={parts}", replace(step, microbatches=parts)))
    for key, other in (("remat", "full"), ("attention", "chunked")):
        now = getattr(step.spec, key)
        if now != other and (key == "remat" or now == "full"):
            spec = step.spec.model_copy(update={key: other})
            changes.append((f"model.{key}={other}", replace(step, spec=spec)))
    saved = [(key, _less(use, other)) for key, other in changes]
    if step.microbatches == 1:  # the sum that they are added up in is new
        saved = [(k, n - use.gradients if k.startswith("microbatches") else n) for k, n in saved]
    return [_shorter(step, use, 2), *((key, number) for key, number in saved if number > 0)]


def _quantized(step: Step, use: Use, width: int) -> int:
    """What kernels of 4.2 bits and tables of 16 save of parameters of `width` bytes."""
    rows = step.spec.vocab * (1 if step.spec.tied else 2)
    shards = step.fsdp * step.expert * step.tensor
    tables = min(use.parameters, rows * step.spec.embed * width // shards)
    return int((use.parameters - tables) * (1 - 0.52 / width) + tables * (1 - 2 / width))


def _shorter(step: Step, use: Use, part: int) -> tuple[str, int]:
    shorter = step.shorter(part)
    return f"length={shorter.length}", _less(use, shorter)


def _less(use: Use, other: Step) -> int:
    return use.activations + use.loss - _activations(other) - _loss(other)


def _more_microbatches(step: Step) -> int | None:
    """Up to four times as many, each still a row for every device; None when there is no room."""
    shards = step.shards
    most = step.batch // shards
    fits = [n for n in range(1, most + 1) if step.batch % (n * shards) == 0]
    more = [n for n in fits if step.microbatches < n <= 4 * step.microbatches]
    return more[-1] if more else None


def _rows(step: Step) -> int:
    return max(1, step.batch // (step.microbatches * step.shards))


def _activations(step: Step) -> int:
    """What the backward pass keeps of every block, and all that one block computes.

    The counts were read off XLA's allocations for the blocks as they are written in models/. What
    one block computes is there once: while an encoder runs back, the decoder's is gone.
    """
    spec, itemsize = step.spec, jnp.dtype(step.compute_dtype).itemsize
    pair = spec.structure == "encoder-decoder"
    kept, at_once = _block(step, cross=pair)
    row = step.wide * (spec.layers * kept + at_once)
    if pair:  # and the source itself, with its gradient, for all layers of the target
        kept = spec.encoder.layers * _block(step, cross=False)[0]
        row += (step.source or step.length) * (kept + 2 * spec.embed * itemsize)
    return _rows(step) * row


def _at_once(step: Step) -> int:
    """All that one block computes."""
    cross = step.spec.structure == "encoder-decoder"
    return _rows(step) * step.wide * _block(step, cross=cross)[1]


def _block(step: Step, *, cross: bool) -> tuple[int, int]:
    """Bytes of one block per token: what is kept of it, and all that it computes."""
    spec, itemsize = step.spec, jnp.dtype(step.compute_dtype).itemsize
    # A device keeps room for the tokens of all devices whose experts it shares.
    embed, times = spec.embed, spec.experts.chosen * step.expert if spec.experts.count else 1
    mlp = spec.mlp * times
    heads, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    wide, looks = 2 if spec.gated else 1, 2 if cross else 1
    split = step.tensor
    mlp, heads, keys = mlp / split, heads / split, max(keys / split, spec.head_dim)
    products = (2 + looks) * embed + looks * 2 * (heads + keys) + wide * mlp
    everything = products + (6 + 4 * looks) * embed + (wide + 1) * mlp
    scores = 0.0
    if spec.attention == "full":
        scores = looks * 2 * spec.heads / split * step.length * 4
    kept = {"full": embed, "products": products, "none": everything}[spec.remat]
    per_layer = kept * itemsize + (scores if spec.remat == "none" else 0)
    return round(per_layer), round(everything * itemsize + scores)


def _loss(step: Step) -> int:
    """The logits, and the gradient of the hidden states."""
    return _logits(step) + _rows(step) * step.wide * step.spec.embed * 4


def _logits(step: Step) -> int:
    """Three copies of a chunk's logits in float32."""
    spec, rows = step.spec, _rows(step)
    scored = step.wide if step.scored is None else step.scored
    logits = min(step.chunk_bytes, rows * scored * (spec.head.labels or spec.vocab) * 4)
    logits = logits if spec.head.labels else logits // step.tensor
    return 3 * logits


def _head_of(step: Step) -> Mask:
    """The names of what logits of the vocabulary are made of; none where there are no such."""
    if step.spec.head.labels or step.scored == 0:
        return frozenset()
    return frozenset({"embed/embedding" if step.spec.tied else "head/kernel"})


def _head(step: Step) -> int:
    """The gradient of the head, which the loss adds up in float32 where the head is trained."""
    return step.spec.vocab * step.spec.embed * 4 // step.tensor


def _gathered(step: Step, leaves: dict[str, Any]) -> tuple[int, int]:
    """Of what fsdp shards: a layer in the computing type, of its experts those that are here,
    twice, one being used while the next comes; and the head.
    """
    if step.fsdp * step.expert == 1:
        return 0, 0
    itemsize, depth = jnp.dtype(step.compute_dtype).itemsize, step.spec.layers
    blocks = [(name, leaf) for name, leaf in leaves.items() if "blocks/" in name]
    split = {True: step.expert, False: 1}
    layer = sum(numbers(n, leaf) // split[bool(EXPERT.search(n))] for n, leaf in blocks) // depth
    table = (step.spec.head.labels or step.spec.vocab) * step.spec.embed
    return 2 * layer * itemsize // step.tensor, table * itemsize // step.tensor


def _bytes(tree: Any) -> int:
    return sum(_shard(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _numbers(tree: Any) -> int:
    return sum(_shard(leaf) for leaf in jax.tree.leaves(tree))


def _shard(leaf: Any) -> int:
    """Numbers of a leaf that lie on one device."""
    sharding = getattr(leaf, "sharding", None)
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    number = 1
    for length in shape:
        number *= length
    return number
