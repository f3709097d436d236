"""Imports go one way, as the design says."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cnnjax"

# What each part may import of ours, besides itself.
MAY_IMPORT = {
    "ops": set(),
    "models": {"ops"},
    "data": {"ops", "terminal"},
    "analysis": {"ops", "models", "data", "terminal"},
    "training": {"ops", "models", "data", "analysis", "terminal", "interrupts", "start"},
    "doctor": {"ops", "models", "data", "training", "terminal", "releases"},
    "studies": {"ops", "models", "data", "analysis", "training", "terminal"},
    "cli": {"ops", "models", "data", "analysis", "training", "doctor", "studies", "terminal", "interrupts"},
    "interrupts": set(),
    "memory": set(),
    "releases": set(),
    "terminal": set(),
    "start": {"interrupts", "memory"},
    "__main__": {"start", "cli"},
}


def part_of(path: pathlib.Path) -> str:
    """The part a file belongs to: the folder, or the module at the top of the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(source: str, package: tuple[str, ...]) -> set[str]:
    """Dotted names that a module imports, wherever in it, relative ones made absolute."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def forbidden(source: str, part: str, package: tuple[str, ...]) -> set[str]:
    """The imports that break the rule."""
    wrong = set()
    for name in imports_of(source, package):
        top, *rest = name.split(".")
        beyond = top == "cnnjax" and rest and rest[0] in MAY_IMPORT and rest[0] not in MAY_IMPORT[part] | {part}
        if top == "experiments" or beyond or (name == "cnnjax" and part == "ops"):
            wrong.add(name)
    return wrong


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    if path.parent == PACKAGE and path.name == "__init__.py":
        return  # it gives every part its name, and imports none until it is asked
    package = path.relative_to(ROOT).parent.parts
    assert forbidden(path.read_text(), part_of(path), package) == set()


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("ops", "import cnnjax.models"),
        ("ops", "def f():\n    from cnnjax import data"),
        ("ops", "from ..training import loop"),
        ("models", "from cnnjax.data import order"),
        ("data", "import cnnjax.training.loop as x"),
        ("analysis", "from cnnjax import cli"),
        ("training", "from cnnjax.studies import ablation"),
        ("training", "from experiments import quickstart"),
        ("cli", "import experiments.quickstart"),
    ],
)
def test_the_rule_catches(part, source):
    assert forbidden(source, part, ("cnnjax", part))


def test_every_part_has_a_rule():
    parts = {part_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert parts <= set(MAY_IMPORT)


def test_importing_cnnjax_imports_no_tensorflow_and_little_else():
    """`import cnnjax` is instant; the whole of it never needs TensorFlow, TFDS, scikit-learn, matplotlib or Orbax's
    readers before they are used."""
    code = (
        "import sys, cnnjax; light = set(sys.modules)\n"
        "assert 'jax' not in light\n"
        "import cnnjax.training, cnnjax.analysis, cnnjax.cli\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'sklearn', 'matplotlib', 'PIL', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_experiments_stay_out_of_the_wheel():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["cnnjax"]
