"""Runs the notebooks, and writes those anew whose paired script has changed: `make notebooks`.

A notebook that agrees with its script is only run. Another machine's last digits would change its pictures, and the
checkout with them, without saying anything new.
"""

import pathlib

import jupytext
import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "notebooks"


def cells(notebook) -> list[tuple[str, str]]:
    """Kind and text of each cell."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def update(script: pathlib.Path) -> bool:
    """Runs the notebook of a script, which raises where a cell fails; writes it if it is not the script's any more.

    Returns:
      Whether it was written.
    """
    path = script.with_suffix(".ipynb")
    notebook = jupytext.read(script)
    nbclient.NotebookClient(notebook, kernel_name="python3", record_timing=False).execute()
    if path.exists() and cells(nbformat.read(path, as_version=4)) == cells(notebook):
        return False
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    nbformat.write(notebook, path)
    return True


if __name__ == "__main__":
    for script in sorted(FOLDER.glob("*.py")):
        print(f"{script.stem}: {'written' if update(script) else 'runs, unchanged'}")
