"""One runnable file per experiment: its docstring says what it reproduces, how to launch it and what comes out."""

import sys

from cnnjax import memory, start

if sys.argv[:1] == ["-m"]:  # python -m experiments..., and not a process that decodes photographs for it
    start.begin()  # before an experiment's own imports
else:
    memory.keep_freed_memory()
