"""Giving a bilinear function the gradients one wants, without giving up forward mode.

A convolution y = B(x, w) is linear in x and in w, so its derivative is dy = B(dx, w) + B(x, dw), and its two gradients
are the transposes of those linear maps. JAX would derive them from the way B is written; often another way is faster.
A `custom_vjp` could say so but forbids forward mode. Here the tangent itself is written as the transpose of the wanted
gradient: reverse mode transposes it back and runs exactly that gradient, forward mode runs the tangent, and higher
derivatives and batching go through as through any other function.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero


def bilinear(
    forward: Callable[[Array, Array, Any], Array],
    for_input: Callable[[Array, Array, Any], Array],
    for_kernel: Callable[[Array, Array, Any], Array],
    keep: bool = False,
) -> Callable[[Array, Array, Any], Array]:
    """The function `forward`, differentiated by two given gradients.

    Args:
      forward: y = forward(x, w, g), linear in x and in w; g is static and hashable.
      for_input: the gradient of <y, dy> in x, as for_input(dy, w, g); linear in dy.
      for_kernel: the gradient of <y, dy> in w, as for_kernel(x, dy, g); linear in dy.
      keep: whether x and dy are kept in memory for the gradients, rather than computed again: see `opaque_one`.

    Returns:
      A function with the signature and the values of `forward`, differentiable in both modes and any number of times.
    """

    @functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
    def product(x: Array, w: Array, g: Any) -> Array:
        return forward(x, w, g)

    @functools.partial(product.defjvp, symbolic_zeros=True)
    def _(g, primals, tangents):
        x, w = primals
        dx, dw = tangents
        one = opaque_one(w) if keep else 1
        x = x / one if keep else x
        y = product(x, w, g)
        terms = []
        if not isinstance(dx, SymbolicZero):
            terms += jax.linear_transpose(lambda dy: for_input(dy, w, g), y)(dx)
        if not isinstance(dw, SymbolicZero):
            terms += jax.linear_transpose(lambda dy: for_kernel(x, dy, g), y)(dw)
        tangent = sum(terms[1:], terms[0])
        return y, tangent / one if keep else tangent

    return lambda x, w, g: product(*varying_alike(x, w), g)


def varying_alike(x: Array, w: Array) -> tuple[Array, Array]:
    """The operands, marked as varying over the same axes of the mesh: inside `jax.shard_map` gradients must be, too."""
    over_x, over_w = (jax.typeof(a).mat.varying for a in (x, w))
    x = lax.pcast(x, tuple(over_w - over_x), to="varying") if over_w - over_x else x
    w = lax.pcast(w, tuple(over_x - over_w), to="varying") if over_x - over_w else w
    return x, w


def opaque_one(w: Array) -> Array:
    """The number 1, in the dtype of `w`, in a form that XLA does not see through.

    Before it compiles loops XLA's CPU backend fuses cheap operations into every reader of their result, and drops
    `lax.optimization_barrier` earlier still. What precedes a convolution (normalisation, activation, the sum of a
    residual block, and whatever came before that) is so computed again for each gradient, in the order in which a
    transposed copy reads it: on ResNet-20 a quarter of a training step. Measured with jaxlib 0.10.2, a division by this
    number makes XLA compute what is divided once and keep it (a multiplication doesn't); nothing promises that, and
    only speed depends on it. Dividing by 1 changes no bit.
    """
    bits = lax.bitcast_convert_type(jnp.real(w[(0,) * w.ndim]), jnp.dtype(f"int{jnp.finfo(w.dtype).bits}"))
    return jnp.minimum(jnp.maximum(bits, 1), 1).astype(w.dtype)
