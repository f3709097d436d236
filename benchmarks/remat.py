"""What `remat` costs and saves: the training step with it against the step that keeps everything.

    python benchmarks/remat.py [--rounds N] [--conv xla]

Prints milliseconds a step, how many times as long as without it takes (interleaved, in one process), and the memory
that the compiler plans for temporary values.
"""

import argparse

from accumulate import print_rows, stepper

from cnnjax.training.setup import versions

NETWORKS = (("resnet50", 8), ("cifar_densenet40_12", 32))
CHOICES = (False, "convolutions", True)


def main() -> None:
    """Prints a table for the results' page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--conv", default="auto", help="what computes the convolutions")
    arguments = parser.parse_args()
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    print("\n| network | batch | remat | ms | times without | temporary MB |\n|---|---|---|---|---|---|")
    for name, batch_size in NETWORKS:
        steppers = {str(choice): stepper(name, batch_size, conv=arguments.conv, remat=choice) for choice in CHOICES}
        print_rows(f"| {name} | {batch_size}", steppers, arguments.rounds)


if __name__ == "__main__":
    main()
