"""What the setting that `import cnnjax` makes costs and gains: a training step under each choice of it, by turns.

    python benchmarks/xla_flags.py [--networks NAME ...] [--rounds 12]

XLA reads its flags once in a process. So each choice has a process of its own, which waits for its turn; in each round
every one takes some steps, and what counts is the ratio to XLA's default in the same round. Networks and steps are
those of `step.py`: cnnjax's, and the same in plain Flax.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import IO

from cnnjax.releases import YNN_FUSION, installed

CHOICES = {
    "default": "individual_convolution,individual_dot,reduce",
    "-reduce": "-reduce",
    "-reduce,-individual_convolution": "-reduce,-individual_convolution",
    "none": "",
}
"""Values of the flag by name; the first, spelled out, is XLA's own."""
STEPS = 4


def contestant(network: str) -> None:
    """In a process of its own: prints the seconds per step of cnnjax and plain Flax for each line that it reads."""
    from cnnjax.memory import keep_freed_memory

    keep_freed_memory()
    import jax
    import numpy as np
    import step

    chosen = step.NETWORKS[network]
    rng = np.random.default_rng(0)
    images = rng.normal(size=(chosen.cpu_batch, *chosen.image)).astype(np.float32)
    labels = rng.integers(0, step.CLASSES, len(images)).astype(np.int32)
    trainers = []
    for make in (chosen.cnnjax, chosen.flax):
        variables = jax.jit(make().init)(jax.random.key(0), images[:4])
        trainers.append(step.jax_contestant(make(), variables, *jax.device_put((images, labels))))
    for train in trainers:
        train(1)
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds = []
        for train in trainers:
            started = time.perf_counter()
            train(STEPS)
            seconds.append((time.perf_counter() - started) / STEPS)
        print(*seconds, flush=True)


def pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    """What a process reads and what it writes."""
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["cifar_resnet20", "lenet5_modern"])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        return contestant(arguments.contestant)
    print(f"jaxlib {installed()}, CPU; milliseconds per step, and the median ratio to the default's (least to most)")
    for network in arguments.networks:
        command = [sys.executable, __file__, "--contestant", network]
        environ = os.environ | {"JAX_PLATFORMS": "cpu"}
        processes = {}
        for name, value in CHOICES.items():  # one after another, so that none compiles while another does
            environ["XLA_FLAGS"] = f"{YNN_FUSION}={value}"
            processes[name] = subprocess.Popen(
                command,
                text=True,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # that the default is wrong
            )
            if pipes(processes[name])[1].readline() != "ready\n":
                sys.exit(f"{network} under {name!r} did not start")
        times: dict[str, list[list[float]]] = {name: [] for name in processes}
        names = list(processes)
        for number in range(arguments.rounds):
            start = number // 2 % len(names)
            turns = [*names[start:], *names[:start]]
            for name in turns[::-1] if number % 2 else turns:
                into, out = pipes(processes[name])
                into.write("go\n")
                into.flush()
                times[name].append([float(seconds) for seconds in out.readline().split()])
        for process in processes.values():
            pipes(process)[0].close()
            process.wait()
        for i, who in enumerate(("cnnjax", "plain Flax")):
            for name in names:
                of = [seconds[i] for seconds in times[name]]
                ratios = [own / of_default[i] for own, of_default in zip(of, times["default"], strict=True)]
                spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
                print(f"{network:16} {who:11} {name:32} {1e3 * statistics.median(of):8.1f} {spread}", flush=True)


if __name__ == "__main__":
    main()
