"""`python -m cnnjax`, which is the `cnnjax` command."""

from cnnjax import start


def main() -> None:
    """The command, once its process is prepared: that comes before the imports that take seconds."""
    start.begin()
    from cnnjax.cli import main

    main()


if __name__ == "__main__":
    main()
