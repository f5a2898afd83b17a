"""Options that a compiler does not know are left out, by asking it."""

from dataclasses import dataclass

import jax
import pytest

from jaxlm.core.compiler import TABLE, Chosen, choose, knows, refused

KNOWN, UNKNOWN = "xla_cpu_enable_fast_math", "xla_cpu_no_such_option"
OWN = (
    ("cpu", "", {KNOWN: False, UNKNOWN: True}),
    ("cpu", "another kind", {"xla_cpu_of_another_kind": True}),
    ("gpu", "", {"xla_gpu_of_others": True}),
)


@dataclass
class Chip:
    """What the table reads of a device."""

    platform: str
    device_kind: str


def test_an_unknown_option_is_dropped_and_named():
    found = choose(jax.devices(), OWN, {})
    assert found == Chosen({KNOWN: False}, (UNKNOWN,), ())
    line = f"compiled with {KNOWN}=false; unknown to jaxlib {jax.lib.__version__}: {UNKNOWN}"
    assert found.line() == line
    run = jax.jit(lambda x: x + 1, compiler_options=found.options)
    assert run.lower(1.0).compile()(1.0) == 2


def test_what_the_environment_says_counts():
    found = choose(jax.devices(), OWN, {"XLA_FLAGS": f"--a=1 --{KNOWN}=true --{UNKNOWN}_too=1"})
    assert found == Chosen({}, (UNKNOWN,), (KNOWN,))
    assert found.line().endswith(f"; as the environment says: {KNOWN}")


@pytest.mark.parametrize("count", [1, 8])
def test_one_device_and_cpus_are_compiled_for_as_ever(count):
    found = choose(jax.devices()[:count])
    assert found == Chosen({}) and found.line() == ""


def test_an_error_names_what_is_unknown():
    options = {KNOWN: False, UNKNOWN: True, f"{UNKNOWN}_more": True}
    run = jax.jit(lambda x: x + 2, compiler_options=options)
    with pytest.raises(jax.errors.JaxRuntimeError) as found:
        run.lower(1.0).compile()
    assert len(refused(found.value, options)) == 1 and KNOWN not in refused(found.value, options)
    assert refused(ValueError(f"{KNOWN} is odd"), options) == set()


def test_a_value_that_is_none_is_dropped_like_a_name():
    assert not knows(xla_gpu_enable_while_loop_unrolling="sometimes")
    assert knows(xla_gpu_enable_while_loop_unrolling="WHILE_LOOP_UNROLLING_DOUBLE_BUFFER")


def test_every_jaxlib_knows_most_of_what_gpus_are_compiled_with():
    """The CPU's compiler reads the names of GPUs' options too. Pipelining changed its name."""
    found = choose([Chip("gpu", "NVIDIA H200")] * 2, environment={})
    assert {"pipeline" in name for name in found.unknown} == {True}
    assert len(found.unknown) == 3 and sum("pipeline" in name for name in found.options) == 3
    assert "xla_gpu_enable_latency_hiding_scheduler" in found.options


def test_a_kind_adds_to_its_platform(monkeypatch):
    monkeypatch.setattr("jaxlm.core.compiler.knows", lambda **options: True)
    v5, v6 = (choose([Chip("tpu", f"TPU {kind}")] * 4, TABLE, {}) for kind in ("v5p", "v6 lite"))
    assert v6.options.keys() - v5.options.keys() == {"xla_tpu_scoped_vmem_limit_kib"}
