"""Text for a terminal: names that are safe to print, and lines and tables that fit its width."""

import dataclasses
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import IO, Literal

_GAP = "  "


def printable(text: str) -> str:
    r"""`text` with everything that a terminal would obey, rather than show, as an escape: "\x1b[2J" for ESC[2J.

    That is control characters, line breaks among them, marks of direction and other invisible formatting, and what is
    no proper Unicode (bytes of a file's name). Names of classes, files and experiments come from anywhere, and pass
    through here on their way to a person.
    """
    return "".join(
        character
        if character.isprintable() or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape").decode()
        for character in text
    )


def one_line(text: str) -> str:
    """`text` on one line and safe to print: line breaks and the indentation around them become a space."""
    return printable(" ".join(line.strip() for line in text.splitlines() if line.strip()))


def width_of(stream: IO[str]) -> int | None:
    """The columns of the terminal that `stream` writes to ($COLUMNS, where it is set); None for a file or a pipe."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def wrap(text: str, width: int | None, indent: str = "") -> str:
    """`text` broken between words into lines of at most `width`, the later ones indented; a longer word stays whole."""
    if width is None:
        return text
    # Blanks are kept as they are, so that columns stay columns.
    lines = textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, replace_whitespace=False
    )
    return "\n".join(lines) or text


def say(text: str, stream: IO[str] | None = None) -> None:
    """Prints a line, safely and broken between words where it is too long; on standard output when `stream` is None."""
    stream = sys.stdout if stream is None else stream
    print(wrap(printable(text), width_of(stream), "    "), file=stream, flush=True)


def listing(items: Mapping[str, str], width: int | None) -> str:
    """Names, and beside each what it is."""
    column = max(map(len, items), default=0) + 4
    return "\n".join(wrap(f"  {name:{column - 2}}{text}", width, " " * column) for name, text in items.items())


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    """Its heading."""
    right: bool = False
    """Numbers stand to the right."""
    shrink: Literal["no", "cut", "wrap"] = "no"
    """What may be done where the table is too wide: nothing, leaving out the middle of each cell, or breaking lines."""
    least: int = 16
    """What a column that shrinks keeps, in characters."""
    rank: int = 0
    """Where the table is still too wide, the column of the highest rank is left out, and then the next; 0 stays."""


def table(columns: Sequence[Column], rows: Sequence[Sequence[str] | None], width: int | None = None) -> str:
    """A table as text: a heading, a rule, the rows; columns without any content are left out.

    Args:
      columns: what they are called, and what may be done to make them fit.
      rows: a text for each column, or None for a rule.
      width: characters to fit into; None for as many as it takes.

    Returns:
      Lines. Where columns were left out for the width, the last line says which.
    """
    shown = [i for i in range(len(columns)) if any(row and row[i] for row in rows)]
    natural = {i: max(_length(columns[i].name), *(_length(row[i]) for row in rows if row)) for i in shown}
    least = {i: min(natural[i], _least(columns[i], [row[i] for row in rows if row])) for i in shown}
    left_out: list[int] = []

    def spare(widths: dict[int, int]) -> int:
        assert width is not None
        return width - sum(widths[i] for i in shown) - len(_GAP) * (len(shown) - 1)

    widths = natural
    if width is not None and spare(natural) < 0:
        while spare(least) < 0 and any(columns[i].rank for i in shown):
            left_out.append(max(shown, key=lambda i: columns[i].rank))
            shown.remove(left_out[-1])
        widths = dict(least)
        # What remains goes to the columns that were to shrink, to each as much as to the others or as it needs.
        tight = sorted((i for i in shown if least[i] < natural[i]), key=lambda i: natural[i] - least[i])
        for count, i in enumerate(tight):
            widths[i] += max(0, min(natural[i] - least[i], spare(widths) // (len(tight) - count)))

    rule = "─" * (sum(widths[i] for i in shown) + len(_GAP) * (len(shown) - 1))
    heading = [column.name for column in columns]
    wrapped = [dataclasses.replace(column, shrink="wrap") for column in columns]
    lines = [*_lines(heading, wrapped, widths, shown), rule]
    for row in rows:
        lines += [rule] if row is None else _lines(row, columns, widths, shown)
    if left_out:
        lines.append(wrap(f"left out at this width: {', '.join(columns[i].name for i in sorted(left_out))}", width))
    return "\n".join(lines)


def _least(column: Column, cells: Sequence[str]) -> int:
    """The width that a column can't go below: of what is broken between words, that of the longest word."""
    match column.shrink:
        case "no":
            return max(_length(text) for text in (column.name, *cells))
        case "cut":
            return max(column.least, _length(column.name))
        case "wrap":
            return max(column.least, *(_length(word) for text in (column.name, *cells) for word in text.split()))


def _lines(row: Sequence[str], columns: Sequence[Column], widths: dict[int, int], shown: Sequence[int]) -> list[str]:
    """A row as one line, or as many as its longest cell takes."""
    cells = [
        textwrap.wrap(row[i], widths[i], break_on_hyphens=False) or [""]
        if columns[i].shrink == "wrap"
        else [cut(row[i], widths[i])]
        for i in shown
    ]
    lines = []
    for k in range(max(map(len, cells))):
        parts = []
        for i, cell in zip(shown, cells, strict=True):
            text = cell[k] if k < len(cell) else ""
            blank = " " * (widths[i] - _length(text))
            parts.append(blank + text if columns[i].right else text + blank)
        lines.append(_GAP.join(parts).rstrip())
    return lines


def cut(text: str, width: int) -> str:
    """`text` in at most `width` columns, what is in its middle left out: names differ at their ends."""
    if _length(text) <= width:
        return text
    head = width // 2
    end = _begin(text[::-1], width - 1 - head)[::-1]
    return f"{_begin(text, head)}…{end}"


def _begin(text: str, width: int) -> str:
    """As many of the first characters of a text as fit into `width` columns."""
    count = 0
    for character in text:
        width -= _length(character)
        if width < 0:
            break
        count += 1
    return text[:count]


def _length(text: str) -> int:
    """Columns of the terminal that a text takes: letters of East Asian scripts take two, combining marks none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
