"""Losses and metrics by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnjax.ops.errors import InputError
from cnnjax.training import metrics


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[1.0, 2.0, 1.0], [1.0, 1.0, 8.0]]))
    np.testing.assert_allclose(metrics.cross_entropy(logits, jnp.array([1, 0])), [np.log(2), np.log(10)], rtol=1e-6)


def test_label_smoothing_by_hand():
    """Half the weight is spread over two classes: 0.75 log 4 + 0.25 log 4/3 where the network says 1/4, 3/4."""
    logits = jnp.log(jnp.array([[1.0, 3.0]]))
    loss = metrics.make_loss("cross_entropy", 0.5)(logits, jnp.array([0]))
    np.testing.assert_allclose(loss, [0.75 * np.log(4) + 0.25 * np.log(4 / 3)], rtol=1e-6)


def test_squared_error_by_hand():
    outputs = jnp.array([[1.0, 2.0], [0.0, 0.0]])
    np.testing.assert_allclose(metrics.squared_error(outputs, jnp.array([[0.0, 4.0], [1.0, 1.0]])), [2.5, 1.0])
    np.testing.assert_allclose(metrics.squared_error(outputs, jnp.array([0, 1])), [2.0, 0.5])  # one-hot
    np.testing.assert_allclose(metrics.squared_error(outputs[:, :1], jnp.array([3.0, 2.0])), [4.0, 4.0])


def test_top1_and_top5_by_hand():
    logits = jnp.array([[9.0, 8, 7, 6, 5, 4, 3], [9.0, 8, 7, 6, 5, 4, 3], [9.0, 8, 7, 6, 5, 4, 3]])
    sums = metrics.sums(jnp.array([1.0, 2.0, 4.0]), logits, jnp.array([0, 4, 5]))
    assert {k: float(v) for k, v in sums.items()} == {"loss": 7.0, "count": 3.0, "correct": 1.0, "correct5": 2.0}
    values = metrics.averages(metrics.add([sums]), classes=7)
    assert values == pytest.approx({"loss": 7 / 3, "accuracy": 1 / 3, "top5": 2 / 3})


def test_masked_examples_do_not_count_even_when_not_finite():
    losses = jnp.array([1.0, jnp.nan])
    sums = metrics.sums(losses, jnp.array([[1.0, 0.0], [jnp.nan, 0.0]]), jnp.array([0, 0]), jnp.array([True, False]))
    assert float(sums["loss"]) == 1.0
    assert int(sums["count"]) == int(sums["correct"]) == 1


def test_a_network_that_says_nan_or_the_same_of_everything_is_not_right_by_default():
    labels = jnp.arange(6)
    for value in (jnp.nan, 0.0):
        sums = metrics.sums(jnp.zeros(6), jnp.full((6, 6), value), labels)
        assert int(sums["correct"]) == (0 if np.isnan(value) else 1)  # equal logits: class 0, as argmax


@settings(max_examples=12, deadline=None)  # every size is compiled
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 1000))
def test_accuracy_is_argmax_and_batches_add_up(n, size, seed):
    """Any cut into batches gives the accuracy of the whole, and it is argmax's."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(-3, 3, (n, 7)).astype(np.float32)  # with ties
    labels = rng.integers(0, 7, n).astype(np.int32)
    losses = np.asarray(metrics.cross_entropy(logits, labels))
    parts = [slice(i, i + size) for i in range(0, n, size)]
    total = metrics.add(metrics.sums(losses[p], jnp.asarray(logits[p]), jnp.asarray(labels[p])) for p in parts)
    values = metrics.averages(total, 7)
    assert values["accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
    assert values["top5"] == pytest.approx((order == labels[:, None]).any(-1).mean())


def test_class_weights_by_hand():
    """Three, one and no examples of three classes: each class that there is has half of the weight."""
    labels = np.array([0, 0, 1, 0])
    weights = metrics.balanced(labels, 3)
    assert weights == pytest.approx((4 / 6, 4 / 2, 0.0))
    logits = jnp.log(jnp.array([[1.0, 2.0, 1.0], [1.0, 1.0, 8.0]]))
    loss = metrics.make_loss("cross_entropy", 0.0, weights)
    np.testing.assert_allclose(loss(logits, jnp.array([1, 0])), [2 * np.log(2), 4 / 6 * np.log(10)], rtol=1e-6)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 50), st.integers(0, 1000))
def test_balanced_classes_have_equal_weights_and_an_example_weighs_1_on_average(n, seed):
    labels = np.random.default_rng(seed).choice(4, n, p=[0.7, 0.2, 0.1, 0])
    weights = np.array(metrics.balanced(labels, 4))
    of_class = np.bincount(labels, weights[labels], 4)
    np.testing.assert_allclose(of_class[np.unique(labels)], n / len(np.unique(labels)))
    np.testing.assert_allclose(weights[labels].mean(), 1)


def test_sums_by_class_are_a_confusion_matrix_s():
    rng = np.random.default_rng(0)
    logits, labels = rng.integers(-2, 3, (40, 5)).astype(np.float32), rng.integers(0, 4, 40)  # with ties
    logits[3] = np.nan
    mask = rng.random(40) < 0.8
    parts = [slice(0, 25), slice(25, 40)]
    total = metrics.add(
        metrics.sums_by_class(jnp.asarray(logits[p]), jnp.asarray(labels[p]), jnp.asarray(mask[p])) for p in parts
    )
    confusion = np.zeros((5, 6))
    for said, is_, counts, row in zip(logits.argmax(-1), labels, mask, logits, strict=True):
        confusion[is_, 5 if np.isnan(row).any() else said] += counts
    np.testing.assert_array_equal(total["class_correct"], np.diagonal(confusion))
    np.testing.assert_array_equal(total["class_count"], confusion.sum(1))


def test_unknown_losses_are_named():
    with pytest.raises(InputError, match="did you mean 'cross_entropy'"):
        metrics.make_loss("crossentropy", 0.0)
    with pytest.raises(InputError, match="label smoothing"):
        metrics.make_loss("squared_error", 0.1)


def test_gradients_of_the_losses():
    from jax.test_util import check_grads

    with jax.enable_x64(True):
        logits = jnp.array(np.random.default_rng(0).normal(size=(3, 4)))
        labels = jnp.array([0, 3, 1])
        for name in metrics.LOSSES:
            loss = metrics.make_loss(name, 0.0)
            check_grads(lambda x, loss=loss: loss(x, labels).sum(), (logits,), order=2)
