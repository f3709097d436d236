"""Text for a terminal: nothing in it is obeyed, and it fits."""

import io

import pytest
from rich.cells import cell_len

from cnnjax import terminal
from cnnjax.terminal import Column


class Screen(io.StringIO):
    """What takes itself for a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jcat", r"\x1b[2Jcat"),  # would clear the screen
        ("\x9b31mcat\a\b", r"\x9b31mcat\x07\x08"),
        ("cat\r\ndog\t", r"cat\r\ndog\t"),
        ("gnp.\u202etac", r"gnp.\u202etac"),  # what follows would be read from the right
        ("\u2066a\u2069\u200b\ufeff", r"\u2066a\u2069\u200b\ufeff"),
        ("caf\udce9", r"caf\udce9"),  # a byte that is no UTF-8, in a file's name
        ("Käse 狗 [bold] a  b \u3000 $x_1$ :dog:", "Käse 狗 [bold] a  b \u3000 $x_1$ :dog:"),
    ],
)
def test_nothing_is_obeyed(text, shown):
    assert terminal.printable(text) == shown


def test_an_error_is_one_line():
    assert terminal.one_line("a\n    b  [bold]c\n\n") == "a b  [bold]c"


def test_a_line_is_broken_between_words_on_a_terminal_alone(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    screen, pipe = Screen(), io.StringIO()
    text = "  a name    " + "and words " * 4 + "x" * 30
    terminal.say(text, screen)
    terminal.say(text, pipe)
    assert pipe.getvalue() == text + "\n"
    lines = screen.getvalue().splitlines()
    assert lines[0] == "  a name    and"
    assert lines[-1].strip() == "x" * 30  # a path can be copied
    assert all(len(line) <= 20 for line in lines[:-1])
    assert " ".join(screen.getvalue().split()) == " ".join(text.split())


COLUMNS = [
    Column("layer", shrink="cut", least=10),
    Column("what", shrink="wrap", least=8),
    Column("number", right=True),
    Column("often empty"),
    Column("memory", right=True, rank=1),
    Column("by", rank=2),
]
ROWS = [
    ("stage1_block1/shortcut_conv", "a convolution of one pixel", "1,234", "", "3 MiB", "auto"),
    ("dense", "all", "7", "", "", "xla"),
    None,
    ("total", "", "1,241", "", "3 MiB", ""),
]


def test_a_table_in_a_file_has_everything():
    heading, rule, first, *_ = lines = terminal.table(COLUMNS, ROWS).splitlines()
    assert heading.split() == ["layer", "what", "number", "memory", "by"]  # the empty column is left out
    assert first.split("  ")[:2] == ["stage1_block1/shortcut_conv", "a convolution of one pixel"]
    assert set(rule) == {"─"}
    assert lines[4] == rule
    assert len(lines) == 6


@pytest.mark.parametrize("width", range(31, 75))
def test_a_table_fits_any_width(width):
    text = terminal.table(COLUMNS, ROWS, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for word in ("convolution", "pixel", "1,234", "dense", "stage", "conv"):
        assert word in text  # no word is broken; names are cut in the middle
    missing = [name for name in ("memory", "by") if name not in lines[0]]
    said = f"left out at this width: {', '.join(missing)}"
    assert " ".join(text.split()).endswith(said) == bool(missing)


def test_names_are_cut_in_the_middle():
    assert terminal.cut("stage1_block1/conv1", 19) == "stage1_block1/conv1"
    assert terminal.cut("stage1_block1/shortcut_conv", 20) == "stage1_blo…tcut_conv"
    assert len(terminal.cut("abcdefgh", 5)) == 5


@pytest.mark.parametrize("width", range(1, 24))
def test_wide_names_are_cut_by_their_columns(width):
    text = "猫" * 30 + "ab"
    found = terminal.cut(text, width)
    assert width - 2 <= cell_len(found) <= width
    head, _, tail = found.partition("…")
    assert text.startswith(head)
    assert text.endswith(tail)


def test_wide_letters_take_two_columns():
    lines = terminal.table([Column("name"), Column("n")], [("狗", "1"), ("cat", "2")]).splitlines()
    assert lines[2:] == ["狗    1", "cat   2"]
