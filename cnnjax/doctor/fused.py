"""Convolutions followed by what networks put behind them, compiled as one program, against exact values.

XLA compiles a whole program: a convolution that is right alone may be wrong where it meets a mean over its rows. So
each implementation is compared here under one `jit`, at training sizes, with what follows it in networks: values, and
the gradients through all of it.

Operands are small integers. Then every product and every partial sum is an integer of less than 2^24, or that divided
by a power of two, and has no rounding in float32, whatever the order: what is computed differs from the right value by
nothing at all, or is wrong. The right values come from NumPy in float64. There is rounding all the same

- in Winograd's algorithm and FFTs, and on other devices than CPUs: an element may be off by `SLACK` of the largest sum
  of the absolute values that one is made of;
- in softmaxes and in gradients shared by equal maxima: by `SLACK` of the sum for that element, or, over K rows, by K u
  of it with u = 2^-24, as in any sum of K products;
- in results in bfloat16.

What is compiled wrongly is off by far more.
"""

import functools
import itertools
import math
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnjax.doctor.exact import tiled_by_auto
from cnnjax.ops import CONV_IMPLEMENTATIONS, avg_pool, conv_implementation, max_pool

SIZES = (2**15, 2**17, 2**18)
"""About how many rows a convolution's input has: examples times positions."""
SIDES = (48, 32, 56, 28)
"""Heights and widths of images by turns. Powers of two alone would not do: what jaxlib 0.10.1 compiles wrongly over 48
columns is right over 32 and 64."""
SLACK = 2.0**-12
"""Of the sum of the absolute values of its terms, how far off an element may be where there is rounding."""
NONZERO = 9
"""Numbers in the kernel of each feature that aren't 0."""
POOL = 2
"""Side and stride of the pooling windows."""

# --- What is computed -------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """A convolution, channels last, with square kernels of an odd number of taps centred on each stride-th position."""

    channels: int
    features: int
    taps: int = 3
    stride: int = 1
    groups: int = 1
    side: int = SIDES[0]

    @property
    def name(self) -> str:
        """Such as "3x3x16x16, stride 2"."""
        more = [f"stride {self.stride}"] * (self.stride > 1) + [f"{self.groups} groups"] * (self.groups > 1)
        kernel = f"{self.taps}x{self.taps}x{self.channels // self.groups}x{self.features}"
        return ", ".join([kernel, *more])

    def options(self) -> dict[str, Any]:
        """As `lax.conv_general_dilated` takes them."""
        return {
            "window_strides": (self.stride, self.stride),
            "padding": ((self.taps // 2, self.taps // 2),) * 2,
            "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
            "feature_group_count": self.groups,
        }


LAYERS = (
    Layer(1, 6, taps=5),  # LeNet-5's first
    Layer(3, 16),  # ResNet-20's: its first, one of each stage, and those between
    Layer(16, 16),
    Layer(16, 32, stride=2),
    Layer(32, 32),
    Layer(64, 64),
    Layer(16, 32, taps=1),  # a product
    Layer(16, 16, groups=16),  # depthwise
    Layer(16, 16, groups=4),
    Layer(64, 10, taps=1, side=1),  # a dense layer
    Layer(32, 32, groups=16),  # in a loop
)
"""One of each class that `auto` computes in another way, or XLA does."""


class Tail(NamedTuple):
    """What follows a convolution y, in JAX and by hand in NumPy."""

    outputs: Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]]
    """(y, bias) -> outputs: what is compiled."""
    exact: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]
    """The same in float64."""
    pull: Callable[..., np.ndarray]
    """(y, bias, weights of the outputs) -> the gradient in y of the sum of the outputs times their weights."""
    integers: bool = True
    """Whether its values have no rounding."""
    integer_gradients: bool = True
    """Whether its gradients have none."""
    antisymmetric: bool = False
    """Whether the second half of the batch is the first with the other sign, so that the mean over rows is 0."""
    needs_space: bool = False
    """Whether there must be more than one position."""


ROWS = (0, 1, 2)
SPACE = (1, 2)


def _wide(y: jax.Array) -> jax.Array:
    """float32: statistics and losses are computed in it whatever the network is computed in."""
    return y.astype(jnp.float32)


def _power(count: int) -> int:
    """The power of two that stands for a count in means, so that they have no rounding; the program is the same."""
    return 1 << (count - 1).bit_length()


def _mean(y: Any, axes: tuple[int, ...] = ROWS) -> Any:
    """The sum over axes, divided by about as many numbers as there are; of JAX's or NumPy's arrays."""
    return y.sum(axes) / _power(math.prod(y.shape[axis] for axis in axes))


def _rows(y: np.ndarray) -> int:
    """What `_mean` divides by."""
    return _power(y.size // y.shape[-1])


def _space(y: np.ndarray) -> int:
    """The same over space alone."""
    return _power(y.shape[1] * y.shape[2])


def _relu_pull(y, bias, c):
    return c * (y + bias > 0)


def _blocks(y: np.ndarray) -> np.ndarray:
    """[n, h, w, f] as [n, h / 2, w / 2, f, 4]: the elements of each pooling window in row-major order."""
    n, h, w, f = y.shape
    y = y.reshape(n, h // POOL, POOL, w // POOL, POOL, f)
    return y.transpose(0, 1, 3, 5, 2, 4).reshape(n, h // POOL, w // POOL, f, POOL * POOL)


def _unblocks(b: np.ndarray) -> np.ndarray:
    """The reverse of `_blocks`."""
    n, h, w, f, _ = b.shape
    return b.reshape(n, h, w, f, POOL, POOL).transpose(0, 1, 4, 2, 5, 3).reshape(n, h * POOL, w * POOL, f)


def _variance_pull(y, c):
    centred = y - _mean(y)
    dy = 2 * c * centred / _rows(y)
    return dy - dy.sum(ROWS) / _rows(y)  # through the mean: nothing where the mean is 0


def _max_pull(y, c, axes):
    largest = y == y.max(axes, keepdims=True)  # which share the gradient
    return c * largest / largest.sum(axes, keepdims=True)


def _max_pool_pull(y, bias, c):
    b = _blocks(y)
    return _unblocks(c[..., None] * (np.arange(POOL * POOL) == b.argmax(-1)[..., None]))


def _targets(y: Any) -> Any:
    """The right classes: example n is of class n mod features."""
    return np.arange(y.shape[0]) % y.shape[-1]


def _loss(y: jax.Array, bias: jax.Array) -> tuple[jax.Array]:
    logits = _mean(_wide(y), SPACE) + _wide(bias)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(_targets(y))[:, None], 1)
    return (-chosen.mean(),)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _loss_exact(y, bias):
    chosen = _log_softmax(_mean(y, SPACE) + bias)[np.arange(len(y)), _targets(y)]
    return (-chosen.mean(),)


def _loss_pull(y, bias, c):
    n, *_, features = y.shape
    of_logits = (np.exp(_log_softmax(_mean(y, SPACE) + bias)) - np.eye(features)[_targets(y)]) / n
    return np.broadcast_to(c * of_logits[:, None, None, :] / _space(y), y.shape)


TAILS: dict[str, Tail] = {
    "mean and mean of squares over rows": Tail(
        lambda y, b: (_mean(_wide(y)), _mean(lax.square(_wide(y)))),
        lambda y, b: (_mean(y), _mean(y**2)),
        lambda y, b, c, d: (c + 2 * d * y) / _rows(y),
    ),
    "variance over rows": Tail(
        lambda y, b: (_mean(lax.square(_wide(y) - _mean(_wide(y)))),),
        lambda y, b: (_mean((y - _mean(y)) ** 2),),
        lambda y, b, c: _variance_pull(y, c),
        antisymmetric=True,
    ),
    "sum over rows": Tail(
        lambda y, b: (_wide(y).sum(ROWS),),
        lambda y, b: (y.sum(ROWS),),
        lambda y, b, c: np.broadcast_to(c, y.shape),
    ),
    "bias and ReLU": Tail(
        lambda y, b: (jax.nn.relu(y + b),),
        lambda y, b: (np.maximum(y + b, 0),),
        _relu_pull,
    ),
    "bias, ReLU and mean over space": Tail(
        lambda y, b: (_mean(_wide(jax.nn.relu(y + b)), SPACE),),
        lambda y, b: (_mean(np.maximum(y + b, 0), SPACE),),
        lambda y, b, c: _relu_pull(y, b, c[:, None, None, :]) / _space(y),
    ),
    "bias, ReLU and sum over rows": Tail(
        lambda y, b: (_wide(jax.nn.relu(y + b)).sum(ROWS),),
        lambda y, b: (np.maximum(y + b, 0).sum(ROWS),),
        _relu_pull,
    ),
    "sum over features": Tail(
        lambda y, b: (_wide(y).sum(-1),),
        lambda y, b: (y.sum(-1),),
        lambda y, b, c: np.broadcast_to(c[..., None], y.shape),
    ),
    "sum of squares over features": Tail(
        lambda y, b: (lax.square(_wide(y)).sum(-1),),
        lambda y, b: ((y**2).sum(-1),),
        lambda y, b, c: 2 * c[..., None] * y,
    ),
    "max over rows": Tail(
        lambda y, b: (_wide(y).max(ROWS),),
        lambda y, b: (y.max(ROWS),),
        lambda y, b, c: _max_pull(y, c, ROWS),
        integer_gradients=False,
    ),
    "max over features": Tail(
        lambda y, b: (y.max(-1),),
        lambda y, b: (y.max(-1),),
        lambda y, b, c: (
            c[..., None] * (y == y.max(-1, keepdims=True)) / (y == y.max(-1, keepdims=True)).sum(-1, keepdims=True)
        ),
        integer_gradients=False,
    ),
    "max pooling": Tail(
        lambda y, b: (max_pool(y, (POOL, POOL), (POOL, POOL)),),
        lambda y, b: (_blocks(y).max(-1),),
        _max_pool_pull,
        needs_space=True,
    ),
    "average pooling": Tail(
        lambda y, b: (avg_pool(y, (POOL, POOL), (POOL, POOL)),),
        lambda y, b: (_blocks(y).mean(-1),),
        lambda y, b, c: _unblocks(np.repeat(c[..., None] / POOL**2, POOL**2, -1)),
        needs_space=True,
    ),
    "loss": Tail(_loss, _loss_exact, _loss_pull, integers=False, integer_gradients=False),
}
"""What networks put behind a convolution, by name."""

PARTS = ("value", "gradients", "kernel gradient")
"""What is compiled: the outputs; the outputs and both gradients; or the gradient in the kernel alone, as in a first
layer."""


class Case(NamedTuple):
    """One program."""

    layer: Layer
    examples: int
    tail: str
    part: str
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """Such as "3x3x16x16 of 57 images of 48x48, float32: loss, gradients"."""
        images = f"{self.examples:,} images of {self.layer.side}x{self.layer.side}"
        return f"{self.layer.name} of {images}, {self.dtype}: {self.tail}, {self.part}"


def cases(
    sizes: Sequence[int] = SIZES,
    layers: Sequence[Layer] = LAYERS,
    tails: Sequence[str] = tuple(TAILS),
    dtype: str = "float32",
) -> list[Case]:
    """Each layer with each tail; sizes, sides and parts by turns, so that each part meets every layer, tail and size.

    Layers of several groups have the smallest size: XLA computes their gradients on CPU some 40 times slower than
    others'. There is an example more than would fill a size, and so rarely a power of two. Cases that share operands
    stand together.
    """
    result = []
    for (i, layer), (j, tail) in itertools.product(enumerate(layers), enumerate(tails)):
        if layer.side > 1:
            layer = layer._replace(side=SIDES[(i + j) % len(SIDES)])
        elif TAILS[tail].needs_space:
            continue
        size = min(sizes) if layer.groups > 1 else sizes[(i + j) % len(sizes)]
        result.append(Case(layer, size // layer.side**2 + 1, tail, PARTS[(i + 2 * j) % len(PARTS)], dtype))
    antisymmetric = lambda case: TAILS[case.tail].antisymmetric
    return sorted(result, key=lambda case: (case.layer, case.examples, antisymmetric(case)))


def implementations(case: Case) -> list[str]:
    """The implementations that can do a case.

    Those that round integers leave out the gradients of maxima, which go elsewhere where equal numbers are not.
    """
    fits = case.layer.stride == 1 and case.layer.taps in (3, 5)
    of_maxima = case.part != "value" and "max" in case.tail
    able = [name for name in CONV_IMPLEMENTATIONS if name != "winograd" or fits]
    return [name for name in able if not (of_maxima and rounds(case.layer, name))]


def rounds(layer: Layer, implementation: str) -> bool:
    """Whether an implementation transforms a layer's operands, so that even integers are rounded."""
    if implementation != "auto":
        return implementation in ("winograd", "fft")
    x = (2, layer.side, layer.side, layer.channels)
    w = (layer.taps, layer.taps, layer.channels // layer.groups, layer.features)
    return bool(tiled_by_auto(x, w, "float32", **layer.options()))


# --- The right values -------------------------------------------------------------------------------------------------


class Expected(NamedTuple):
    """An array as it should be."""

    name: str
    """Such as "output 1" or "kernel gradient"."""
    value: np.ndarray
    scale: np.ndarray
    """The sum of the absolute values that each element is made of."""
    integers: bool
    """Whether there is no rounding."""


class Operands(NamedTuple):
    """What a convolution is given, and what it makes of it, in float64."""

    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray
    y: np.ndarray
    scale: np.ndarray  # of y


@functools.lru_cache(maxsize=2)
def operands(layer: Layer, examples: int, antisymmetric: bool) -> Operands:
    """Integers of at most 1 in size, mostly positive, and no more than `NONZERO` in the kernel of a feature.

    So y^2 is below 2^6 on average, and its sum over 2^18 rows below 2^24. Biases are halves of odd numbers: y + bias is
    never 0.
    """
    rng = np.random.default_rng(zlib.crc32(repr((layer, examples)).encode()))
    terms = layer.taps**2 * layer.channels // layer.groups
    x = rng.integers(0, 2, (examples, layer.side, layer.side, layer.channels), np.int8).astype(float)
    if antisymmetric:  # one left over is 0
        half = examples // 2
        x[half:] = 0
        x[half : 2 * half] = -x[:half]
    kept = rng.random((terms, layer.features)).argsort(0) < NONZERO  # as many in each column
    w = np.where(kept, rng.choice([-1.0, 1.0], kept.shape, p=[0.25, 0.75]), 0)
    w = w.reshape(layer.taps, layer.taps, -1, layer.features)
    bias = rng.integers(-8, 4, layer.features) + 0.5
    return Operands(x, w, bias, convolve(layer, x, w), convolve(layer, abs(x), abs(w)))


def _seen(layer: Layer, x: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """For each tap (a, b): the elements of the padded x that it meets, a view of [n, *output space, channel]."""
    outputs = (layer.side - 1) // layer.stride + 1
    along = lambda tap: slice(tap, tap + (outputs - 1) * layer.stride + 1, layer.stride)
    for a, b in np.ndindex(layer.taps, layer.taps):
        yield a, b, x[:, along(a), along(b)]


def _padded(layer: Layer, x: np.ndarray) -> np.ndarray:
    return np.pad(x, ((0, 0), *[(layer.taps // 2, layer.taps // 2)] * 2, (0, 0)))


def _by_group(layer: Layer, *arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Views of each group's part of the last axes."""
    return zip(*(np.split(array, layer.groups, -1) for array in arrays), strict=True)


def convolve(layer: Layer, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """y by its definition: a sum over taps of shifted inputs times matrices."""
    by_group = []
    for x_g, w_g in _by_group(layer, _padded(layer, x), w):
        by_group.append(sum(seen @ w_g[a, b] for a, b, seen in _seen(layer, x_g)))
    return np.concatenate(by_group, -1)


def gradients(layer: Layer, x: np.ndarray, w: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of <y, dy> in x and w: the same sum, run backwards."""
    padded, dw = _padded(layer, x), np.zeros_like(w)
    dx = np.zeros_like(padded)
    for x_g, dx_g, w_g, dw_g, dy_g in _by_group(layer, padded, dx, w, dw, dy):
        for (a, b, seen), (_, _, back) in zip(_seen(layer, x_g), _seen(layer, dx_g), strict=True):
            back += dy_g @ w_g[a, b].T
            dw_g[a, b] += seen.reshape(-1, seen.shape[-1]).T @ dy_g.reshape(-1, dy_g.shape[-1])
    inside = slice(layer.taps // 2, layer.taps // 2 + layer.side)
    return dx[:, inside, inside], dw


def weights(outputs: Sequence[Any]) -> list[np.ndarray]:
    """The weights of the outputs in the objective, by their shapes: small integers."""
    return [np.resize([1.0, -1.0, 2.0, 1.0, 2.0], np.shape(output)) for output in outputs]


@functools.lru_cache(maxsize=4)
def expected(case: Case) -> list[Expected]:
    """What the program of a case returns, in order, whatever its dtype."""
    tail = TAILS[case.tail]
    x, w, bias, y, scale = operands(case.layer, case.examples, tail.antisymmetric)
    outputs, result = tail.exact(y, bias), []
    if case.part != "kernel gradient":
        # Each output of absolute values; a loss is as far off as its logits.
        scales = (scale.max(),) if case.tail == "loss" else tail.exact(scale, abs(bias))
        for i, (output, of_output) in enumerate(zip(outputs, scales, strict=True)):
            result.append(Expected(f"output {i}", output, np.maximum(of_output, abs(output)), tail.integers))
    if case.part != "value":
        dy = tail.pull(y, bias, *weights(outputs))
        both = zip(gradients(case.layer, x, w, dy), gradients(case.layer, abs(x), abs(w), abs(dy)), strict=True)
        integers = tail.integers and tail.integer_gradients
        dx, dw = (Expected("", value, of_value, integers) for value, of_value in both)
        dx, dw = dx._replace(name="input gradient"), dw._replace(name="kernel gradient")
        result += [dw] if case.part == "kernel gradient" else [dx, dw]
    return result


# --- The comparison ---------------------------------------------------------------------------------------------------


def program(case: Case, implementation: str) -> Callable[..., list[jax.Array]]:
    """The jitted function of (x, w, bias, weights of the outputs) that returns what `expected` says."""
    tail = TAILS[case.tail]
    convolution = functools.partial(conv_implementation(implementation), **case.layer.options())

    def objective(x, w, bias, c):
        outputs = tail.outputs(convolution(x, w), bias)
        return sum(jnp.vdot(_wide(output), weight) for output, weight in zip(outputs, c, strict=True)), outputs

    def run(x, w, bias, c):
        if case.part == "value":
            return [*tail.outputs(convolution(x, w), bias)]
        if case.part == "kernel gradient":
            return [jax.grad(lambda w: objective(x, w, bias, c)[0])(w)]
        of_both, outputs = jax.grad(objective, (0, 1), has_aux=True)(x, w, bias, c)
        return [*outputs, *of_both]

    return jax.jit(run)


class Difference(NamedTuple):
    """How far an array of a program is from what it should be."""

    case: Case
    implementation: str
    array: str
    """Such as "output 0" or "kernel gradient"."""
    error: float
    """The largest error of an element, over the largest sum of the absolute values that one is made of."""
    wrong: int
    """How many elements are further off than they may be."""
    elements: int
    got: float
    """The element that is furthest off."""
    exact: float
    """What it should be."""

    @property
    def text(self) -> str:
        """One line."""
        return (
            f"{self.implementation}, {self.case.name}: {self.wrong:,} of {self.elements:,} elements of {self.array} "
            f"are wrong, such as {self.got:.9g} for {self.exact:.9g}"
        )


def compare(case: Case, implementation: str) -> list[Difference]:
    """Compiles and runs a program on the default device, and compares each array that it returns."""
    tail = TAILS[case.tail]
    x, w, bias, y, _ = operands(case.layer, case.examples, tail.antisymmetric)
    cast = lambda array: jnp.asarray(array.astype(np.float32)).astype(case.dtype)
    c = [jnp.asarray(weight, jnp.float32) for weight in weights(tail.exact(y, bias))]
    arrays = program(case, implementation)(cast(x), cast(w), cast(bias), c)
    rounded = rounds(case.layer, implementation) or jax.default_backend() != "cpu"
    return [
        difference(case, implementation, exact, np.asarray(array.astype(jnp.float32), np.float64), array.dtype, rounded)
        for exact, array in zip(expected(case), arrays, strict=True)
    ]


def difference(
    case: Case, implementation: str, exact: Expected, got: np.ndarray, dtype: Any, rounded: bool
) -> Difference:
    """How far `got`, which was computed in a dtype, is from `exact`.

    Args:
      case, implementation: what computed it.
      exact: what it should be.
      got: what was computed.
      dtype: of the result.
      rounded: whether even integers may be.

    Raises:
      ValueError: got has another shape.
    """
    if got.shape != exact.value.shape:
        raise ValueError(
            f"{implementation}, {case.name}: {exact.name} has the shape {got.shape}, not {exact.value.shape}"
        )
    half = case.dtype != "float32"
    allowed = np.zeros(got.shape)
    if rounded or not exact.integers:
        terms = 0 if exact.integers else case.examples * case.layer.side**2
        share = max(SLACK, terms * float(jnp.finfo(jnp.float32).eps) / 2, 2 * float(jnp.finfo(case.dtype).eps) * half)
        # Transforms mix neighbours, so that even a zero is as far off as they are.
        allowed += share * (exact.scale.max(initial=0) if rounded else exact.scale)
    if half and dtype == case.dtype:
        allowed += float(jnp.finfo(dtype).eps) / 2 * abs(exact.value)
    errors = abs(got - exact.value)
    wrong = ~(errors <= allowed)  # NaN too
    shares = errors / max(exact.scale.max(initial=0), np.finfo(np.float32).tiny)
    worst = np.unravel_index(np.argmax(np.where(np.isnan(shares), np.inf, shares)), got.shape) if got.shape else ()
    return Difference(
        case,
        implementation,
        exact.name,
        float(shares[worst]),
        int(wrong.sum()),
        got.size,
        float(got[worst]),
        float(exact.value[worst]),
    )


def check(case: Case, implementation: str) -> Difference | None:
    """The first array of a program that is wrong on the default device; None where all are right."""
    return next((found for found in compare(case, implementation) if found.wrong), None)


# --- Known miscompilations --------------------------------------------------------------------------------------------


def _folded(images: int, channels: int, taps: int, features: int) -> str | None:
    """jaxlib 0.10.0 and 0.10.1: a folded convolution followed by a mean over rows."""
    found = check(Case(Layer(channels, features, taps, side=48), images, "sum over rows", "value"), "auto")
    return found and found.text


def _squares(rows: int = 32_769) -> str | None:
    """jax#39103, jaxlib 0.10.2: a product for each row, squared and summed."""
    numbers = jnp.arange(rows, dtype=jnp.float32)
    x = jnp.stack([numbers, jnp.zeros_like(numbers), jnp.zeros_like(numbers)], 1)
    function = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))
    got, exact = float(function(x)[-1]), float(np.float32(rows - 1) ** 2)
    return None if got == exact else f"a product's sum of squares over {rows:,} rows is {got:.0f} for {exact:.0f}"


def _broadcast() -> str | None:
    """jax#39257, jaxlib 0.10.2 and 0.11.0: a sum over one axis of a product of rank 8 ends the process."""
    x, a = jnp.ones((10, 4, 6)), jnp.ones((10, 4, 6, 9, 9, 9, 9, 9))
    y = jax.jit(lambda x, a: jnp.log(jnp.maximum((x[(..., *[None] * 5)] * a).sum(2), 1e-16)))(x, a)
    return (
        None if np.allclose(y, np.log(6), rtol=1e-5) else f"a sum of products of rank 8 is {float(y.max())} for log 6"
    )


def _degenerate() -> str | None:
    """jax#40412, jaxlib 0.10.2: the same with rank 7 and an axis of size 1."""
    u = jnp.ones((3, 1, 2, 2, 8, 8, 8))
    y = jax.jit(lambda u, v: (u * v).sum(3))(u, u)
    return None if bool((y == 2).all()) else f"a sum of products of rank 7 is {float(y.max())} for 2"


def _eager() -> str | None:
    """jax#40633, jaxlib 0.11.0 and 0.11.1 on some GPUs: operations outside jit take the result of those before."""
    jnp.sqrt(512.0).block_until_ready()
    got, uniform = np.asarray(jnp.ones(4) + 1), np.asarray(jax.random.uniform(jax.random.key(0), (1000,)))
    if not (got == 2).all():
        return f"ones(4) + 1 outside jit is {got.tolist()}"
    return None if ((uniform >= 0) & (uniform < 1)).all() else "uniform numbers outside jit are not between 0 and 1"


def _transforms() -> None:
    """openxla/xla#46347, jaxlib 0.11.1 and 0.11.2: transforms on all threads wait for work that no thread is left for.

    It is tried for three seconds; on two cores it hung within one of them nearly always.
    """
    x, cores = jnp.ones((8, 32, 32, 8)), os.cpu_count() or 1
    side_by_side = lambda count: jax.jit(lambda x: [jnp.fft.rfftn(x + i, axes=(1, 2)) for i in range(count)])
    programs = [side_by_side(count) for count in (cores + 1, 2 * cores, 4 * cores)]
    end = time.monotonic() + 3
    while time.monotonic() < end:
        for program in programs:
            jax.block_until_ready(program(x))


PROBES: dict[str, Callable[[], str | None]] = {
    "convolution 5x5x1x6 and mean": functools.partial(_folded, 64, 1, 5, 6),
    "convolution 3x3x3x16 and mean": functools.partial(_folded, 8, 3, 3, 16),
    "jax#39103": _squares,
    "jax#39257": _broadcast,
    "jax#40412": _degenerate,
    "jax#40633": _eager,
    "openxla/xla#46347": _transforms,
}
"""Programs that some release compiled wrongly; each returns a line where its values are wrong, else None."""

ENDING = ("jax#39257", "jax#40412", "openxla/xla#46347")
"""The probes that may end the process, or hang; `probe` runs them in one of their own."""


def probe(name: str, timeout: float = 60) -> str | None:
    """Runs one of `PROBES`, in a process of its own where it might end this one.

    Args:
      name: of the probe.
      timeout: after how many seconds such a process is given up.

    Returns:
      The line to say where what is computed is wrong, or the process ended; else None.
    """
    if name not in ENDING:
        return PROBES[name]()
    code = f"import cnnjax\nfrom cnnjax.doctor import fused\nprint(fused.PROBES[{name!r}]() or '')"
    try:
        ran = subprocess.run(
            [sys.executable, "-c", code],
            # Whose faults they are, a TPU being held by this process; of more devices there would be more threads.
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return f"the process did not end within {timeout:.0f} s"
    if ran.returncode < 0:
        return f"the process ended with signal {-ran.returncode}"
    if ran.returncode:
        return (ran.stderr.strip().splitlines() or ["no message"])[-1]
    return ran.stdout.strip() or None
