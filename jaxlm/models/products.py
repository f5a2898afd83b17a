"""Matrix products with a backward pass of our own.

Two things that automatic differentiation gets wrong: with `preferred_element_type` both backward
products become float32 x float32, and the weight's gradient transposes the larger of its operands.
"""

import math
from functools import partial

import jax
from jax import Array
from jax.typing import DTypeLike


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: Array, kernel: Array, out: DTypeLike) -> Array:
    """x [..., I] with kernel [I, O] -> [..., O] in the type `out`, summed in float32.

    x and kernel have one type, and so have the operands of every backward product.
    """
    over = (((x.ndim - 1,), (0,)), ((), ()))
    return jax.lax.dot_general(x, kernel, over, preferred_element_type=out)


def _forward(x: Array, kernel: Array, out: DTypeLike) -> tuple[Array, tuple[Array, Array]]:
    return matmul(x, kernel, out), (x, kernel)


def _backward(out: DTypeLike, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    grad = grad.astype(x.dtype)
    rows = tuple(range(x.ndim - 1))
    dx = jax.lax.dot_general(grad, kernel, (((x.ndim - 1,), (1,)), ((), ())))
    # The first operand is the one that is transposed in memory: let it be the narrow one.
    narrow, wide = (x, grad) if x.shape[-1] <= grad.shape[-1] else (grad, x)
    dkernel = jax.lax.dot_general(narrow, wide, ((rows, rows), ((), ())))
    return dx, dkernel if narrow is x else dkernel.T


matmul.defvjp(_forward, _backward)


def dense(x: Array, kernel: Array, contracted: int) -> Array:
    """x [..., *I] with kernel [*I, *O] over its `contracted` first dimensions -> [..., *O]."""
    inputs, outputs = kernel.shape[:contracted], kernel.shape[contracted:]
    lead = x.shape[: x.ndim - contracted]
    width = math.prod(inputs)
    y: Array = matmul(x.reshape(*lead, width), kernel.reshape(width, -1), x.dtype)
    return y.reshape(*lead, *outputs)
