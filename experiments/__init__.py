"""One runnable file per experiment: its docstring says what it reproduces, how to launch it and what comes out."""

from cnnjax.memory import keep_freed_memory

keep_freed_memory()  # before an experiment's own imports, some of which start threads
