"""The real step compiled for TPUs that are not here; needs libtpu, which needs no TPU."""

from importlib.util import find_spec

import jax
import pytest

from jaxlm.config.load import load
from jaxlm.core.errors import ConfigError
from jaxlm.plan import ahead, devices
from jaxlm.plan.devices import Machine, machine
from jaxlm.plan.sketch import model, resolved, sketch

pytestmark = pytest.mark.peers
libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="needs jaxlm[tpu]")

SMALL = [
    *("model.layers=2", "model.embed=512", "model.heads=4", "model.kv_heads=4"),
    *("model.mlp=512", "model.vocab=512", "length=128", "batch=4"),
]


def compiled(*words):
    found = sketch(model(resolved(load("llama3_8b", [*SMALL, *words])), "tpu"), machine("v5e:2x2"))
    return found, ahead.compiled(found)


@libtpu
@pytest.mark.parametrize(
    ("mesh", "kinds"),
    [
        (["mesh.data=4", "mesh.fsdp=1"], {"all-reduce"}),
        (["mesh.fsdp=4"], {"all-gather", "ring"}),
        (["mesh.fsdp=1", "mesh.tensor=4"], {"all-reduce"}),
    ],
    ids=["data", "fsdp", "tensor"],
)
def test_the_collectives_are_those_that_the_mesh_calls_for(mesh, kinds):
    found, said = compiled(*mesh)
    assert said.kernels >= 3  # splash attention: forward, dq, dkv
    assert said.collectives.keys() & kinds
    if mesh[0] == "mesh.data=4":  # each gradient is reduced, and nothing gathered
        whole = found.model.facts["trained"] * 2
        assert "all-gather" not in said.collectives and "ring" not in said.collectives
        assert said.collectives["all-reduce"].bytes > whole
    if mesh[-1] == "mesh.tensor=4":  # activations: two each way in each layer, once more in remat
        assert said.collectives["all-reduce"].count >= 8
    assert found.use.total / 2 < said.peak < 2 * found.use.total


@libtpu
def test_gradients_are_added_up_in_the_loop_over_microbatches():
    """The compiler takes only those of the embedding and the head, in float32, out of it."""
    words = "mesh.data=4", "mesh.fsdp=1", "batch=16"
    once, often = (
        compiled(*words, f"microbatches={parts}")[1].collectives["all-reduce"].bytes
        for parts in (1, 4)
    )
    whole = 2 * 3 / 4 * 4 * 2 * 512 * 512
    assert (often - whole) / (once - whole) == pytest.approx(4, rel=0.02)


@libtpu
@pytest.mark.parametrize("words", ["v5e:1x1", "v5e:2x4", "v6e:1x1*2", "v5p:2x2x4", "v5e:4x4*2"])
def test_devices_are_known_by_where_they_are(words):
    assert devices.of(ahead.topology(machine(words))) == machine(words)


def test_of_the_options_only_what_is_unknown_is_dropped(monkeypatch):
    """By this machine's own compiler."""
    tried = []

    def compile_step(add, options):
        tried.append({*options})
        return jax.jit(add, compiler_options=options).lower(1.0).compile()

    monkeypatch.setattr(ahead, "compile_step", compile_step)
    known, unknown = "xla_cpu_enable_fast_math", {"xla_cpu_no_such": True, "xla_cpu_nor_this": 1}
    made = ahead._compile((lambda x: x + 3,), {known: False, **unknown})
    assert made(1.0) == 4 and tried[-1] == {known} and len(tried) <= 3


@libtpu
def test_a_step_that_does_not_fit_is_said_by_the_compiler():
    from jaxlm.core.errors import OutOfMemoryError

    with pytest.raises(OutOfMemoryError, match="HBM"):
        compiled("model.mlp=65536", "model.layers=48", "model.vocab=128256", "mesh.fsdp=4")


@libtpu
def test_a_topology_that_libtpu_does_not_know_is_refused():
    with pytest.raises(ConfigError, match="v5e:3x3: libtpu says .*; plan it without") as found:
        ahead.topology(Machine(machine("v5e:2x2").device, (3, 3)))
    assert found.value.code == 2 and "\n" not in str(found.value)


@libtpu
def test_chips_that_libtpu_takes_for_two_devices_are_refused():
    with pytest.raises(ConfigError, match="8 devices for jax, not 4; plan it without --compile"):
        ahead.topology(machine("v4:2x2x1"))


@libtpu
def test_slices_lie_as_the_run_lays_them():
    words = "mesh.slices=2", "mesh.data=2", "mesh.fsdp=-1"
    assert compiled(*words)[1].collectives


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(ahead, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="jaxlm\\[tpu\\]"):
        ahead.topology(machine("v5e:2x2"))
