"""One runnable file per experiment: its docstring says what it reproduces, how to launch it and what comes out."""
