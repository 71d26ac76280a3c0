"""The house: the lesson's files stand by themselves, and no lesson needs the plumbing's insides."""

import ast

import pytest

from helpers import HOME

LESSON = {path.stem for path in HOME.glob("*.py")}
ROOMS = {"plumbing", "beyond", "results", "tests"}


def imports(path):
    """The names of our own files and folders that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name.split(".")[0] for name in names} & (LESSON | ROOMS)


@pytest.mark.parametrize(
    "name, may",
    [
        ("settings", set()),
        ("data", set()),
        ("model_gpt", set()),
        ("model_mamba", {"scan"}),
        ("scan", {"scan_triton"}),  # where it is installed
        ("scan_triton", set()),
        ("muon", set()),
        ("evaluate", {"data"}),
        ("plot", {"settings"}),
    ],
)
def test_each_file_of_the_lesson_stands_by_itself(name, may):
    assert imports(HOME / f"{name}.py") <= may


def test_the_plumbing_never_imports_the_loop_and_nothing_imports_what_is_beyond():
    for path in (HOME / "plumbing").glob("*.py"):
        assert not imports(path) & {"train", "plot", "beyond", "results"}, path
    for name in LESSON:
        assert not imports(HOME / f"{name}.py") & {"beyond", "results", "tests"}, name


def test_lines_can_be_projected():
    for folder in (HOME, HOME / "plumbing", HOME / "beyond"):
        for path in folder.glob("*.py"):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                assert len(line) <= 100, f"{path}, line {number}"
