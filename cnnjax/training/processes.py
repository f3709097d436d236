"""Several processes as one run: how they find each other, agree on what only one of them knows, and fail together.

Every process runs the same program on its own devices. The first one alone writes the run's folder, which the others
must see (a shared file system). What it finds there, an error included, it tells the others; so no process waits for
one that has given up.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import re
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed as distributed_state  # nothing public says whom one waits for

from cnnjax.ops.errors import InputError
from cnnjax.training import meeting
from cnnjax.training.config import Distributed
from cnnjax.training.errors import RunError, explained

HEARTBEAT = 60
"""Seconds of silence after which a process counts as lost, and all others end."""

_TOLD = 2000  # bytes of an error's text that other processes hear


def launcher() -> str | None:
    """What started this process as one of several, as its environment tells; None for a process alone."""
    env = os.environ
    if _number("OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    if "SLURM_STEP_NODELIST" in env and _number("SLURM_NTASKS") > 1:
        return "Slurm"
    if "," in env.get("TPU_WORKER_HOSTNAMES", ""):
        return "Cloud TPU on GKE"
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return "Kubernetes"
    chips = any(os.path.exists(path) for path in ("/dev/accel0", "/dev/vfio/0"))
    if chips and importlib.util.find_spec("libtpu") and "tpu" in env.get("JAX_PLATFORMS", "tpu"):
        return "Cloud TPU"  # of one host or of several: JAX asks the machine
    return None


def _number(variable: str) -> int:
    """A number of processes in the environment; 1 where there is none."""
    value = os.environ.get(variable, "1")
    if not re.fullmatch("[0-9]{1,9}", value):
        raise InputError(f"environment: {variable} is {value!r}, allowed: a number of processes, as a launcher sets it")
    return int(value)


def join(distributed: Distributed) -> None:
    """Makes this process one of a run's, where it was started as one; before JAX looks for devices.

    Args:
      distributed: what the command line says; the launcher says the rest.

    Raises:
      InputError: the options are incomplete or can't be.
      RunError: the other processes can't be reached.
    """
    _check(distributed)
    started_by = launcher()
    if distributed.coordinator is None and started_by is None:
        return
    by = f" (started by {started_by})" if started_by else ""
    if distributed.coordinator is not None:
        assert distributed.num_processes is not None
        assert distributed.process_id is not None
        meeting.meet(distributed.coordinator, distributed.num_processes, distributed.process_id)
    try:
        with _last_word(f"distributed: not all processes of the run{by} came", meeting.WAIT):
            jax.distributed.initialize(
                distributed.coordinator,
                distributed.num_processes,
                distributed.process_id,
                initialization_timeout=round(meeting.WAIT) + 30,
                heartbeat_timeout_seconds=HEARTBEAT,
            )
    except (RuntimeError, ValueError, LookupError, TypeError) as error:  # of variables that a launcher sets, too
        said = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else error
        raise RunError(f"distributed: the processes of the run don't find each other{by}: {said}") from error


@contextlib.contextmanager
def _last_word(text: str, seconds: float) -> Generator[None]:
    """Ends this process with a line where what is inside takes longer: JAX would abort it, with a stack of C++."""

    def end() -> None:
        state = distributed_state.global_state
        where = f" to {state.coordinator_address}" if state.coordinator_address else ""
        of = f" (this is process {state.process_id} of {state.num_processes})" if state.num_processes else ""
        print(f"error: {text}{where} within {seconds:g} s{of}", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check(distributed: Distributed) -> None:
    given = {name: getattr(distributed, name) for name in ("coordinator", "num_processes", "process_id")}
    named = ", ".join(f"--distributed.{name.replace('_', '-')}" for name, value in given.items() if value is None)
    if 0 < sum(value is None for value in given.values()) < 3:
        raise InputError(f"distributed: {named} is missing, allowed: all three options, or none under a launcher")
    if distributed.coordinator is None:
        return
    host, _, port = distributed.coordinator.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise InputError(f"distributed.coordinator: received {distributed.coordinator!r}, allowed: HOST:PORT")
    assert distributed.num_processes is not None
    assert distributed.process_id is not None
    if distributed.num_processes < 1:
        raise InputError(f"distributed.num-processes: received {distributed.num_processes}, allowed: 1 or more")
    if not 0 <= distributed.process_id < distributed.num_processes:
        raise InputError(
            f"distributed.process-id: received {distributed.process_id}, allowed: 0 to {distributed.num_processes - 1}"
        )


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether there are other processes."""
    return jax.process_count() > 1


def from_first(function: Callable[[], Any]) -> Any:
    """What a function gives in the first process, in every process; called in the first alone.

    Args:
      function: gives what JSON can hold.

    Raises:
      InputError, RunError: what it raised in the first process, in every one; an `OSError` as a `RunError`.
    """
    if not several():
        return function()
    answer: dict[str, Any] = {}
    if is_first():
        try:
            answer = {"value": function()}
        except (InputError, RunError, OSError) as error:
            answer = {"error": str(error), "mistake": isinstance(error, InputError)}
    answer = _broadcast(answer)
    if "error" in answer:
        raise (InputError if answer["mistake"] else RunError)(answer["error"])
    return answer["value"]


def together(function: Callable[[], Any]) -> Any:
    """What a function gives in this process, once every process has called it; the error of one is every process's.

    Raises:
      InputError, RunError, OSError: what it raised here.
      RunError: it failed in another process; the text says in which.
    """
    if not several():
        return function()
    from jax.experimental import multihost_utils

    value, own = None, None
    try:
        value = function()
    except (InputError, RunError, OSError) as error:
        own = error
    text = str(own).encode()[:_TOLD] if own else b""
    told = multihost_utils.process_allgather(np.frombuffer(text.ljust(_TOLD, b"\0"), np.uint8))
    if own:
        raise own
    for index, row in enumerate(np.asarray(told).reshape(-1, _TOLD)):
        theirs = row.tobytes().rstrip(b"\0").decode(errors="replace")
        if theirs:
            raise RunError(f"process {index}: {theirs}")
    return value


def agree(name: str, value: str) -> None:
    """Makes sure that every process has the same `value`.

    Raises:
      InputError: this one's is another than the first one's.
      RunError: another process's is.
    """

    def compare() -> None:
        if value != firsts:
            raise InputError(f"{name}: process {jax.process_index()} has {value}, allowed: {firsts}, as the first")

    firsts = from_first(lambda: value)
    together(compare)


def _broadcast(value: Any) -> Any:
    from jax.experimental import multihost_utils

    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content) if is_first() else 0)))
    content = np.resize(content, size) if is_first() else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())


def asked_to_stop(call: int) -> bool:
    """Whether all processes are to stop here, one of them having got SIGTERM or its machine being about to go.

    Args:
      call: a number that grows from call to call, the same in every process.
    """
    if not several():
        return False
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(call)


def whole(values: Any, sharding: jax.sharding.Sharding) -> Any:
    """Arrays divided among processes, whole in each of them; others as they are."""
    if all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in jax.tree.leaves(values)):
        return values
    return jax.jit(lambda x: x, out_shardings=sharding)(values)


@contextlib.contextmanager
def ending_together(workdir: pathlib.Path) -> Generator[None]:
    """Ends this process with a message where JAX can't go on because another one is gone.

    JAX's own watch over the processes ends those that are not waiting for a computation, with a message of its own.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not several() or explained(error):
            raise
        reason = str(error).partition("\n")[0]
        print(
            f"error: process {jax.process_index()} can't go on, most likely because another is gone ({reason}); the "
            f"newest good checkpoint in {workdir} is kept: start all processes again, and the run goes on from it",
            file=sys.stderr,
        )
        leave(1)


def leave(status: int) -> NoReturn:
    """Ends this process at once: the usual way would wait for others, which may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
