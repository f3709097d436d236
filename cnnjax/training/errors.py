"""How a run fails."""


class RunError(RuntimeError):
    """A run that can't go on: one line that says why and what is safe. Commands print it and exit with status 1."""

    status = 1


class Interrupted(RunError):
    """A run that was asked to stop (Ctrl-C, SIGTERM) and saved itself first."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.status = 128 + signal_number


def explained(error: BaseException) -> str | None:
    """What a person can do about an error of JAX's or Python's that is the machine's; None for any other error."""
    said = " ".join((str(error).splitlines() or [""])[0].split())
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in said):
        return (
            f"out of memory: {said or 'of the host'}; less is taken by --train.microbatches, by a smaller "
            f"--train.batch-size or --run.eval-batch-size, and by a smaller network or image (what was saved is kept)"
        )
    if isinstance(error, RuntimeError) and "can't start new thread" in said:
        return f"{said}: the system allows this process no more of them (see ulimit -u)"
    return None
