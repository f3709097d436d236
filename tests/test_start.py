"""What a command's process sees to first: streams that are closed, and an environment that can't be."""

import glob
import os
import pathlib
import resource
import subprocess
import sys
import threading

import jax
import pytest

from cnnjax import start
from cnnjax.ops.errors import InputError
from cnnjax.training import mesh

ROOT = pathlib.Path(__file__).resolve().parent.parent

PROGRAM = """
import os, sys
from cnnjax.start import open_streams
open_streams()
print("out")
print("err", file=sys.stderr)
sys.stdin.read()
os.write(2, b"of a library")
with open(sys.argv[1], "w") as file:
    file.write(f"mine {file.fileno() > 2}")
"""


@pytest.mark.parametrize("closed", ["", ">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_lead_nowhere_and_into_no_file(closed, tmp_path):
    path = tmp_path / "file"
    command = f'exec "$0" -c "$1" "$2" {closed}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, PROGRAM, str(path)],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert path.read_text() == "mine True"
    assert done.stdout == ("" if " >&-" in f" {closed}" else "out\n")
    assert done.stderr == ("" if "2>&-" in closed else "err\nof a library")


@pytest.mark.parametrize(
    ("name", "value"),
    [("JAX_ENABLE_X64", "maybe"), ("JAX_DEFAULT_PRNG_IMPL", "nonsense"), ("JAX_NUM_CPU_DEVICES", "abc")],
)
@pytest.mark.parametrize("command", ["cnnjax", "experiments.quickstart"])
def test_values_that_jax_does_not_take(name, value, command):
    done = subprocess.run(
        [sys.executable, "-m", command, "--help"],
        cwd=ROOT, env=os.environ | {name: value}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: environment: JAX can't be imported: ")
    assert value in done.stderr
    assert done.stderr.count("\n") == 1


def test_too_few_open_files(monkeypatch, capsys):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (16, 16))
    monkeypatch.setattr(start.interrupts, "begin", lambda: None)
    monkeypatch.setattr(start, "keep_freed_memory", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        start.begin()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: environment: open files are limited to 16 (ulimit -n), allowed: 64 or more\n"
    )


@pytest.mark.parametrize("limit", [100, resource.RLIM_INFINITY])
def test_too_few_threads(limit, monkeypatch, capsys):
    """They are tried only where there is a limit."""
    start_thread = threading.Thread.start
    tried = []

    def refuse_the_sixth(thread):
        tried.append(thread)
        if len(tried) > 5:
            raise RuntimeError("can't start new thread")
        start_thread(thread)

    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(pathlib.Path, "read_text", lambda _: "max")
    monkeypatch.setattr(start.interrupts, "begin", lambda: None)
    monkeypatch.setattr(start, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(threading.Thread, "start", refuse_the_sixth)
    if limit == resource.RLIM_INFINITY:
        start.begin()
        assert not tried
        return
    with pytest.raises(SystemExit) as stopped:
        start.begin()
    assert stopped.value.code == 2
    least = 48 + 4 * os.cpu_count()
    assert capsys.readouterr().err == (
        "error: environment: 5 threads can be started (see ulimit -u, and the container's limit), "
        f"allowed: {least} or more\n"
    )
    assert not any(thread.is_alive() for thread in tried[:5])


@pytest.mark.parametrize(
    ("installed", "files", "variables", "platforms"),
    [
        ({"libtpu"}, [], {}, "cpu"),
        ({"libtpu"}, ["/dev/accel0"], {}, None),
        ({"libtpu"}, [], {"TPU_WORKER_ID": "0"}, None),
        ({"libtpu"}, [], {"JAX_PLATFORMS": "tpu"}, "tpu"),
        ({"libtpu", "jax_plugins"}, [], {}, None),
        (set(), [], {}, None),
    ],
)
def test_libtpu_is_not_asked_where_there_is_no_tpu(monkeypatch, installed, files, variables, platforms):
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr(start, "_installed", lambda name: name in installed)
    monkeypatch.setattr(start.glob, "glob", lambda pattern: [name for name in files if name[:8] == pattern[:8]])
    start.look_for_no_tpu()
    assert variables.get("JAX_PLATFORMS") == platforms


@pytest.mark.parametrize(("first", "platforms"), [("cnnjax", "cpu"), ("jax, cnnjax", "None")])
def test_importing_cnnjax_looks_for_no_tpu(first, platforms, tmp_path):
    """Before JAX is imported, which reads the variable then."""
    if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*"):
        pytest.skip("there may be a TPU")
    (tmp_path / "libtpu").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_PLATFORMS", "TPU_"))}
    program = f"import os, {first}; print(os.environ.get('JAX_PLATFORMS'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env=environment | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{platforms}\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("Unable to initialize 'tpux': not known (set JAX_PLATFORMS='' ...)"),
            "not known; allowed",
        ),
        (AssertionError(), "no such platform is installed; allowed"),
    ],
)
def test_platforms_that_are_not_there(monkeypatch, error, words):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "tpux")
    with pytest.raises(InputError, match=r"^devices: received JAX_PLATFORMS=tpux") as raised:
        mesh.visible()
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
