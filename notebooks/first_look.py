# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first look
#
# Handwritten digits, a network that learns to read them, what its filters look for and where it goes wrong.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from cnnjax import data, models
from cnnjax.training import metrics

# %% [markdown]
# ## The digits
#
# 1,797 images that come with scikit-learn, enlarged to the 28x28 pixels that LeNet-5 was made for.

# %%
digits = data.load("digits", size=(28, 28))
print(len(digits.train), "to learn from,", len(digits.test), "to be tested on")

fig, axes = plt.subplots(2, 10, figsize=(10, 2.3))
for axis, image, label in zip(axes.flat, digits.train.image, digits.train.label, strict=False):
    axis.imshow(image.squeeze(), cmap="gray_r")
    axis.set_title(digits.classes[label])
    axis.axis("off")
plt.show()

# %% [markdown]
# ## The network
#
# A model is a pure function: `init` makes its parameters, `apply` uses them. It maps images `[batch, height, width,
# channels]` to one number per class, the logits.

# %%
model = models.create("lenet5_modern")
images = jnp.asarray(digits.train.image, jnp.float32) / 255
labels = jnp.asarray(digits.train.label)
variables = jax.jit(model.init)(jax.random.key(0), images[:1])
print(f"{models.count_parameters(variables):,} parameters")
jax.tree.map(jnp.shape, variables["params"])

# %% [markdown]
# Untrained, it guesses: one in ten is right.

# %%
test_images = jnp.asarray(digits.test.image, jnp.float32) / 255
apply = jax.jit(model.apply)
logits = apply(variables, test_images)
print(f"{(logits.argmax(-1) == digits.test.label).mean():.1%} right")

# %% [markdown]
# ## Training
#
# One update: the gradient of the loss on a batch of images, and a small step against it. `cnnjax run` does this with a
# progress bar, checkpoints and pictures; underneath it is no more than the next cell.

# %%
steps, batch_size = 300, 64
optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))


@jax.jit
def update(params, opt_state, image, label):
    """One step: the new parameters and optimizer state, and the loss before it."""

    def loss(params):
        return metrics.cross_entropy(model.apply({"params": params}, image, train=True), label).mean()

    value, gradients = jax.value_and_grad(loss)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value


params, opt_state, losses = variables["params"], optimizer.init(variables["params"]), []
for step in range(steps):
    index = data.batch_indices(len(images), batch_size, step, seed=0)
    params, opt_state, value = update(params, opt_state, images[index], labels[index])
    losses.append(float(value))

fig, axis = plt.subplots(figsize=(6, 3))
axis.semilogy(losses)
axis.set(xlabel="step", ylabel="loss on the batch")
plt.show()

# %%
logits = apply({"params": params}, test_images)
predicted = np.asarray(logits.argmax(-1))
accuracy = (predicted == digits.test.label).mean()
print(f"{accuracy:.1%} right")
assert accuracy > 0.94

# %% [markdown]
# On the digits it learned from it makes almost no mistakes any more, on new ones it still does. What helps is more
# data: `cnnjax run quickstart` moves the training images by a pixel or two at random, and gets more than 98 %.

# %% [markdown]
# ## What the first layer looks for
#
# Its six filters of 5x5 pixels, and what they make of a digit. A filter adds up the ink under its red weights and takes
# away that under its blue ones; its map is bright where much is left. Some see strokes of one direction, some edges,
# some all the ink.

# %%
one = np.flatnonzero(predicted == digits.test.label)[4]
image = test_images[one : one + 1]
_, state = model.apply({"params": params}, image, capture_intermediates=True, mutable=["intermediates"])
maps = np.asarray(state["intermediates"]["C1"]["__call__"][0])[0]
filters = np.asarray(params["C1"]["kernel"])

fig, axes = plt.subplots(2, 7, figsize=(10, 3.2))
axes[0, 0].axis("off")
axes[1, 0].imshow(digits.test.image[one].squeeze(), cmap="gray_r")
for k in range(6):
    axes[0, k + 1].imshow(filters[:, :, 0, k], cmap="RdBu_r", vmin=-abs(filters).max(), vmax=abs(filters).max())
    axes[1, k + 1].imshow(np.maximum(maps[:, :, k], 0), cmap="gray")
for axis in axes.flat:
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Mistakes
#
# What it said, and what the writer meant; those it was surest of come first.

# %%
sureness = np.asarray(jax.nn.softmax(logits).max(-1))
wrong = np.flatnonzero(predicted != digits.test.label)
wrong = wrong[np.argsort(-sureness[wrong])]
print(len(wrong), "mistakes in", len(predicted))

fig, axes = plt.subplots(2, 8, figsize=(10, 3.2))
for axis in axes.flat:
    axis.axis("off")
for axis, i in zip(axes.flat, wrong, strict=False):
    axis.imshow(digits.test.image[i].squeeze(), cmap="gray_r")
    axis.set_title(f"said {digits.classes[predicted[i]]}, is {digits.classes[digits.test.label[i]]}", fontsize=10)
plt.show()

# %% [markdown]
# ## Where to go from here
#
# - `cnnjax run quickstart` does all this and leaves checkpoints, curves and pictures.
# - `models.create("lenet5")` is the network as it was published in 1998.
# - `models.create("lenet5_modern", act="tanh", pool="avg")` changes what it is made of.
