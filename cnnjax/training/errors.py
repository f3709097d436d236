"""How a run fails."""


class RunError(RuntimeError):
    """A run that can't go on: one line that says why and what is safe. Commands print it and exit with status 1."""

    status = 1


class Interrupted(RunError):
    """A run that was asked to stop (Ctrl-C, SIGTERM) and saved itself first."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.status = 128 + signal_number
