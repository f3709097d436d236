"""LeNet-5 as published in 1998, and as it is usually built today.

Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document Recognition",
Proceedings of the IEEE 86(11), 1998. Section II-B describes the network, section II-C its loss functions, appendix A
the squashing function and the initialisation.

| layer  | output      | what                                             | parameters | connections |
|--------|-------------|--------------------------------------------------|-----------:|------------:|
| C1     | 28 x 28 x 6 | 5x5 convolution                                  |        156 |     122,304 |
| S2     | 14 x 14 x 6 | 2x2 sum x trainable coefficient + trainable bias |         12 |       5,880 |
| C3     | 10 x 10 x 16| 5x5 convolution of some of S2's maps (table I)   |      1,516 |     151,600 |
| S4     | 5 x 5 x 16  | as S2                                            |         32 |       2,000 |
| C5     | 1 x 1 x 120 | 5x5 convolution                                  |     48,120 |      48,120 |
| F6     | 84          | fully connected                                  |     10,164 |      10,164 |
| output | 10          | squared distance to a fixed 7x12 bitmap          |          0 |         840 |
| total  |             |                                                  |     60,000 |     340,908 |

Every layer up to F6 is followed by the squashing function.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from cnnjax.models.layers import as_logits, check_images, classify, like
from cnnjax.ops import conv_general_dilated, max_pool
from cnnjax.ops.errors import InputError

# Table I: the maps of S2 (0 to 5, thought of as a ring) that each of the 16 maps of C3 sees. Maps 0 to 5 see three
# neighbours, 6 to 11 four, 12 to 14 two pairs of neighbours, and the last sees all.
C3_INPUTS = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# The digits of figure 3, "Initial parameters of the output RBFs for recognizing the full ASCII set", as 7x12 bitmaps.
# The set draws characters that are easily confused (0, O and o; 2 and Z; 5 and S) nearly alike, so that their codes are
# near each other too and what follows the network can settle which was meant. That is why some digits have a bar on
# top: in the figure, so do the capitals that are drawn like their small letters.
DIGITS = """
.#####.  ...##..  .#####.  #######  .#####.  .#####.  ..####.  #######  .#####.  .#####.
.......  ..###..  .......  .....##  .......  .......  .##....  .....##  ##...##  ##..###
..###..  .####..  .#####.  ....##.  .......  #######  ##.....  .....##  ##...##  ##...##
.##.##.  ...##..  ##...##  ...##..  .##..##  ##.....  ##.....  ....##.  ##...##  ##...##
##...##  ...##..  #....##  ..####.  .##..##  ##.....  ######.  ...##..  .#####.  ##..###
##...##  ...##..  ....##.  .....##  ###..##  .####..  ###..##  ...##..  ##...##  .######
##...##  ...##..  ..###..  .....##  ##...##  ..####.  ##...##  ..##...  ##...##  .....##
##...##  ...##..  .##....  .....##  ##...##  .....##  ##...##  ..##...  ##...##  .....##
.##.##.  ...##..  ##.....  ##...##  ##..###  ##...##  ###..##  ..##...  ##...##  ....##.
..###..  .######  #######  .#####.  .######  .#####.  .#####.  ..##...  .#####.  .####..
.......  .......  .......  .......  .....##  .......  .......  .......  .......  .......
.......  .......  .......  .......  .....##  .......  .......  .......  .......  .......
"""


def _codes(pictures: str) -> np.ndarray:
    """The pictures as [pictures, 84] of +1 (ink) and -1 (paper), each read row by row."""
    rows = [line.split() for line in pictures.split("\n") if line]
    return np.array([[1.0 if c == "#" else -1.0 for row in rows for c in row[i]] for i in range(len(rows[0]))])


CODES = _codes(DIGITS)  # [10, 84], float64; in no collection of variables, so nothing trains it
CODES.setflags(write=False)


def scaled_tanh(a: jax.Array) -> jax.Array:
    """The squashing function f(a) = A tanh(S a) of equation 6, A = 1.7159 and S = 2/3 (appendix A).

    f(1) = 1 and f(-1) = -1, where the second derivative is largest: targets of ±1 don't saturate the units.
    """
    return 1.7159 * jnp.tanh(2 / 3 * a)


def uniform_fan_in(fan_in: Any) -> Callable[..., jax.Array]:
    """An initializer: uniform in ±2.4 / fan_in (appendix A).

    Args:
      fan_in: the number of inputs of a unit; or an array of them that broadcasts against the parameter.
    """
    bound = 2.4 / np.asarray(fan_in, np.float64)

    def init(key, shape, dtype=jnp.float32):
        limit = jnp.asarray(bound, dtype)
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


class Subsample(nn.Module):
    """The S layers: coefficient x (sum of each 2x2 window) + bias, one of each for a map.

    [batch, 2h, 2w, maps] -> [batch, h, w, maps], before the squashing function.
    """

    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, maps = x.shape
        coefficient = self.param("coefficient", uniform_fan_in(4), (maps,), self.param_dtype)
        bias = self.param("bias", uniform_fan_in(4), (maps,), self.param_dtype)
        x, coefficient, bias = promote_dtype(x, coefficient, bias, dtype=self.dtype)
        sums = x.reshape(batch, height // 2, 2, width // 2, 2, maps).sum((2, 4))
        return like(sums, coefficient) * sums + like(sums, bias)


class PartialConv(nn.Module):
    """The C3 layer: a VALID convolution in which each output map sees only the input maps that a table gives it.

    Only kernels of connected pairs exist, as a parameter [height, width, connections]: first the connections of output
    map 0, in the table's order, then those of map 1, and so on. `dense_kernel` places them.
    """

    inputs: tuple[tuple[int, ...], ...]
    kernel_size: tuple[int, int]
    conv: Callable[..., Any] = conv_general_dilated
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        taps = self.kernel_size[0] * self.kernel_size[1]
        fan_in = [taps * len(maps) for maps in self.inputs]
        fan_in_of_kernel = [taps * len(maps) for maps in self.inputs for _ in maps]
        shape = (*self.kernel_size, len(fan_in_of_kernel))
        kernel = self.param("kernel", uniform_fan_in(fan_in_of_kernel), shape, self.param_dtype)
        bias = self.param("bias", uniform_fan_in(fan_in), (len(self.inputs),), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        dense = dense_kernel(kernel, self.inputs, x.shape[-1])
        y = self.conv(x, dense, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + like(y, bias)


def dense_kernel(kernel: jax.Array, inputs: tuple[tuple[int, ...], ...], input_maps: int) -> jax.Array:
    """The kernel [height, width, input_maps, output_maps] of a `PartialConv`: exactly zero where nothing is connected.

    Args:
      kernel: [height, width, connections], the connected kernels in the order of the table.
      inputs: the table: for each output map, its input maps.
      input_maps: how many input maps there are.
    """
    i = np.array([i for maps in inputs for i in maps])
    o = np.array([o for o, maps in enumerate(inputs) for _ in maps])
    dense = jnp.zeros((*kernel.shape[:2], input_maps, len(inputs)), kernel.dtype)
    return dense.at[:, :, i, o].set(kernel, unique_indices=True)


class RBF(nn.Module):
    """The output layer: y_i = sum_j (x_j - w_ij)^2 (equation 7), with the fixed centres `CODES[:num_classes]`.

    [batch, 84] -> [batch, num_classes], in float32 or more. No parameters.
    """

    num_classes: int = 10

    def __call__(self, x: jax.Array) -> jax.Array:
        x = as_logits(x)  # 84 squares are summed: not in bfloat16
        return jnp.square(x[:, None, :] - jnp.asarray(CODES[None, : self.num_classes], x.dtype)).sum(-1)


def centre(x: jax.Array, background: float) -> jax.Array:
    """[batch, 28, 28, c] in the middle of a [batch, 32, 32, c] field of `background`; 32x32 images as they are.

    The network sees 32x32 so that the strokes' ends can appear in the centre of C1's units (section II-B).
    """
    if x.shape[1] == 32:
        return x
    return jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=background)


class LeNet5(nn.Module):
    """LeNet-5 (1998): [batch, 28 or 32, 28 or 32, 1] -> [batch, num_classes]; 60,000 parameters.

    The logits are the negative penalties, -y of equation 7, so that the largest is the nearest bitmap.

    LeNet-5 with ReLU and max pooling: `create("lenet5", act="relu", pool="max")`.
    """

    num_classes: int = 10
    """At most 10: classes take the bitmaps of the digits 0, 1, 2, ... in order. 0 for what F6 computes."""
    conv: Callable[..., Any] = conv_general_dilated
    """What computes C1, C3 and C5: a function with the signature of `jax.lax.conv_general_dilated`."""
    act: Callable[..., Any] = scaled_tanh
    """The function that follows every layer up to F6."""
    pool: Callable[..., Any] | None = None
    """None for the paper's trainable subsampling. A function such as `cnnjax.ops.max_pool` replaces S2 and S4 by
    pooling without parameters and without squashing."""
    background: float = -0.1
    """The value around 28x28 images: the paper scales white to -0.1 and black to 1.175, for mean 0 and variance 1."""
    dtype: Any = None
    """What to compute in; None for the wider of the input's type and the parameters'."""
    param_dtype: Any = jnp.float32
    """The type of the parameters."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.num_classes <= len(CODES):
            allowed = f"0 (for features), or 1 to {len(CODES)}, one per bitmap"
            raise InputError(f"num_classes: received {self.num_classes}; allowed: {allowed}")

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        check_images(x, sizes=(28, 32), channels=1)
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = functools.partial(nn.Conv, kernel_size=(5, 5), padding="VALID", conv_general_dilated=self.conv, **types)

        def init(fan_in):
            return {"kernel_init": uniform_fan_in(fan_in), "bias_init": uniform_fan_in(fan_in)}

        def subsample(x, name):
            if self.pool is None:
                return self.act(Subsample(name=name, **types)(x))
            return self.pool(x, (2, 2), (2, 2))

        x = centre(x, self.background)
        x = self.act(conv(6, **init(25), name="C1")(x))
        x = subsample(x, "S2")
        x = self.act(PartialConv(C3_INPUTS, (5, 5), conv=self.conv, **types, name="C3")(x))
        x = subsample(x, "S4")
        x = self.act(conv(120, **init(400), name="C5")(x))
        x = x.reshape(-1, 120)
        x = self.act(nn.Dense(84, **init(120), **types, name="F6")(x))
        return as_logits(x) if self.num_classes == 0 else -RBF(self.num_classes, name="output")(x)


class LeNet5Modern(nn.Module):
    """LeNet-5 as it is usually built today: [batch, 28 or 32, 28 or 32, channels] -> [batch, num_classes].

    C3 sees all maps, ReLU follows C1, C3, C5 and F6, S2 and S4 are max pooling, and the output layer is linear: 61,706
    parameters for one channel (156 + 2,416 + 48,120 + 10,164 + 850). He-normal kernels and zero biases; train it with
    cross entropy. Many ports keep `act="tanh"` or `pool="avg"`.
    """

    num_classes: int = 10
    """The number of logits."""
    conv: Callable[..., Any] = conv_general_dilated
    """What computes C1 and C3: a function with the signature of `jax.lax.conv_general_dilated`."""
    act: Callable[..., Any] = nn.relu
    """The function that follows C1, C3, C5 and F6."""
    pool: Callable[..., Any] = max_pool
    """S2 and S4: a function with the signature of `flax.linen.max_pool`."""
    background: float = 0.0
    """The value around 28x28 images."""
    dtype: Any = None
    """What to compute in; None for the wider of the input's type and the parameters'."""
    param_dtype: Any = jnp.float32
    """The type of the parameters."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        check_images(x, sizes=(28, 32))
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = functools.partial(nn.Conv, kernel_size=(5, 5), padding="VALID", conv_general_dilated=self.conv, **types)
        dense = functools.partial(nn.Dense, **types)
        init = nn.initializers.he_normal()

        x = centre(x, self.background)
        x = self.act(conv(6, kernel_init=init, name="C1")(x))
        x = self.pool(x, (2, 2), (2, 2))
        x = self.act(conv(16, kernel_init=init, name="C3")(x))
        x = self.pool(x, (2, 2), (2, 2))
        x = x.reshape(-1, 400)
        x = self.act(dense(120, kernel_init=init, name="C5")(x))
        x = self.act(dense(84, kernel_init=init, name="F6")(x))
        return classify(x, self.num_classes, kernel_init=init, **types)


def mse_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """y_D, the penalty of the true class: the terms of equation 8, whose mean over the examples is E.

    Args:
      logits: [batch, classes], negative penalties.
      labels: [batch], integers.

    Returns:
      [batch], in the type of the logits.
    """
    return -jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]


NO_CLASS = 1.0
"""The penalty j of "none of the classes" in equation 9, of which the paper gives no value."""


def map_loss(logits: jax.Array, labels: jax.Array, j: float = NO_CLASS) -> jax.Array:
    """y_D + log(e^-j + sum_i e^-y_i), the terms of equation 9: the maximum a posteriori criterion.

    Besides pulling down the penalty of the true class it pushes up those of the others, so that centres that train
    (these don't) cannot collapse onto one point.

    Args:
      logits: [batch, classes], negative penalties.
      labels: [batch], integers.
      j: positive; the penalty of "none of the classes", which keeps penalties that are already large from being pushed
        further. The paper gives no value.

    Returns:
      [batch], in the type of the logits; finite for any finite logits.

    Raises:
      InputError: j is not positive.
    """
    if not j > 0:
        raise InputError(f"j: received {j}; allowed: a positive number")
    rubbish = jnp.full((*logits.shape[:-1], 1), -j, logits.dtype)
    return mse_loss(logits, labels) + jax.nn.logsumexp(jnp.concatenate([logits, rubbish], -1), axis=-1)
