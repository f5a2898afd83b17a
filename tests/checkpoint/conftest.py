"""A small state on a mesh of fake devices, and what it looks like."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.checkpoint.commit import Checkpoints
from jaxlm.core.mesh import make_mesh


class State(NamedTuple):
    params: Any
    opt: Any


def place(tree: Any, sizes: dict[str, int]) -> Any:
    """Shardings on a mesh of the given sizes: the first axis over fsdp, the second over tensor."""
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])

    def one(leaf: Any) -> NamedSharding:
        axes = [
            axis if length % mesh.shape[axis] == 0 else None
            for axis, length in zip(("fsdp", "tensor"), leaf.shape, strict=False)
        ]
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(one, tree)


def make(seed: int, sizes: dict[str, int], width: int = 16) -> State:
    """AdamW's first state, with parameters of several dtypes from the seed."""
    return _builder(tuple(sizes.items()), width)(seed)


@functools.cache
def _builder(sizes: tuple[tuple[str, int], ...], width: int) -> Any:
    def build(seed: Any) -> State:
        key = jax.random.key(seed)
        params = {
            "embedding": jax.random.normal(key, (32, width)),
            "blocks": {
                "kernel": jax.random.normal(key, (3, width, 8), jnp.bfloat16),
                "packed": jax.random.bits(key, (8, 4), jnp.uint8),
                "scale": jnp.float32(seed),
                "none": jnp.zeros((0, 4)),
            },
        }
        return State(params, optax.adamw(1e-3).init(params))

    return jax.jit(build, out_shardings=place(jax.eval_shape(build, 0), dict(sizes)))


def like(state: State, sizes: dict[str, int]) -> State:
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        state,
        place(state, sizes),
    )


def same(a: Any, b: Any) -> bool:
    """Equal bits, dtypes and structure."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


class Kit:
    """Saves and restores that state; `lines` are the warnings."""

    def __init__(self, folder: Any):
        self.folder = folder
        self.lines: list[str] = []

    make, like, same = staticmethod(make), staticmethod(like), staticmethod(same)

    def open(self, **options: Any) -> Checkpoints:
        return Checkpoints(self.folder, warn=self.lines.append, **options)

    def fill(self, *steps: int, width: int = 16, **options: Any) -> dict[int, State]:
        """Checkpoints of these steps; the state of a step is made from it."""
        checkpoints = self.open(**({"keep": len(steps)} | options))
        states = {step: make(step, {"fsdp": 4, "tensor": 2}, width) for step in steps}
        for step, state in states.items():
            assert checkpoints.save(step, state.params, state.opt, {"position": step * 8})
            checkpoints.wait()
        return states

    def restore(self, checkpoints: Checkpoints | None = None, width: int = 16) -> tuple:
        """(step, state, meta) of the newest good checkpoint."""
        template = like(make(0, {"fsdp": 8}, width), {"fsdp": 8})
        step, params, opt, meta = (checkpoints or self.open()).restore(*template)
        return step, State(params, opt), meta


@pytest.fixture
def kit(tmp_path) -> Kit:
    return Kit(tmp_path / "checkpoints")
