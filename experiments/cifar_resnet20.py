"""ResNet-20 with parameter-free shortcuts (option A) on CIFAR-10.

He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.

    python -m experiments.cifar_resnet20 --data.raw-dir FOLDER

The paper's recipe: 45,000 images to train and 5,000 to validate, 64,000 updates of 128 images, SGD with momentum 0.9
and weight decay 1e-4, learning rate 0.1 divided by ten at one half and at three quarters of the run, 4 pixels of
padding with random crops, mirroring. (The mean is subtracted by channel, not by pixel.) Published: 91.25 %.
Expected: not measured yet; it wants an accelerator (a day and more on two CPU cores).
"""

from cnnjax.training import Config, Data, Model, Optimizer, Train, launch

CONFIG = Config(
    model=Model("cifar_resnet20"),
    data=Data("cifar10", validation=5000, pad_crop=4, flip=True),
    optimizer=Optimizer(
        "sgd", learning_rate=0.1, momentum=0.9, weight_decay=1e-4, schedule="steps", milestones=(0.5, 0.75)
    ),
    train=Train(steps=64_000, epochs=None, batch_size=128),
)


def main(argv=None):
    """Runs it; `argv` as on the command line."""
    return launch(CONFIG, __file__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
