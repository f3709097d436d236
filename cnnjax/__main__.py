"""`python -m cnnjax`, which is the `cnnjax` command."""

from cnnjax.memory import keep_freed_memory


def main() -> None:
    """The command, once memory is seen to: that comes before the imports that start threads."""
    keep_freed_memory()
    from cnnjax.cli import main

    main()


if __name__ == "__main__":
    main()
