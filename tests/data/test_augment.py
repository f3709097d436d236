"""Augmentation, against its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cnnjax.data import augment, channel_mean_std
from cnnjax.ops.errors import InputError

IMAGES = np.random.default_rng(0).integers(1, 256, (512, 7, 6, 3), dtype=np.uint8)


def shifted(image, dy, dx, fill):
    result = np.full_like(image, fill)
    h, w, _ = image.shape
    for y in range(h):
        for x in range(w):
            if 0 <= y + dy < h and 0 <= x + dx < w:
                result[y, x] = image[y + dy, x + dx]
    return result


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalize(dtype):
    mean, std = channel_mean_std(IMAGES)
    out = augment.normalize(jnp.asarray(IMAGES), mean, std, dtype)
    assert out.dtype == dtype
    expected = (IMAGES / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=1e-6 if dtype == jnp.float32 else 1e-2)


def test_normalize_in_float64():
    with jax.enable_x64(True):
        out = augment.normalize(jnp.asarray(IMAGES), 0.5, 0.25, jnp.float64)
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, (IMAGES / 255 - 0.5) / 0.25, atol=1e-14)


def test_normalize_refuses_no_spread():
    with pytest.raises(InputError, match="std"):
        augment.normalize(jnp.asarray(IMAGES), (0, 0, 0), (1, 0, 1))


def test_flip_is_left_to_right_with_probability_one_half():
    out = np.asarray(augment.random_flip(jax.random.key(0), jnp.asarray(IMAGES)))
    flipped = np.array([np.array_equal(o, i[:, ::-1]) for o, i in zip(out, IMAGES, strict=True)])
    kept = np.array([np.array_equal(o, i) for o, i in zip(out, IMAGES, strict=True)])
    assert (flipped ^ kept).all()
    # 512 fair coins: outside 200 to 312 once in 10 million keys.
    assert 200 < flipped.sum() < 312
    assert out.dtype == np.uint8


@pytest.mark.parametrize(("limit", "fill"), [(0, 0), (1, 7), (2, 0), (9, 255)])
def test_shift_covers_all_of_its_range_and_no_more(limit, fill):
    out = np.asarray(jax.jit(augment.random_shift, static_argnums=(2, 3))(jax.random.key(1), IMAGES, limit, fill))
    assert out.shape == IMAGES.shape
    assert out.dtype == np.uint8
    span = range(-limit, limit + 1)
    seen = []
    for image, result in zip(IMAGES[:256], out, strict=False):
        found = [(dy, dx) for dy in span for dx in span if np.array_equal(result, shifted(image, dy, dx, fill))]
        assert found
        seen.append(found[0])
        if limit == 9:
            break  # slow to check; shifts beyond the image leave only fill
    if limit in (1, 2):
        assert set(seen) == {(dy, dx) for dy in span for dx in span}  # both axes, independently


def test_examples_are_shifted_independently():
    same = np.repeat(IMAGES[:1], 64, axis=0)
    out = np.asarray(augment.pad_crop(jax.random.key(0), jnp.asarray(same), 2))
    assert len({o.tobytes() for o in out}) > 15


def test_pad_crop_is_the_shift_with_zeros():
    key = jax.random.key(5)
    assert np.array_equal(augment.pad_crop(key, IMAGES, 2), augment.random_shift(key, IMAGES, 2, 0))


@pytest.mark.parametrize(("limit", "fill"), [(-1, 0), (1, -1), (1, 256), (1, 0.5)])
def test_shift_refuses(limit, fill):
    with pytest.raises(InputError, match=r"limit|fill"):
        augment.random_shift(jax.random.key(0), IMAGES, limit, fill)


@pytest.mark.parametrize("function", [augment.random_flip, functools.partial(augment.pad_crop, padding=2)])
def test_key_decides_and_sharding_does_not(function):
    run = jax.jit(function)
    expected = np.asarray(run(jax.random.key(0), IMAGES))
    assert np.array_equal(run(jax.random.key(0), IMAGES), expected)
    assert not np.array_equal(run(jax.random.key(1), IMAGES), expected)
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(AxisType.Auto,))
    images = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("data")))
    assert np.array_equal(run(jax.random.key(0), images), expected)
    compiled = run.lower(jax.random.key(0), images).compile().as_text()
    assert not any(word in compiled for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
