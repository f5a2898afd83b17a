"""Checks of a device: what its kernels compute, steps of each kind, the memory of a step."""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import cli
from jaxlm.core import tree
from jaxlm.models import gpu, lora, quantize
from jaxlm.models.backends import BACKENDS
from jaxlm.models.scores import Scores
from jaxlm.objectives.kinds import TRAINS
from measure.cases import CASES
from measure.figures import usable
from measure.jax_side import Step
from measure.pipe import Answer, serve
from measure.turns import expected_loss

BOUNDS = {"float32": 1e-4, "bfloat16": 0.04}
"""Largest error of a kernel, as a share of the largest value of what it computes."""
LOST = {"int8": 0.01, "nf4": 0.1}
"""Most that is lost of a kernel, as a share of its norm."""
PACKED_FROM = 9.0
"""Compute capability from which the packed kernel is expected to work."""


def check(name: str, passed: bool, value: Any, wanted: str) -> Answer:
    """One line of the result."""
    return {"check": name, "passed": passed, "value": value, "wanted": wanted}


def numerics(length: int = 256) -> Iterator[Answer]:
    """Every backend against float64, forward and backward: whole or packed rows, grouped or not."""
    device = jax.devices()[0]
    dtype = jnp.float32 if device.platform == "cpu" else jnp.bfloat16
    bound, at = BOUNDS[jnp.dtype(dtype).name], np.arange(length)
    packed = np.stack([1 + (at >= 3) + (at >= length // 2), 1 + (at >= length // 3)])
    packed[1, -length // 8 :] = 0
    rows = {"whole": None, "packed": packed.astype(np.int32)}
    for kind, kv_heads, causal in itertools.product(rows, (4, 2), (True, False)):
        keys = jax.random.split(jax.random.key(0), 4)
        q, dy = (jax.random.normal(key, (2, length, 4, 64), dtype) for key in keys[:2])
        k, v = (jax.random.normal(key, (2, length, kv_heads, 64), dtype) for key in keys[2:])
        right = exact(q, k, v, dy, rows[kind], causal)
        for name in usable(device.platform, dtype, 64, length):
            found = _values(BACKENDS[name], (q, k, v, dy), rows[kind], causal)
            error = max(_error(a, b) for a, b in zip(found, right, strict=True))
            what = f"attention {name}, {kind} rows, {4 // kv_heads} query heads per kv head"
            what += "" if causal else ", both ways"
            yield check(what, error <= bound, error, f"at most {bound}")


def _values(
    attend: Callable[..., Any], inputs: Any, segments: Any, causal: bool
) -> tuple[Any, ...]:
    how = Scores(inputs[0].shape[-1] ** -0.5, causal)

    @jax.jit
    def run(q: Any, k: Any, v: Any, dy: Any) -> tuple[Any, ...]:
        where = None if segments is None else jnp.asarray(segments)
        y, pullback = jax.vjp(lambda *x: attend(*x, where, how), q, k, v)
        return y, *pullback(dy)

    return run(*inputs)


def exact(q: Any, k: Any, v: Any, dy: Any, segments: Any, causal: bool) -> tuple[np.ndarray, ...]:
    """y, dq, dk, dv of Vaswani et al. 2017, eq. 1, in float64 by hand; shapes as in `attention`."""
    q, k, v, dy = (np.asarray(x, np.float64) for x in (q, k, v, dy))
    groups, scale = q.shape[2] // k.shape[2], q.shape[3] ** -0.5
    k, v = (np.repeat(x, groups, axis=2) for x in (k, v))
    may = np.ones((1, *[q.shape[1]] * 2), bool)
    if segments is not None:
        may = segments[:, :, None] == segments[:, None]
    may = np.tril(may) if causal else may
    scores = np.where(may[:, None], np.einsum("blnh,bsnh->bnls", q, k) * scale, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    dweights = np.einsum("blnh,bsnh->bnls", dy, v)
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdims=True)) * scale
    wide = (np.einsum("bnls,blnh->bsnh", part, x) for part, x in ((dscores, q), (weights, dy)))
    dk, dv = (x.reshape(*x.shape[:2], -1, groups, x.shape[3]).sum(3) for x in wide)
    y = np.einsum("bnls,bsnh->blnh", weights, v)
    return y, np.einsum("bnls,bsnh->blnh", dscores, k), dk, dv


def _error(found: Any, right: np.ndarray) -> float:
    error = np.abs(np.asarray(found, np.float64) - right).max() / np.abs(right).max()
    return float(error) if np.isfinite(error) else math.inf


def quantized() -> Iterator[Answer]:
    """Kernels in int8 and nf4: what they stand for, and products with it, forward and backward."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    bound, keys = BOUNDS[jnp.dtype(dtype).name], jax.random.split(jax.random.key(0), 3)
    kernel = jax.random.normal(keys[0], (512, 384))
    x, dy = (
        jax.random.normal(k, (256, n), dtype) for k, n in zip(keys[1:], (512, 384), strict=True)
    )
    for kind, most in LOST.items():
        leaves = jax.jit(partial(quantize.quantize, kind=kind, inputs=1))(kernel)
        whole = np.asarray(jax.jit(quantize.dequantize, static_argnums=1)(leaves, jnp.float32))
        lost = float(np.linalg.norm(whole - kernel) / np.linalg.norm(kernel))
        yield check(f"what {kind} loses of a kernel", lost <= most, lost, f"at most {most}")
        y, pullback = jax.vjp(lambda x, kernel=leaves: quantize.dense(x, kernel, 1), x)
        exact = (np.asarray(x, np.float64) @ whole, np.asarray(dy, np.float64) @ whole.T)
        error = max(_error(a, b) for a, b in zip((y, *pullback(dy)), exact, strict=True))
        yield check(f"products with {kind}", error <= bound, error, f"at most {bound}")


def packed_kernel() -> Iterator[Answer]:
    """The verdict of the packed kernel's own test on this device."""
    device, works = jax.devices()[0], gpu.packed_works()
    capability = float(getattr(device, "compute_capability", 0) or 0)
    expected = device.platform == "gpu" and capability >= PACKED_FROM
    wanted = "works" if expected else "not for this device: the portable backend takes packed rows"
    said = "works" if works else "does not agree, or does not exist"
    yield check("packed kernel's own test", works == expected, said, wanted)


EXAMPLE = {
    "text": "the quick brown fox jumps over the lazy dog and the cat",
    "label": "kind",
    "words": ["the", "quick", "fox"],
    "tags": ["O", "O", "B"],
    "source": "the quick brown fox",
    "target": "the lazy dog",
    "anchor": "the fox",
    "positive": "the dog",
    "prompt": "the quick",
    "completion": "brown fox",
}
"""One record of which every objective finds the columns that it learns from."""
COLUMNS = {
    "classification": ["objective.text=text", "objective.label=label"],
    "token_classification": ["objective.words=words", "objective.label=tags"],
    "seq2seq": ["objective.source=source", "objective.target=target"],
    "contrastive": ["objective.columns=[anchor, positive]"],
    "sft": [],
}
"""Those that read examples, and what they are told of them; the others read `text`."""


def objectives() -> Iterator[Answer]:
    """A run of two steps of each objective in bfloat16: finite losses, and nothing skipped. On a
    CPU, where tests train all of them, of a few.
    """
    few = 3 if jax.devices()[0].platform == "cpu" else 1
    with TemporaryDirectory() as root:
        file = Path(root) / "examples.jsonl"
        with file.open("w") as out:
            for number in range(80):
                own = {key: f"{number} {EXAMPLE[key]}" for key in ("text", "anchor", "positive")}
                told = {"label": ("kind", "unkind")[number % 2]}
                out.write(json.dumps({**EXAMPLE, **own, **told}) + "\n")
        for name, kinds in list(TRAINS.items())[::few]:
            structure = kinds[0] if kinds[0] in ("encoder-decoder", "decoder") else "encoder"
            words = f"objective.type={name} model.structure={structure} model.layers=1 "
            words += f"model.embed=64 model.heads=2 tokenizer.vocab=400 data.train={file} steps=2 "
            words += f"batch=8 length=32 compute_dtype=bfloat16 run_dir={root}/{name} log.every=1"
            more = COLUMNS.get(name, [])
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as said:
                code = cli.run(["train", *words.split(), *more])
            rows = Path(root, name, "metrics.jsonl")
            found = [json.loads(line) for line in rows.open()] if rows.is_file() else []
            losses = [row["loss"] for row in found if "loss" in row]
            fine = code == 0 and len(losses) == 2 and not any(row.get("skipped") for row in found)
            value = losses if fine else said.getvalue().strip()[-200:]
            fine = fine and all(map(math.isfinite, losses))
            yield check(f"two steps of {name} in bfloat16, losses", fine, value, "finite")


def tuning() -> Iterator[Answer]:
    """Steps with adapters in bfloat16: they learn, and the base is bit for bit what it was."""
    expected = expected_loss(CASES["lora-tiny"].shape["model"])
    for kind in ("bfloat16", "nf4"):
        step = Step({**CASES["lora-tiny"].shape, "param_dtype": kind})
        before = {name: np.asarray(leaf) for name, leaf in _base(step).items()}
        first, last = step.run(1), step.run(8)
        fine = abs(first - expected) < 0.15 and last < first
        what = f"steps with adapters over a base in {kind}, loss"
        yield check(what, fine, first, f"{expected:.2f} +- 0.15, then less")
        moved = [n for n, leaf in _base(step).items() if np.any(np.asarray(leaf) != before[n])]
        yield check(f"the base in {kind} after them", not moved, len(moved), "0 tensors moved")


def _base(step: Step) -> dict[str, Any]:
    return tree.flatten(lora.without(step.state.params))


def step_memory(case: str) -> Iterator[Answer]:
    """What a step really takes on the device, over what the compiler said it would."""
    step = Step(CASES[case].shape)
    step.run(2)
    found, wanted = jax.devices()[0].memory_stats(), "at most 1.15"
    said = step.compiled.memory_analysis()
    if not found or not said:
        yield check(f"memory of {case} over the estimate", True, "not counted here", wanted)
        return
    kept = said.output_size_in_bytes - said.alias_size_in_bytes
    estimate = said.argument_size_in_bytes + said.temp_size_in_bytes + kept
    share = found["peak_bytes_in_use"] / estimate
    yield check(f"memory of {case} over the estimate", share <= 1.15, share, wanted)


def run(order: Answer) -> Answer:
    """Every check; one that cannot run has failed. order: `case` is whose memory is looked at."""
    found: list[Answer] = []
    parts = (numerics, quantized, packed_kernel, objectives, tuning)
    for part in (*parts, partial(step_memory, order["case"])):
        name = getattr(part, "__name__", "step_memory")
        try:
            found.extend(part())
        except Exception as error:
            first = next(iter(str(error).splitlines()), "")
            found.append(check(name, False, f"{type(error).__name__}: {first}"[:200], "to run"))
    return {"device": jax.devices()[0].device_kind, "checks": found}


if __name__ == "__main__":
    serve({"check": run})
