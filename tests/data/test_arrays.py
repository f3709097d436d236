"""Checks, the validation split, channel statistics."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnjax import data
from cnnjax.ops.errors import InputError


def arrays(n, **changes):
    image = np.zeros((n, 2, 3, 1), np.uint8)
    image[:, 0, 0, 0] = np.arange(n) % 256
    return dataclasses.replace(data.Arrays(image, (np.arange(n) % 3).astype(np.int32)), **changes)


def dataset(**changes):
    return dataclasses.replace(data.Dataset("mine", arrays(9), arrays(4), None, ("a", "b", "c"), {}), **changes)


@given(st.integers(2, 300), st.data(), st.integers(0, 2**40))
def test_split_is_exact_disjoint_complete_and_ordered(n, draw, seed):
    count = draw.draw(st.integers(0, n - 1))
    whole = data.Arrays(np.zeros((n, 1, 1, 1), np.uint8), np.arange(n, dtype=np.int32))
    train, validation = data.split(whole, count, seed)
    assert len(validation) == count
    assert sorted([*train.label, *validation.label]) == list(range(n))
    assert (np.diff(train.label) > 0).all()
    assert (np.diff(validation.label) > 0).all()
    again = data.split(whole, count, seed)
    assert np.array_equal(again[1].label, validation.label)


def test_split_by_fraction_and_seed():
    whole = arrays(200)
    train, validation = data.split(whole, 0.1, 0)
    assert (len(train), len(validation)) == (180, 20)
    assert np.array_equal(validation.image, data.split(whole, 20, 0)[1].image)
    assert not np.array_equal(validation.image, data.split(whole, 20, 1)[1].image)
    assert validation.image.shape == (20, 2, 3, 1)


@pytest.mark.parametrize(
    "validation",
    [10, 11, -1, 1.0, 1.5, -0.1, 0.01, float("nan"), True, "5", None],
)
def test_split_that_does_not_fit(validation):
    with pytest.raises(InputError, match="validation"):
        data.split(arrays(10), validation, 0)


def test_split_negative_seed():
    with pytest.raises(InputError, match="seed=-1"):
        data.split(arrays(10), 3, -1)


def test_take():
    taken = arrays(5).take(np.array([3, 1]))
    assert len(taken) == 2
    assert taken.image[:, 0, 0, 0].tolist() == [3, 1]


def test_check_accepts_classes_and_regression():
    data.check(dataset())
    targets = [data.Arrays(arrays(n).image, np.ones((n, 2), np.float32)) for n in (9, 4)]
    data.check(dataset(train=targets[0], test=targets[1], classes=()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": arrays(9, image=np.zeros((9, 2, 3), np.uint8))}, r"\[n, height, width, channels\].*\(9, 2, 3\)"),
        ({"train": arrays(9, image=np.zeros((9, 2, 3, 1), np.float32))}, "uint8.*received float32"),
        ({"train": arrays(9, image=np.zeros((9, 2, 3, 2), np.uint8))}, "1 or 3 channels, received 2"),
        ({"train": arrays(0)}, "no images"),
        ({"test": arrays(4, label=np.zeros(3, np.int32))}, r"'test'.*4 images but labels of shape \(3,\)"),
        ({"test": arrays(4, image=np.zeros((4, 2, 2, 1), np.uint8))}, r"\(2, 2, 1\), those of 'train' \(2, 3, 1\)"),
        ({"train": arrays(9, label=np.full(9, 3, np.int32))}, "label 3 of example 0 is out of range: allowed 0 to 2"),
        ({"train": arrays(9, label=np.full(9, -1, np.int32))}, "label -1"),
        ({"train": arrays(9, label=np.zeros(9, np.int64))}, "int32.*received int64"),
        ({"train": arrays(9, label=np.zeros((), np.int32))}, "9 images but labels of shape"),
        ({"classes": ()}, "float32 targets"),
        ({"classes": (), "train": arrays(9, label=np.full(9, np.nan, np.float32))}, "example 0 is not finite"),
    ],
)
def test_check_refuses(changes, message):
    with pytest.raises(InputError, match=message) as error:
        data.check(dataset(**changes))
    assert "\n" not in str(error.value)


def test_channel_mean_std():
    images = np.random.default_rng(0).integers(0, 256, (2500, 4, 5, 3), dtype=np.uint8)
    mean, std = data.channel_mean_std(images)
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-12)
    assert data.channel_mean_std(images[::-1]) == (mean, std)
    assert data.channel_mean_std(np.full((2, 2, 2, 1), 255, np.uint8)) == ((1.0,), (0.0,))
    with pytest.raises(InputError, match="float32"):
        data.channel_mean_std(images.astype(np.float32))


def test_a_stratified_split_has_each_class_s_share():
    rng = np.random.default_rng(0)
    label = rng.permutation(np.repeat(np.arange(3, dtype=np.int32), (900, 90, 10)))
    arrays = data.Arrays(np.arange(1000, dtype=np.uint8).reshape(-1, 1, 1, 1), label)
    train, validation = data.split(arrays, 0.1, 0, stratify=True)
    assert np.bincount(validation.label).tolist() == [90, 9, 1]
    assert np.bincount(train.label).tolist() == [810, 81, 9]
    again = data.split(arrays, 100, 0, stratify=True)[1]
    np.testing.assert_array_equal(again.image, validation.image)
    assert not np.array_equal(data.split(arrays, 100, 1, stratify=True)[1].image, validation.image)
    with pytest.raises(InputError, match=r"data.stratify: allowed: for classes"):
        data.split(data.Arrays(arrays.image, label.astype(np.float32)), 0.1, 0, stratify=True)
