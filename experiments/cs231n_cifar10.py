"""The small network of the lectures' first figures: (conv-relu-conv-relu-pool) x 3 and a dense layer, on CIFAR-10.

Stanford CS231n's live demonstration, "7 layers, 7000 parameters": ten 3x3 filters a layer make 6,440.

    python -m experiments.cs231n_cifar10 --data.raw-dir FOLDER

No accuracy was published for it. Expected: 66.0 % (seed 0, on the JPEG re-encoding), in ten minutes on two CPU cores.
"""

from cnnjax.training import Config, Data, Model, Optimizer, Train, launch

CONFIG = Config(
    model=Model("cs231n_cifar10"),
    data=Data("cifar10", validation=5000, flip=True),
    optimizer=Optimizer("adam", learning_rate=3e-3, schedule="cosine"),
    train=Train(epochs=20, batch_size=64),
)


def main(argv=None):
    """Runs it; `argv` as on the command line."""
    return launch(CONFIG, __file__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
