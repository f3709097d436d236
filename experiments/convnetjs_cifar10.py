"""The CIFAR-10 network of ConvNetJS, which learns in a browser: three 5x5 convolutions with pooling, and softmax.

Karpathy, ConvNetJS, `demo/cifar10.html`.

    python -m experiments.convnetjs_cifar10 --data.raw-dir FOLDER

The demonstration's recipe: pixels in ±0.5, shifts of up to two pixels and mirroring, Adadelta with batches of four and
an L2 penalty of 1e-4, which it divides by the batch size. It speaks of about 80 % for a network trained for long and
averaged over several augmentations of each test image; this evaluates each image once. Expected: 70.1 % (seed 0, on the
JPEG re-encoding), in ten minutes on two CPU cores.
"""

from cnnjax.training import Config, Data, Model, Optimizer, Train, launch

CONFIG = Config(
    model=Model("convnetjs_cifar10"),
    data=Data("cifar10", validation=5000, mean=(0.5,), std=(1.0,), shift=2, flip=True),
    optimizer=Optimizer("adadelta", learning_rate=1.0, weight_decay=1e-4 / 4),
    train=Train(epochs=20, batch_size=4),
)


def main(argv=None):
    """Runs it; `argv` as on the command line."""
    return launch(CONFIG, __file__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
