"""ResNet-50 on ImageNet.

He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016; the recipe is that of Goyal et al.,
"Accurate, Large Minibatch SGD", 2017, with a cosine in place of steps and smoothed labels.

    python -m experiments.imagenet_resnet50 --data.data-dir FOLDER

The folder holds TFDS's imagenet2012 as array_record (docs/imagenet.md says how to prepare it). 90 epochs of 1,024
images, SGD with Nesterov's momentum 0.9 and weight decay 1e-4 on the kernels, learning rate 0.4 (0.1 for each 256
images) after five epochs of warm-up, label smoothing 0.1, random-resized crops of 224 and mirroring, bfloat16. The
validation images are ImageNet's 50,000, one central crop each. Published for the like, top-1: 76.4 % (Goyal et al.,
table 1), 76.5 % (Flax's example), 77.1 % (NVIDIA's, with cosine and smoothing). Expected: not measured yet; it wants
accelerators and the data. On made-up photographs it runs from end to end (tests/test_experiments.py).
"""

from cnnjax.training import Config, Data, Model, Optimizer, Run, Train, launch

CONFIG = Config(
    model=Model("resnet50", {"zero_init_residual": True}),
    data=Data("tfds:imagenet2012", crop=224, resize=256, flip=True),
    optimizer=Optimizer(
        "sgd", learning_rate=0.4, momentum=0.9, nesterov=True, weight_decay=1e-4, schedule="cosine", warmup=5 / 90
    ),
    train=Train(epochs=90, batch_size=1024, label_smoothing=0.1, dtype="bfloat16"),
    run=Run(eval_batch_size=1024, checkpoint_every=1000),
)


def main(argv=None):
    """Runs it; `argv` as on the command line."""
    return launch(CONFIG, __file__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
