"""Figures of one part: compile time, memory of the loss, data, the loop's cost, attention."""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import tree
from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.models.axes import AXES
from jaxlm.models.backends import BACKENDS, choose
from jaxlm.models.heads import logits
from jaxlm.models.scores import Scores
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import make_forward, param_shapes
from jaxlm.objectives.lm import language_model
from jaxlm.objectives.xent import cross_entropy
from jaxlm.training import optim
from jaxlm.training.step import TrainState, train_step
from measure.faults import faults
from measure.jax_side import OPTIMIZER
from measure.loading import loading, quantized_loading
from measure.lora_memory import lora_memory
from measure.pipe import Answer, serve
from measure.preflight import preflight
from measure.products import products
from measure.quickstart import quickstart
from measure.scaling import weak_scaling
from measure.sentences import sentences
from measure.swap import adapter_swap
from measure.tokens import batch as make_batch
from measure.trainer import trainer

MB = 1e6


def compile_depth(shape: dict[str, Any], rounds: int, steps: int) -> Answer:
    """Seconds to trace and compile a step of few and of many layers, in turn."""
    few, many = shape["layers"]
    seconds: dict[int, list[float]] = {few: [], many: []}
    for _ in range(rounds):
        for layers in (few, many):
            jax.clear_caches()
            step, arguments = _shapes_of_step(shape, layers)
            start = time.perf_counter()
            jax.jit(step, donate_argnums=0).lower(*arguments).compile()
            seconds[layers].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(seconds[few], seconds[many], strict=True)]
    return {
        f"seconds_{few}_layers": statistics.median(seconds[few]),
        f"seconds_{many}_layers": statistics.median(seconds[many]),
        "ratio": statistics.median(ratios),
        "per_round": {f"seconds_{n}_layers": seconds[n] for n in seconds} | {"ratio": ratios},
    }


def _shapes_of_step(shape: dict[str, Any], layers: int) -> tuple[Any, tuple[Any, ...]]:
    """The step of a model that is never made, and the shapes of its arguments."""
    spec = ModelSpec(**{**shape["model"], "layers": layers})
    spec = spec.filled(vocab=spec.vocab or 0, max_length=shape["length"])
    layout = _one_device()
    params = param_shapes(spec, layout, jnp.float32)
    optimizer = optim.build(OPTIMIZER, params, steps=1000, axes=AXES)
    step = partial(
        train_step,
        forward=make_forward(spec, layout, jnp.dtype(shape["dtype"])),
        objective=language_model(z_loss=0.0, shards=1),
        tx=optimizer.tx,
        trainable=tree.select(params, (".",)),
        microbatches=1,
    )
    opt_state = layout.placed(jax.eval_shape(optimizer.tx.init, params), AXES)
    state = TrainState(jnp.int32(0), params, opt_state)
    return step, (state, make_batch(shape), jax.random.key(0))


def loss_memory(shape: dict[str, Any], rounds: int, steps: int) -> Answer:
    """Temporaries and time of the loss and its gradient; beside it, all logits at once."""
    spec = ModelSpec(embed=shape["embed"], vocab=shape["vocab"])
    score = partial(logits, spec=spec, layout=_one_device(), dtype=jnp.float32)
    tokens = shape["batch"], shape["length"]
    rng = np.random.default_rng(0)
    head = {"embed": {"embedding": 0.02 * rng.normal(size=(shape["vocab"], shape["embed"]))}}
    x = rng.normal(size=(*tokens, shape["embed"])).astype(np.float32)
    targets = jnp.asarray(rng.integers(0, shape["vocab"], tokens, dtype=np.int32))
    head = jax.tree.map(lambda a: a.astype(np.float32), head)

    def ours(head: Any, x: Any) -> Any:
        return cross_entropy(score, head, x, targets, jnp.ones(tokens), z=0.0).loss

    def whole(head: Any, x: Any) -> Any:
        scores = score(head, x)
        hit = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
        return (jax.nn.logsumexp(scores, axis=-1) - hit).sum()

    def compiled(loss: Callable[..., Any]) -> Any:
        return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(head, x).compile()

    both = {"": compiled(ours), "_whole_logits": compiled(whole)}
    seconds = _in_turn({name: partial(fn, head, x) for name, fn in both.items()}, rounds, steps)
    found: Answer = {"per_round": {f"seconds{name}": s for name, s in seconds.items()}}
    for name, fn in both.items():
        found[f"temporary_megabytes{name}"] = _temporaries(fn) / MB
        found[f"seconds{name}"] = statistics.median(seconds[name])
    return found


def data(shape: dict[str, Any], rounds: int, steps: int) -> Answer:
    """Tokens per second of Dataset.batch, in one process, from a cache on the local disk."""
    from measure.corpus import stdlib

    with tempfile.TemporaryDirectory() as folder:
        found: Answer = {"per_round": {}}
        for rows, length in shape["sizes"]:
            dataset = stdlib(Path(folder), length)
            rates, step = [], 0
            for _ in range(rounds):
                start, tokens = time.perf_counter(), 0
                while (seconds := time.perf_counter() - start) < 0.5:
                    tokens += dataset.batch(step, rows)["tokens"].size
                    step += 1
                rates.append(tokens / seconds)
            name = f"tokens_per_second_{rows}x{length}"
            found[name] = statistics.median(rates)
            found["per_round"][name] = rates
            found["tokens_in_cache"] = dataset.tokens
        return found


def overhead(shape: dict[str, Any], rounds: int, steps: int) -> Answer:
    """Cost of the training loop around its step: percent of time per token, in turn in one run."""
    from measure.loop import take_turns

    loop, bare = take_turns(shape, rounds, steps)
    tokens = shape["batch"] * shape["length"] * steps
    percent = 100 * (loop / bare - 1)
    return {
        "tokens_per_second_loop": tokens / float(np.median(loop[:, 0])),
        "tokens_per_second_bare": tokens / float(np.median(bare[:, 0])),
        "overhead_percent": float(np.median(percent[:, 0])),
        "overhead_percent_of_cpu_seconds": float(np.median(percent[:, 1])),
        "per_round": {
            "seconds_loop": loop[:, 0].tolist(),
            "seconds_bare": bare[:, 0].tolist(),
            "cpu_seconds_loop": loop[:, 1].tolist(),
            "cpu_seconds_bare": bare[:, 1].tolist(),
        },
    }


def attention(shape: dict[str, Any], rounds: int, steps: int) -> Answer:
    """Seconds and temporaries of each backend that runs here, forward and backward, causal."""
    device = jax.devices()[0]
    dtype = jnp.float32 if device.platform == "cpu" else jnp.bfloat16
    keys = jax.random.split(jax.random.key(0), 4)
    tokens, size = (shape["batch"], shape["length"]), shape["head_dim"]
    q, dy = (jax.random.normal(key, (*tokens, shape["heads"], size), dtype) for key in keys[:2])
    k, v = (jax.random.normal(key, (*tokens, shape["kv_heads"], size), dtype) for key in keys[2:])

    def both(attend: Callable[..., Any], q: Any, k: Any, v: Any, dy: Any) -> Any:
        y, pullback = jax.vjp(lambda *x: attend(*x, None, Scores(size**-0.5)), q, k, v)
        return y, pullback(dy)

    programs = {
        name: jax.jit(partial(both, BACKENDS[name])).lower(q, k, v, dy).compile()
        for name in usable(device.platform, dtype, size, shape["length"])
    }
    seconds = _in_turn({n: partial(fn, q, k, v, dy) for n, fn in programs.items()}, rounds, steps)
    found: Answer = {"per_round": {f"seconds_{name}": s for name, s in seconds.items()}}
    for name, fn in programs.items():
        found[f"seconds_{name}"] = statistics.median(seconds[name])
        found[f"temporary_megabytes_{name}"] = _temporaries(fn) / MB
    return found


def usable(platform: str, dtype: Any, head_dim: int, length: int) -> list[str]:
    """The backends of attention that run on a platform with this type and shape."""
    names = []
    for name in BACKENDS:
        try:
            names.append(choose(name, platform, dtype, head_dim, length, Scores(1.0)))
        except ConfigError:
            continue
    return names


def _temporaries(program: Any) -> int:
    """Bytes that a compiled program takes beside its arguments and results."""
    return program.memory_analysis().temp_size_in_bytes


def _one_device() -> Layout:
    return Layout(make_mesh({"fsdp": 1}, jax.devices()[:1]))


def _in_turn(
    calls: dict[str, Callable[[], Any]], rounds: int, steps: int
) -> dict[str, list[float]]:
    """Seconds per call, one figure per round; each is called once before."""
    for call in calls.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(steps):
                jax.block_until_ready(call())
            seconds[name].append((time.perf_counter() - start) / steps)
    return seconds


FUNCTIONS = {
    "compile_depth": compile_depth,
    "loss_memory": loss_memory,
    "data": data,
    "overhead": overhead,
    "adapter_swap": adapter_swap,
    "attention": attention,
    "loading": loading,
    "quantized_loading": quantized_loading,
    "weak_scaling": weak_scaling,
    "lora_memory": lora_memory,
    "preflight": preflight,
    "faults": faults,
    "products": products,
    "quickstart": quickstart,
    "sentences": sentences,
    "trainer": trainer,
}


def measure(order: Answer) -> Answer:
    """The figures of one case, with the device that they were taken on."""
    figures = FUNCTIONS[order["function"]](order["shape"], order["rounds"], order["steps"])
    per_round = figures.pop("per_round", {})
    device = jax.devices()[0].device_kind
    return {"kind": "figures", "device": device, "figures": figures, "per_round": per_round}


if __name__ == "__main__":
    serve({"measure": measure})
