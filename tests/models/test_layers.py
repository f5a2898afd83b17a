"""The parts of a block against their formulas in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.models.dense import Dense
from jaxlm.models.heads import product
from jaxlm.models.layers import Mlp, Normalize, gelu
from jaxlm.models.products import matmul
from jaxlm.models.spec import Norm

RNG = np.random.default_rng(0)
X = RNG.normal(2.0, 3.0, (2, 3, 8)).astype(np.float32)
SCALE, BIAS = RNG.normal(size=(2, 8)).astype(np.float32)
GELU = np.vectorize(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2)
ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": GELU,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
}


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_norms_are_their_formulas(kind, dtype, tolerance):
    x = np.asarray(jnp.asarray(X, dtype), np.float64)
    leaves = {"scale": SCALE} | ({"bias": BIAS} if kind == "layer" else {})
    norm = Normalize(Norm(type=kind, eps=1e-3))
    found = norm.apply({"params": leaves}, jnp.asarray(X, dtype))
    centered = x - x.mean(-1, keepdims=True) if kind == "layer" else x
    right = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-3) * SCALE
    right = right + BIAS if kind == "layer" else right
    assert isinstance(found, jax.Array) and found.dtype == dtype
    np.testing.assert_allclose(np.float64(found), right, atol=tolerance * np.abs(right).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_gelu_is_exact_in_its_tails_too(dtype, tolerance):
    given = jnp.linspace(-8, 8, 513, dtype=dtype)
    x = np.float64(given)
    slopes = GELU(x + 1e-6) - GELU(x - 1e-6)
    found = jax.vmap(jax.grad(gelu))(given)
    for ours, right in ((gelu(given), GELU(x)), (found, slopes / 2e-6)):
        assert ours.dtype == given.dtype
        np.testing.assert_allclose(np.float64(ours), right, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [True, False])
def test_the_mlp_is_its_formula(activation, gated):
    names = ("gate", "up", "down") if gated else ("up", "down")
    shapes = {"gate": (8, 16), "up": (8, 16), "down": (16, 8)}
    leaves = {
        name: {"kernel": RNG.normal(size=shapes[name]), "bias": RNG.normal(size=shapes[name][1])}
        for name in names
    }
    mlp = Mlp(16, activation, gated, True, jnp.float32, 0.02, 0.02)
    found = mlp.apply({"params": jax.tree.map(jnp.float32, leaves)}, X)
    y = {name: X @ leaves[name]["kernel"] + leaves[name]["bias"] for name in names[:-1]}
    hidden = ACTIVATIONS[activation](y[names[0]]) * (y["up"] if gated else 1)
    right = hidden @ leaves["down"]["kernel"] + leaves["down"]["bias"]
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "outputs", "formula"),
    [((8,), (2, 4), "blx,xnh->blnh"), ((2, 4), (8,), "blnh,nhx->blx")],
)
def test_a_dense_layer_contracts_its_inputs(inputs, outputs, formula):
    x, kernel = X.reshape(2, 3, *inputs), RNG.normal(size=inputs + outputs).astype(np.float32)
    bias = RNG.normal(size=outputs).astype(np.float32)
    dense = Dense(inputs, outputs, jnp.float32, bias=True)
    found = dense.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(found, np.einsum(formula, x, kernel) + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wide", [4, 20])  # outputs fewer, and more, than the inputs
def test_products_with_a_gradient_of_their_own_have_the_right_one(wide):
    kernel = RNG.normal(size=(8, wide)).astype(np.float32)
    dy = RNG.normal(size=(2, 3, wide)).astype(np.float32)
    right = (np.einsum("blo,io->bli", dy, kernel), np.einsum("bli,blo->io", X, dy))
    y, pullback = jax.vjp(lambda x, k: matmul(x, k, jnp.float32), X, kernel)
    np.testing.assert_allclose(y, X @ kernel, rtol=1e-4, atol=1e-4)
    for found, gradient in zip(pullback(dy), right, strict=True):
        np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-4)
    y, pullback = jax.vjp(product, X, kernel.T)
    np.testing.assert_allclose(y, X @ kernel, rtol=1e-4, atol=1e-4)
    for found, gradient in zip(pullback(dy), (right[0], right[1].T), strict=True):
        np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-4)
