"""The document that `make equivalence` and `make releases` write of fused programs."""

import fused_programs
from fused_programs import Result

from cnnjax.doctor import fused


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_release_has_one_line_and_lines_are_sorted(tmp_path):
    results = [Result("auto", 2, 0.0, ()), Result("fft", 3, 1.5e-7, ("fft, ...: wrong",))]
    line = fused_programs.table_line("0.10.2", results, ["jax#39103"])
    assert cells(line)[:1] + cells(line)[3:8] == ["0.10.2", "2", "5", "1", "0", "0"]
    assert cells(line)[2] == "`experimental_ynn_fusion_type=-reduce`"
    assert cells(line)[-2:] == ["1.5e-07", "jax#39103"]
    text = "# Title\n\nWords.\n"
    for version in ("0.10.2", "0.9.10", "0.10.2", "0.11.0"):
        text = fused_programs.with_line(text, version, line.replace("0.10.2", version))
    assert text.startswith("# Title\n\nWords.\n\n## Fused programs\n")
    rows = [cells(row)[0] for row in text.splitlines() if row.startswith("| 0.")]
    assert rows == ["0.9.10", "0.10.2", "0.11.0"]
    (tmp_path / "a.md").write_text(text)
    assert fused_programs.section_in(tmp_path / "a.md") == text[text.index("## Fused") :]
    assert fused_programs.section_in(tmp_path / "none.md") == ""


def test_what_is_wrong_is_told(monkeypatch):
    """A line for each array that is wrong, of each implementation."""
    case = fused.Case(fused.Layer(3, 4, side=8), 4, "sum over rows", "value")
    assert [result.wrong for result in fused_programs.check(case)] == [()] * 7
    by_name = fused.conv_implementation
    monkeypatch.setattr(fused, "conv_implementation", lambda name: lambda x, w, **o: 2 * by_name(name)(x, w, **o))
    for result in fused_programs.check(case):
        [line] = result.wrong
        assert line.startswith(
            f"{result.implementation}, 3x3x3x4 of 4 images of 8x8, float32: sum over rows, value: 4 of"
        )
