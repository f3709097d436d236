"""Freed memory is kept, as the system's count of page faults shows."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A jitted function with 64 MiB of intermediate results, run again and again; how many fresh pages the last runs took.
PROGRAM = """
import resource, sys
from cnnjax.memory import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
import jax, jax.numpy as jnp
@jax.jit
def f(x):
    return (jnp.outer(x, x) @ x[:, None]).sum()
x = jnp.ones(4096)
for _ in range(40):  # until there are free pieces of every size
    f(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    f(x).block_until_ready()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(argument, **variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))}
    command = [sys.executable, "-c", PROGRAM, argument]
    answer = subprocess.run(command, env=kept | variables, cwd=ROOT, capture_output=True, text=True, check=True)
    done, faults = answer.stdout.split()
    return done == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about the GNU C library")
def test_freed_memory_is_kept():
    kept, faults = run("keep")
    if not kept:
        pytest.skip("the C library is not GNU's")
    _, without = run("leave")
    assert without >= 30  # as many pages as memory comes in: 16,384 of 4 KiB, or 32 of 2 MiB and some
    assert faults < without / 4  # now and then a piece does not fit


def test_the_users_own_settings_are_respected():
    assert run("keep", MALLOC_ARENA_MAX="4")[0] is False
    assert run("keep", LD_PRELOAD="libjemalloc.so.2")[0] is False  # the loader warns that there is none, and goes on
