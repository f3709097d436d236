"""LeNet-5 as it is usually built today, on scikit-learn's 1,797 handwritten digits: the first thing to run.

    python -m experiments.quickstart

No download. The 8x8 digits are enlarged to 28x28; training images are moved by up to two pixels. Expected: at least
98 % on the 360 test images, in about half a minute on two CPU cores.
"""

from cnnjax.training import Config, Data, Model, Optimizer, Train, launch

CONFIG = Config(
    model=Model("lenet5_modern"),
    data=Data("digits", size=(28, 28), shift=2),
    optimizer=Optimizer("adam", learning_rate=2e-3, schedule="cosine"),
    train=Train(epochs=40, batch_size=64),
)


def main(argv=None):
    """Runs it; `argv` as on the command line."""
    return launch(CONFIG, __file__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
