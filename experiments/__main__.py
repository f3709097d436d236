"""`python -m experiments NAME` is `cnnjax run NAME`."""

import sys

from cnnjax.cli import main

main(["run", *sys.argv[1:]])
