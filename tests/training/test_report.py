"""What a person sees of a run: few lines, that fit 80 columns."""

import pytest

from cnnjax.training import Report


def lines_of(capsys, *, steps, every, log_every=50, steps_per_epoch=None, accuracy=0.98):
    """What is printed of a run of so many steps in a pipe."""
    report = Report()
    report.start(0, steps, steps_per_epoch or every, every)
    for step in range(1, steps + 1):
        if step % log_every == 0:
            report.window({"loss": 12.34567 / step, "accuracy": accuracy}, 1e5)
        if step % every == 0 or step == steps:
            report.milestone(step, {"loss": 1.5, "accuracy": accuracy}, True)
    report.stop()
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("steps", "every"), [(809, 21), (64_000, 352), (5, 1), (19, 1), (41, 1), (3, 7), (1000, 999)])
def test_some_twenty_lines_a_run(steps, every, capsys):
    lines = lines_of(capsys, steps=steps, every=every, accuracy=1.0)
    evaluations = -(-steps // every)
    assert min(evaluations, 10) <= len(lines) <= 22
    assert max(map(len, lines)) <= 80
    shown = [int(line.split("step ")[1].split()[0].replace(",", "")) for line in lines]
    assert shown == sorted(set(shown))
    assert shown[0] == min(every, steps)
    assert shown[-1] == steps
    assert all(step % every == 0 for step in shown[:-1])


def test_epochs_are_whole_numbers_and_no_training_loss_is_repeated(capsys):
    lines = lines_of(capsys, steps=809, every=21, log_every=100, steps_per_epoch=1293 / 64)
    assert lines[0] == "epoch  1/40  step  21               val loss 1.5000  acc  98.00%  best"
    assert lines[-1] == "epoch 40/40  step 809  loss 0.0154  val loss 1.5000  acc  98.00%  best"
    losses = [line.split("  loss ")[1].split()[0] for line in lines if "  loss" in line]
    assert len(losses) == len(set(losses)) == 8


def test_without_validation_images(capsys):
    report = Report()
    report.start(0, 10, 5, 5)
    report.window({"loss": 0.5, "accuracy": 0.75}, 100)
    report.milestone(5, {}, False)
    report.milestone(10, {}, False)
    first, last = capsys.readouterr().out.splitlines()
    assert first == "epoch 1/2  step  5  loss 0.5000  acc  75.00%"
    assert last == "epoch 2/2  step 10"


def test_what_takes_long_is_said(capsys, monkeypatch):
    seconds = iter([0.0, 0.5, 10.0, 13.2, 20.0, 22.0])
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    report = Report()
    for what, announce in (("a", True), ("b", True), ("c", False)):
        with report.doing(what, announce=announce):
            pass
    assert capsys.readouterr().out.splitlines() == ["a ...", "b ...", "b took 3.2 s", "c took 2.0 s"]


def test_a_terminal_shows_numbers_before_the_first_metrics(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    report = Report()
    assert report.console.is_terminal
    report.start(0, 1000, 100, 100)
    report.advance(3, {"loss": 4.5, "count": 2.0})
    report._progress.refresh()
    report.stop()
    assert "loss 2.2500" in capsys.readouterr().out


def test_names_are_printed_as_they_are(capsys):
    report = Report()
    report.note("[bold]a[/bold]  :dog: \x1b[2J")
    report.warn("two  blanks\n and a break\x1b")
    out, err = capsys.readouterr()
    assert out == "[bold]a[/bold]  :dog: \\x1b[2J\n"
    assert err == "warning: two  blanks and a break\\x1b\n"
