"""Collectives are read from compiled programs, those of loops as often as they run."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxlm.core.mesh import make_mesh
from jaxlm.plan.collectives import Traffic, collectives

pytestmark = pytest.mark.once


def compiled(fn, in_specs, out_specs, shape):
    mesh = make_mesh({"fsdp": 8})
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile().as_text()


OWN = 16 * 4 * 4
"""Bytes of a device's part."""


@pytest.mark.parametrize(
    ("kind", "one", "received"),
    [
        ("all-gather", lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), 7 * OWN),
        ("reduce-scatter", lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True), 7 * OWN // 8),
        ("all-reduce", lambda x: jax.lax.psum(x, "fsdp"), 2 * 7 * OWN // 8),
        ("collective-permute", lambda x: jax.lax.ppermute(x, "fsdp", [(0, 1), (1, 0)]), OWN),
    ],
)
def test_bytes_are_those_that_a_device_receives(kind, one, received):
    assert collectives(compiled(one, P("fsdp"), P("fsdp"), (8 * 16, 4))) == {
        kind: Traffic(1, received)
    }


def test_a_loop_counts_for_each_iteration():
    def loop(x):
        return jax.lax.fori_loop(0, 5, lambda i, x: jax.lax.psum(x, "fsdp") * 0.5 + i, x)

    found = collectives(compiled(loop, P("fsdp"), P("fsdp"), (8 * 16, 4)))
    assert found["all-reduce"].count == 5


TPU = """\
%body.1 (p: (u32[], bf16[4,8])) -> (u32[], bf16[4,8]) {
  %s = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=3, x
}

%cond.1 (p: (u32[], bf16[4,8])) -> pred[] {
  %c = u32[]{:T(128)} constant(7)
}

%windowed_dot_general_body.2 (p: (u32[], bf16[4,8])) -> (u32[], bf16[4,8]) {
  %s = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=4, x
}

%async.1 (p: bf16[4,8]) -> bf16[64,8] {
  %g = bf16[64,8]{1:T(8,128)} all-gather(%p), channel_id=5, replica_groups=mesh['a'=2,'b'=16] {'b'}
}

%async.2 (p: bf16[4,8]) -> bf16[64,8] {
  %g = bf16[64,8]{1,0} all-gather(%p), channel_id=5, replica_groups=mesh['a'=2,'b'=16] {'b'}
}

%never (p: bf16[4,8]) -> bf16[64,8] {
  %g = bf16[64,8]{1,0} all-gather(%p), channel_id=9, replica_groups=[2,16]<=[32]
}

ENTRY %main.1 (p: bf16[4,8]) -> bf16[4,8] {
  %w = (u32[], bf16[4,8]) while(%t), condition=%cond.1, body=%body.1
  %v = (u32[], bf16[4,8]) while(%t), condition=%cond.1, body=%windowed_dot_general_body.2
  %f = bf16[64,8] fusion(%p), kind=kOutput, calls=%async.1
  %h = bf16[64,8] fusion(%p), kind=kOutput, calls=%async.2
  %r = (f32[8]{0}, f32[]) all-reduce(%p, %q), channel_id=6, replica_groups={{0,1},{2,3}}
}
"""
"""As the TPU compiler writes it: a gather in two fused steps is one, by its channel."""


STARTED = """\
ENTRY %main.1 (p: bf16[4,8], q: bf16[2,8]) -> bf16[4,8] {
  %a = ((bf16[4,8], f32[2,8]{1,0}), (bf16[16,8], f32[8,8]{1,0})) all-gather-start(%p, %q), GROUPS
  %b = (bf16[4,8]{1,0}, bf16[16,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) all-gather-start(%p), GROUPS
  %c = ((f32[8,8]{1,0}), f32[2,8]{1,0}) reduce-scatter-start(%p), GROUPS
}
""".replace("GROUPS", "channel_id=1, replica_groups=[1,4]<=[4]")


def test_what_is_started_is_read_by_its_results():
    """Several at once too; and a channel is not one collective's, outside of fusions."""
    assert collectives(STARTED) == {
        "all-gather": Traffic(2, (16 * 8 * 2 + 8 * 8 * 4) * 3 // 4 + 16 * 8 * 2 * 3 // 4),
        "reduce-scatter": Traffic(1, 2 * 8 * 4 * 3),
    }


def test_tpu_programs_are_read():
    assert collectives(TPU) == {
        "all-gather": Traffic(1, 64 * 8 * 2 * 15 // 16),
        "all-reduce": Traffic(1, 36),
        "collective-permute": Traffic(7, 7 * 64),
        "ring": Traffic(7, 7 * 64),
    }
