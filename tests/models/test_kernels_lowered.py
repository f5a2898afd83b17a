"""The programs for accelerators, read as text on a machine without one."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import networks
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused

from jaxlm.models import backends, gpu
from jaxlm.models.flash import chunked
from jaxlm.models.scores import Scores
from jaxlm.models.transformer import make_forward

SPEC = networks.spec(embed=64, heads=4, kv_heads=2, head_dim=16)
HOW = Scores(128**-0.5)
SHAPES = [jax.ShapeDtypeStruct((2, 256, n, 128), jnp.bfloat16) for n in (4, 2, 2)]


@pytest.fixture
def hopper(monkeypatch):
    """What jax asks of a GPU before it lowers the fused kernel, answered as a Hopper would."""
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91300)
    monkeypatch.setattr(fused, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda _: False)
    monkeypatch.setattr(backends, "choose", lambda asked, *_: asked.replace("auto", "cudnn"))
    monkeypatch.setattr(gpu, "packed_works", lambda: True)


def text(function, *arrays, platform="cuda"):
    return jax.jit(function).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


def calls(program):
    """(forward, backward) calls of the fused kernel, without and with a bias."""
    found = re.findall(r"custom_call @__cudnn\$fmha(\w*)", program)
    assert not [name for name in found if "Bias" in name]
    backward = [name for name in found if name.endswith("Backward")]
    return len(found) - len(backward), len(backward)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("remat", ["none", "products", "full"])
def test_a_layer_runs_the_fused_kernel_once_forward_and_once_backward(hopper, packed, remat):
    spec = SPEC.model_copy(update={"remat": remat})
    forward = make_forward(spec, networks.layout(), jnp.bfloat16)
    batch = networks.batch()
    if not packed:
        batch = {name: batch[name] for name in ("tokens", "positions")}

    def loss(params, batch):
        return forward.hidden(params, batch, None)[0].astype(jnp.float32).sum()

    program = text(jax.grad(loss), networks.params(spec), batch)
    # Layers are scanned, so one call in the text is one per layer; "full" asks for another.
    assert calls(program) == (2 if remat == "full" else 1, 1)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_on_a_mesh_each_device_runs_the_kernel_on_its_heads(hopper, packed):
    rows = jnp.ones((8, 256), jnp.int32) if packed else None
    at, arrays = networks.layout(data=2, fsdp=2, tensor=2), [(8, *s.shape[1:]) for s in SHAPES]
    run = partial(backends.attention, segments=rows, layout=at, how=HOW)
    program = text(run, *(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in arrays))
    assert calls(program) == (1, 0)
    heads = 2 if packed else 1  # keys of packed rows are repeated
    operands = f"(tensor<2x256x2x128xbf16>, tensor<2x256x{heads}x128xbf16>"
    assert operands in next(line for line in program.splitlines() if "__cudnn$fmha" in line)


def test_the_backward_kernel_gets_the_result_of_the_forward_one(hopper):
    """Where keys and values have the shape of the result, it must not be taken for them."""

    def loss(*arrays):
        return gpu.cudnn(*arrays, None, how=HOW).astype(jnp.float32).sum()

    program = text(jax.grad(loss, argnums=(0, 1, 2)), *SHAPES[:1] * 3)
    call = re.search(r"(%\d+):3 = stablehlo.custom_call @__cudnn\$fmhaSoftmax\(", program)
    kernel = re.search(r"@__cudnn\$fmhaSoftmaxBackward\((.*?)\)", program)
    assert call and kernel
    q, k, v, statistics, _, y = kernel[1].split(", ")
    assert [q, k, v, statistics] == ["%arg0", "%arg1", "%arg2", f"{call[1]}#1"]
    assert re.search(rf"{y} = stablehlo.transpose {call[1]}#0,", program)


def test_without_a_gradient_there_is_only_the_forward_kernel(hopper):
    assert calls(text(partial(gpu.cudnn, segments=None, how=HOW), *SHAPES)) == (1, 0)


def test_a_window_keeps_the_fused_kernel(hopper):
    how = HOW._replace(window=64)
    assert calls(text(partial(gpu.cudnn, segments=None, how=how), *SHAPES)) == (1, 0)


def test_packed_rows_need_the_kernel_to_have_been_tried(hopper, monkeypatch):
    monkeypatch.setattr(gpu, "packed_works", lambda: False)
    rows = jnp.ones((2, 256), jnp.int32)
    assert calls(text(partial(gpu.cudnn, segments=rows, how=HOW), *SHAPES)) == (0, 0)


def test_the_trial_of_the_packed_kernel_sees_what_is_wrong():
    exact = partial(chunked, how=gpu.TRIAL)
    assert gpu.agrees(exact)
    assert not gpu.agrees(lambda q, k, v, segments: exact(q, k, v, jnp.minimum(segments, 1)))
    assert not gpu.agrees(gpu._run_packed)  # raises on a CPU
    assert not gpu.packed_works()


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize(("remat", "kernels"), [("none", 3), ("products", 3), ("full", 4)])
def test_a_layer_runs_splash_once_forward_and_twice_backward(monkeypatch, packed, remat, kernels):
    """One kernel for the gradient of the queries, one for that of keys and values."""
    monkeypatch.setattr(backends, "choose", lambda asked, *_: asked.replace("auto", "splash"))
    spec = networks.spec(heads=2, kv_heads=1, head_dim=128, remat=remat)
    forward = make_forward(spec, networks.layout(), jnp.bfloat16)
    batch = networks.batch(length=128)
    if not packed:
        batch = {name: batch[name] for name in ("tokens", "positions")}

    def loss(params, batch):
        return forward.hidden(params, batch, None)[0].astype(jnp.float32).sum()

    program = text(jax.grad(loss), networks.params(spec), batch, platform="tpu")
    assert program.count("@tpu_custom_call") == kernels
