"""One update: what a network sows for its auxiliary heads counts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnnjax.training import metrics
from cnnjax.training.state import init_state
from cnnjax.training.step import Preprocess, train_step


class TwoHeads(nn.Module):
    """A head at the end and, in training, two at the side."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = x.reshape(len(x), -1)
        for i in (1, 2):
            logits = nn.Dense(3, name=f"head{i}")(x)
            if train:
                self.sow("aux_logits", f"aux{i}", logits)
        return nn.Dense(3, name="output")(x)


def test_auxiliary_heads_count_three_tenths():
    """The gradient of loss + 0.3 (loss of head 1 + loss of head 2), in one step of rate 1."""
    model, optimizer = TwoHeads(), optax.sgd(1.0)
    loss = metrics.make_loss("cross_entropy", 0.0)
    state = init_state(jax.random.key(0), model=model, optimizer=optimizer, image_shape=(4, 4, 1))
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (6, 4, 4, 1), dtype=np.uint8), "label": np.arange(6) % 3}
    preprocess = Preprocess((0.5,), (0.25,))
    after, _ = jax.jit(
        lambda state, batch: train_step(
            state, batch, model=model, optimizer=optimizer, loss=loss, preprocess=preprocess
        )
    )(state, batch)
    x = preprocess(batch["image"]).reshape(6, -1)

    def objective(params):
        cross_entropy = lambda head: loss(x @ params[head]["kernel"] + params[head]["bias"], batch["label"]).mean()
        return cross_entropy("output") + 0.3 * (cross_entropy("head1") + cross_entropy("head2"))

    expected = jax.tree.map(jnp.subtract, state.params, jax.grad(objective)(state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after.params, expected)
