"""`cnnjax doctor`: right machines pass, planted faults don't, and runs remember."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import cli, ops, releases
from cnnjax.doctor import checks, examine, machine
from cnnjax.ops import conv as convolutions
from cnnjax.ops import max_pool
from cnnjax.training import Config, Data, Model, Train, doubts, train
from cnnjax.training.report import Report


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What the doctor remembers is forgotten after a test."""
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The same checks on arrays of a few rows."""
    monkeypatch.setattr(
        checks,
        "CONVOLUTIONS",
        {
            name: layer._replace(image=(8, 8, 8, layer.image[-1]), stride=layer.stride)
            for name, layer in checks.CONVOLUTIONS.items()
        },
    )
    checks._operands.cache_clear()
    yield
    checks._operands.cache_clear()


def planted(monkeypatch, name, wrong):
    """One implementation of convolution computes something else."""
    right = convolutions._IMPLEMENTATIONS[name]
    convolve = lambda lhs, rhs, spec: wrong(right.convolve(lhs, rhs, spec))
    monkeypatch.setitem(convolutions._IMPLEMENTATIONS, name, right._replace(convolve=convolve))


@pytest.mark.parametrize("name", ["auto", "shift", "winograd"])
def test_a_right_convolution_passes(name):
    assert checks.convolution(name).status == "right"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda y: y * 1.001,
        lambda y: y.at[-1, -1, -1, -1].add(1),
        lambda y: y.at[0].set(0),
        lambda y: y * np.nan,
        lambda y: y[:, ::-1],
    ],
    ids=["a thousandth", "one number", "an image", "NaN", "upside down"],
)
def test_a_planted_wrong_convolution_fails(monkeypatch, wrong):
    planted(monkeypatch, "shift", wrong)
    outcome = checks.convolution("shift")
    assert outcome.status == "wrong"
    assert "of 5x5 of one channel in float32" in outcome.detail


@pytest.mark.parametrize("operand", ["input", "kernel"])
def test_a_wrong_gradient_fails(monkeypatch, operand):
    """The value is right, and so is the other gradient: the fault is in one of them alone."""
    shrunk = gradient_times(0.99)
    right = convolutions._IMPLEMENTATIONS["im2col"]
    if operand == "input":
        convolve = lambda lhs, rhs, spec: right.convolve(shrunk(lhs), rhs, spec)
    else:
        convolve = lambda lhs, rhs, spec: right.convolve(lhs, shrunk(rhs), spec)
    monkeypatch.setitem(convolutions._IMPLEMENTATIONS, "im2col", right._replace(convolve=convolve))
    assert checks.convolution("im2col").detail.startswith(f"{operand} gradient of")


def gradient_times(factor):
    """The identity, with a gradient that is not its own."""

    @jax.custom_vjp
    def identity(x):
        return x

    identity.defvjp(lambda x: (x, None), lambda _, dy: (dy * factor,))
    return identity


@pytest.mark.parametrize("name", list(checks.POOLS))
def test_pools(name):
    assert checks.pooling(name).status == "right"


def wrong_pool(monkeypatch, wrong):
    """What the doctor says where 2x2 max pooling is this."""
    monkeypatch.setitem(checks.POOLS, "max 2x2/2", checks.POOLS["max 2x2/2"]._replace(apply=wrong))
    return checks.pooling("max 2x2/2")


def test_a_wrong_pool_fails(monkeypatch):
    outcome = wrong_pool(monkeypatch, lambda x, shape, strides: -max_pool(-x, shape, strides))
    assert outcome.status == "wrong"
    assert outcome.detail.startswith("value: ")


@pytest.mark.parametrize("ties", ["shared", "last"])
def test_a_wrong_pool_gradient_fails(monkeypatch, ties):
    """The value is right; the gradient is shared among equal maxima, or goes to the last, in place of the first."""

    def windows(x):
        n, height, width, channel = x.shape
        return x.reshape(n, height // 2, 2, width // 2, 2, channel)

    def backward(x, dy):
        largest = windows(x) == windows(x).max((2, 4), keepdims=True)
        if ties == "shared":
            share = largest / largest.sum((2, 4), keepdims=True)
        else:
            place = jnp.arange(4).reshape(1, 1, 2, 1, 2, 1)
            share = largest & (place == jnp.where(largest, place, -1).max((2, 4), keepdims=True))
        return ((share * dy[:, :, None, :, None]).reshape(x.shape),)

    @jax.custom_vjp
    def pool(x):
        return max_pool(x, (2, 2), (2, 2))

    pool.defvjp(lambda x: (pool(x), x), backward)
    outcome = wrong_pool(monkeypatch, lambda x, shape, strides: pool(x))
    assert outcome.status == "wrong"
    assert outcome.detail.startswith("gradient: ")


def test_pool_gradient_by_hand():
    x = np.array([[3, 3, 1], [0, 5, 1], [9, 9, 9]], np.float32)[None, :, :, None]
    c = np.array([[10, 20]], np.float32)[None, :, :, None]
    pool = checks.Pool(max_pool, ops.reference.max_pool, 2, 1)
    found = checks.pool_gradient(x, c, pool)[0, :, :, 0]
    np.testing.assert_array_equal(found, [[0, 0, 0], [0, 30, 0], [0, 0, 0]])


@pytest.mark.parametrize("check", [checks.sharded_batch_norm, checks.sharded_max_pool])
def test_sharded(check):
    outcome = check()
    assert outcome.status == "right"
    assert "8 devices" in outcome.detail


@pytest.mark.parametrize("statistic", ["mean", "var"])
def test_nan_in_a_statistic_of_batch_norm_is_wrong(monkeypatch, statistic):
    """Even where all else is right: NaN is greater than any error that is allowed."""
    right = nn.BatchNorm.apply

    def apply(*args, **kwargs):
        y, updated = right(*args, **kwargs)
        values = updated["batch_stats"][statistic]
        return y, {"batch_stats": updated["batch_stats"] | {statistic: values.at[-1].set(jnp.nan)}}

    monkeypatch.setattr(nn.BatchNorm, "apply", apply)
    outcome = checks.sharded_batch_norm()
    assert outcome.status == "wrong"
    assert "to nan" in outcome.detail


def test_groups_with_copies(monkeypatch):
    assert checks.grouped_on_copies("auto") == ("right", "value and gradients exact on 4 x 2 devices")
    planted(monkeypatch, "auto", lambda y: y + 1)
    assert checks.grouped_on_copies("auto").status == "wrong"


def test_one_device_has_nothing_to_share(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [object()])
    assert checks.sharded_batch_norm() == checks.grouped_on_copies("xla") == ("skipped", "one device")


FLAG = f"{releases.YNN_FUSION}=-reduce"


@pytest.mark.parametrize(
    ("version", "flags", "status", "detail"),
    [
        ("0.10.2", FLAG, "right", "0.10.2, admitted, 2 faults cured by XLA_FLAGS"),
        ("0.10.1", "", "wrong", "jaxlib 0.10.1 computes wrong values on CPU unless XLA_FLAGS has "),
        ("0.11.2", "--xla_cpu_multi_thread_eigen=false", "right", "0.11.2, admitted, 1 fault cured by XLA_FLAGS"),
        ("0.11.2", "", "wrong", "jaxlib 0.11.2 may hang on CPU in Fourier transforms unless XLA_FLAGS has "),
        ("9.9.9", "", "known", "9.9.9 was not admitted (docs/releases.md): trust what follows"),
        (None, "", "known", "None was not admitted"),
    ],
)
def test_release(monkeypatch, version, flags, status, detail):
    monkeypatch.setattr(releases, "installed", lambda: version)
    monkeypatch.setenv("XLA_FLAGS", flags)
    found = checks.release()
    assert found.status == status
    assert found.detail.startswith(detail)


def a_report(*outcomes):
    return [checks.Check(f"check {i}", lambda outcome=outcome: outcome) for i, outcome in enumerate(outcomes)]


RIGHT, WRONG = checks.Outcome("right", "all is well"), checks.Outcome("wrong", "off by 40 %")


def test_report_and_status(monkeypatch, capsys):
    monkeypatch.setattr(examine, "all_checks", lambda: a_report(RIGHT, WRONG, checks.Outcome("known", "not used")))
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor"])
    assert stop.value.code == 1
    text = capsys.readouterr().out
    assert "WRONG  check 1                     off by 40 %" in text
    assert "WRONG: check 1 (0 s). Runs here will warn of it." in text
    assert max(map(len, text.splitlines())) <= 80
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] == ["check 1"]
    assert found["checks"]["check 0"] == {"status": "right", "detail": "all is well", "seconds": 0.0}
    assert found["machine"]["devices"][0]["platform"] == "cpu"
    monkeypatch.setattr(examine, "all_checks", lambda: a_report(RIGHT))
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor"])
    assert stop.value.code == 0


def test_a_check_that_breaks_is_wrong():
    def breaks():
        raise MemoryError("no\n more")

    report = examine.examine([checks.Check("breaks", breaks)])
    assert report.checks["breaks"]["detail"] == "MemoryError: no more"
    assert report.failed == ["breaks"]


def test_runs_warn_of_what_the_doctor_found(tmp_path, capsys, monkeypatch):
    config = Config(Model("fully_connected"), Data("digits", limit=64), train=Train(steps=1, epochs=None, batch_size=8))
    assert doubts.warning() is None
    examine.examine(a_report(RIGHT, WRONG))
    train(config, tmp_path / "a", report=Report())
    text = capsys.readouterr().err
    assert "warning: cnnjax doctor found wrong values here on " in text
    assert ": check 1; results can't be trusted until it passes" in text
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_max_hlo_modules=1")  # other flags may have cured it
    assert doubts.warning() is None
    monkeypatch.undo()
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path / "cache"))
    examine.examine(a_report(RIGHT))
    assert doubts.warning() is None


def test_what_is_remembered_may_be_lost(cache):
    examine.examine(a_report(WRONG))
    (file,) = (cache / "doctor").iterdir()
    for text in ("", "[]", '{"failed": 3}', "\0"):
        file.write_text(text)
        assert doubts.warning() is None


def test_machine():
    found = machine.describe()
    json.dumps(found)
    assert found["cores"] >= 1
    text = machine.lines(found)
    assert text[0].startswith("cnnjax ")
    assert any("8 cpu devices" in line for line in text)


@pytest.mark.slow
def test_the_whole_round():
    report = examine.examine()
    assert report.failed == []
    assert {check["status"] for check in report.checks.values()} <= {"right", "known", "skipped"}
