"""The notebooks agree with their paired scripts, show their results, and run from a clean kernel."""

import pathlib

import jupytext
import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def cells(notebook) -> list[tuple[str, str]]:
    """Kind and text of each cell."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def pictures(notebook) -> int:
    """How many pictures its outputs hold."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_there_is_a_first_look():
    assert "first_look" in [script.stem for script in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_notebook_is_the_script_and_shows_its_results(script):
    """After a change of the script: `make notebooks`."""
    path = script.with_suffix(".ipynb")
    notebook = nbformat.read(path, as_version=4)
    assert cells(notebook) == cells(jupytext.read(script))
    assert path.stat().st_size < 600_000
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert pictures(notebook) >= 4


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_runs_from_a_clean_kernel(script, tmp_path):
    """A cell that fails raises; what it prints and draws is as much as in the notebook that is kept."""
    kept = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    notebook = jupytext.read(script)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert pictures(notebook) == pictures(kept)
    streams = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    ]
    assert [output.text for output in streams if output.name == "stderr"] == []
    assert list(tmp_path.iterdir()) == []
