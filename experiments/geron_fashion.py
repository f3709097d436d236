"""The Fashion-MNIST network of Géron's book and of the lectures: seven convolutions and dense layers with dropout.

Géron, "Hands-On Machine Learning with Scikit-Learn, Keras and TensorFlow", chapter 14.

    python -m experiments.geron_fashion --data.raw-dir FOLDER

The book's recipe: pixels in [0, 1], 55,000 images to train and 5,000 to validate, Nadam, ten epochs of batches of 32,
no augmentation. Expected: 90.65 % on the test images (seed 0; validation 91.10 %), where the book reports 92 to 93 %.
It takes about half an hour on two CPU cores.
"""

from cnnjax.training import Config, Data, Model, Optimizer, Train, launch

CONFIG = Config(
    model=Model("geron_fashion"),
    data=Data("fashion_mnist", validation=5000, mean=(0.0,), std=(1.0,)),
    optimizer=Optimizer("nadam", learning_rate=1e-3),
    train=Train(epochs=10, batch_size=32),
)


def main(argv=None):
    """Runs it; `argv` as on the command line."""
    return launch(CONFIG, __file__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
