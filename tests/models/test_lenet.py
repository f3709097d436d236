"""LeNet-5 of 1998 against its paper: counts, connections, subsampling, squashing, codes, losses, and NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.models import lenet
from cnnjax.ops.errors import InputError

KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles in a fraction of the default generator's time


def shapes():
    x = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    return jax.eval_shape(models.create("lenet5").init, jax.random.key(0), x)["params"]


def test_parameters_layer_by_layer():
    counts = {name: models.count_parameters(layer) for name, layer in shapes().items()}
    assert counts == {"C1": 156, "S2": 12, "C3": 1_516, "S4": 32, "C5": 48_120, "F6": 10_164}


def test_connections_from_the_shapes():
    model = models.create("lenet5")
    capture = functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    x = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    seen = jax.eval_shape(capture, {"params": shapes()}, x)[1]["intermediates"]
    out = {name: value["__call__"][0].shape for name, value in seen.items() if name != "__call__"}
    parameters = {name: models.count_parameters(layer) for name, layer in shapes().items()}
    # A parameter of a convolution is a connection at each position; a unit of S2 and S4 has 4 inputs and a bias.
    connections = {name: parameters[name] * out[name][1] * out[name][2] for name in ("C1", "C3", "C5")}
    connections |= {name: int(np.prod(out[name])) * (4 + 1) for name in ("S2", "S4")}
    connections |= {"F6": parameters["F6"], "output": 84 * 10}
    assert connections == {
        "C1": 122_304, "S2": 5_880, "C3": 151_600, "S4": 2_000, "C5": 48_120, "F6": 10_164, "output": 840,
    }  # fmt: skip
    assert sum(connections.values()) == 340_908


def test_c3_table_has_60_connections_and_no_two_maps_see_the_same():
    assert sum(map(len, lenet.C3_INPUTS)) == 60
    assert len(set(lenet.C3_INPUTS)) == 16
    assert [sum(i in maps for maps in lenet.C3_INPUTS) for i in range(6)] == [10] * 6


def test_c3_kernel_is_zero_exactly_where_the_table_has_no_link():
    kernel = 1 + jnp.arange(25 * 60, dtype=jnp.float32).reshape(5, 5, 60)
    dense = np.asarray(lenet.dense_kernel(kernel, lenet.C3_INPUTS, 6))
    assert dense.shape == (5, 5, 6, 16)
    connection = 0
    for o, maps in enumerate(lenet.C3_INPUTS):
        for i in range(6):
            if i in maps:
                np.testing.assert_array_equal(dense[:, :, i, o], kernel[:, :, connection])
                connection += 1
            else:
                assert not dense[:, :, i, o].any()


def test_c3_maps_have_gradients_of_zero_at_maps_they_do_not_see():
    layer = lenet.PartialConv(lenet.C3_INPUTS, (5, 5))
    x = jax.random.normal(jax.random.key(0), (1, 14, 14, 6))
    variables = layer.init(jax.random.key(1), x)

    @jax.jit
    def gradients(x):  # [16, 1, 14, 14, 6]: of each output map's sum
        return jax.jacrev(lambda x: layer.apply(variables, x).sum((0, 1, 2)))(x)

    for o, gradient in enumerate(gradients(x)):
        seen = {i for i in range(6) if bool((gradient[..., i] != 0).any())}
        assert seen == set(lenet.C3_INPUTS[o])


def test_c3_kernel_gets_the_gradient_of_its_place_in_the_dense_kernel():
    def dense(kernel):
        return lenet.dense_kernel(kernel, lenet.C3_INPUTS, 6)

    weight = np.arange(5 * 5 * 6 * 16, dtype=np.float32).reshape(5, 5, 6, 16)
    gradient = jax.grad(lambda kernel: (dense(kernel) * weight).sum())(jnp.ones((5, 5, 60)))
    np.testing.assert_array_equal(dense(gradient), np.where(dense(jnp.ones((5, 5, 60))) == 1, weight, 0))


def test_subsampling_by_hand():
    x = jnp.array([[1.0, 2, 5, 6], [3, 4, 7, 8]]).reshape(1, 2, 4, 1) * jnp.array([1.0, 10])
    params = {"coefficient": jnp.array([0.5, -1]), "bias": jnp.array([0.25, 3])}
    y = lenet.Subsample().apply({"params": params}, x)
    np.testing.assert_array_equal(y, [[[[5.25, -97], [13.25, -257]]]])


def test_squashing_values():
    f = lenet.scaled_tanh
    np.testing.assert_allclose(f(jnp.array([-1.0, 0, 1])), [-1, 0, 1], atol=2e-5)
    np.testing.assert_allclose(f(jnp.array([100.0])), 1.7159, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(f)(0.0), 1.7159 * 2 / 3, rtol=1e-6)
    # The second derivative is extreme at ±1 (appendix A): the third is zero there.
    third = jax.grad(jax.grad(jax.grad(f)))
    assert abs(float(third(1.0))) < 0.02 < abs(float(third(0.8)))


def test_initialisation_is_uniform_within_2_4_over_the_true_fan_in():
    params = jax.jit(models.create("lenet5").init)(KEY, jnp.ones((1, 32, 32, 1)))["params"]
    fan_in = {"C1": 25, "S2": 4, "S4": 4, "C5": 400, "F6": 120}
    scaled = [params[layer][leaf] * n / 2.4 for layer, n in fan_in.items() for leaf in params[layer]]
    maps = np.array([len(inputs) for inputs in lenet.C3_INPUTS])
    scaled += [params["C3"]["bias"] * 25 * maps / 2.4]
    kernels = params["C3"]["kernel"] * 25 * np.repeat(maps, maps) / 2.4
    scaled += [kernels[..., np.repeat(maps, maps) == m] for m in (3, 4, 6)]
    for values in scaled:  # uniform in [-1, 1]
        assert abs(values).max() <= 1.000001
        if values.size >= 100:
            assert abs(values).max() > 0.97
            np.testing.assert_allclose(values.var(), 1 / 3, rtol=0.2)
    assert abs(np.concatenate([v.ravel() for v in scaled if v.size < 100])).max() > 0.9


def test_codes_are_ten_distinct_pictures_and_no_parameters():
    assert lenet.CODES.shape == (10, 84)
    assert set(np.unique(lenet.CODES)) == {-1.0, 1.0}
    assert len({tuple(code) for code in lenet.CODES}) == 10
    assert "output" not in shapes()
    with pytest.raises(ValueError, match="read-only"):
        lenet.CODES[0, 0] = 3
    seven = lenet.CODES[7].reshape(12, 7)
    assert (seven[0] == 1).all()
    assert (seven[10:] == -1).all()
    distance = (lenet.CODES[:, None] != lenet.CODES[None]).sum(-1) + 84 * np.eye(10, dtype=int)
    assert distance.min() == 12  # 6 and 8: the nearest, and still far apart
    assert {tuple(sorted(pair)) for pair in np.argwhere(distance == 12)} == {(6, 8)}


def test_output_is_the_squared_distance_to_the_codes():
    distances = lenet.RBF().apply({}, jnp.asarray(lenet.CODES, jnp.float32))
    np.testing.assert_array_equal(distances, 4 * (lenet.CODES[:, None] != lenet.CODES[None]).sum(-1))
    assert not distances.diagonal().any()
    x = np.random.default_rng(0).normal(size=(3, 84)).astype(np.float32)
    by_hand = [[sum((x[n, j] - lenet.CODES[i, j]) ** 2 for j in range(84)) for i in range(10)] for n in range(3)]
    np.testing.assert_allclose(lenet.RBF().apply({}, x), by_hand, rtol=1e-5)


def test_fewer_classes_take_the_first_codes():
    x = jnp.ones((2, 84))
    np.testing.assert_array_equal(lenet.RBF(4).apply({}, x), lenet.RBF().apply({}, x)[:, :4])


def test_28x28_images_are_centred_on_the_background():
    x = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)
    padded = lenet.centre(x, -0.1)
    np.testing.assert_array_equal(padded[:, 2:30, 2:30], x)
    np.testing.assert_allclose(padded.sum(), x.sum() - 0.1 * 2 * (32**2 - 28**2), rtol=1e-4)
    np.testing.assert_array_equal(lenet.centre(padded, 5.0), padded)
    assert (models.create("lenet5").background, models.create("lenet5_modern").background) == (-0.1, 0.0)


def test_losses_by_hand():
    y = np.array([[3.0, 1.0, 0.5], [0.0, 2.0, 7.0]])
    labels = jnp.array([1, 2])
    np.testing.assert_allclose(lenet.mse_loss(jnp.asarray(-y), labels), [1.0, 7.0])
    expected = [
        1 + np.log(np.exp(-2) + np.exp(-3) + np.exp(-1) + np.exp(-0.5)),
        7 + np.log(np.exp(-2) + np.exp(0) + np.exp(-2) + np.exp(-7)),
    ]
    np.testing.assert_allclose(lenet.map_loss(jnp.asarray(-y), labels, j=2.0), expected, rtol=1e-6)


@pytest.mark.parametrize("distance", [0.0, 1e4, 1e30])
def test_losses_are_finite_at_any_distance(distance):
    logits = -jnp.array([[distance, 2 * distance, 3 * distance]])
    for loss in (lenet.mse_loss, lenet.map_loss):
        value, gradient = jax.value_and_grad(lambda x, loss=loss: loss(x, jnp.array([1])).sum())(logits)
        assert jnp.isfinite(value)
        assert jnp.isfinite(gradient).all()


def test_map_loss_pushes_other_classes_away_and_j_limits_it():
    def gradient(logits, j):
        return jax.grad(lambda x: lenet.map_loss(x, jnp.array([0]), j=j).sum())(jnp.asarray([logits]))[0]

    near, far = gradient([-1.0, -1.0], 5.0), gradient([-1.0, -30.0], 5.0)
    assert near[0] < 0 < near[1]  # raises the true class's logit, lowers the other's
    assert far[1] < 1e-9 < near[1]
    assert gradient([-1.0, -8.0], 1.0)[1] < gradient([-1.0, -8.0], 20.0)[1]
    with pytest.raises(InputError, match="j: received -1"):
        lenet.map_loss(jnp.zeros((1, 2)), jnp.array([0]), j=-1)


def squash(a):
    return 1.7159 * np.tanh(a * 2 / 3)


def convolve(x, kernel, bias):
    """VALID convolution, tap by tap; the kernel may be zero where nothing is connected."""
    height, width = x.shape[1] - 4, x.shape[2] - 4
    y = np.zeros((x.shape[0], height, width, kernel.shape[-1])) + bias
    for i in range(5):
        for j in range(5):
            y += x[:, i : i + height, j : j + width] @ kernel[i, j]
    return y


def subsample(x, coefficient, bias):
    return squash((x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) * coefficient + bias)


def test_forward_pass_against_numpy(draw, x64):
    model = models.create("lenet5", dtype="float64", param_dtype="float64")
    digits = np.random.default_rng(0).uniform(-0.1, 1.175, (3, 28, 28, 1))
    x = np.pad(digits, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-0.1)
    variables = draw(model, digits)
    p = jax.tree.map(np.asarray, variables["params"])

    h = squash(convolve(x, p["C1"]["kernel"], p["C1"]["bias"]))
    h = subsample(h, p["S2"]["coefficient"], p["S2"]["bias"])
    maps, connection = [], 0
    for o, inputs in enumerate(lenet.C3_INPUTS):  # only the maps that each one sees
        kernel = p["C3"]["kernel"][:, :, connection : connection + len(inputs), None]
        maps.append(convolve(h[..., list(inputs)], kernel, p["C3"]["bias"][o]))
        connection += len(inputs)
    h = squash(np.concatenate(maps, -1))
    h = subsample(h, p["S4"]["coefficient"], p["S4"]["bias"])
    h = squash(convolve(h, p["C5"]["kernel"], p["C5"]["bias"]))[:, 0, 0]
    h = squash(h @ p["F6"]["kernel"] + p["F6"]["bias"])
    distances = ((h[:, None] - lenet.CODES) ** 2).sum(-1)

    np.testing.assert_allclose(jax.jit(model.apply)(variables, digits), -distances, rtol=1e-10)
