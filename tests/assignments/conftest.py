"""Whose answers are graded: those in the folder of `--student`, or else our own.

With --student, every file of the lab comes from that folder, and this lab's own are out of Python's sight.
"""

import importlib
import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
HOME = HERE.parent.parent  # the lab
FILES = ("data", "model_gpt", "scan", "model_mamba", "evaluate", "train", "solutions")


def pytest_configure(config):
    if not config.getoption("--student"):
        return
    folder = student_folder(config)
    if not folder.is_dir():
        raise pytest.UsageError(f"--student {folder} is no folder; give the one that holds your answers")
    for name in FILES:
        if not (folder / f"{name}.py").is_file():
            raise pytest.UsageError(
                f"--student {folder} holds no {name}.py; give a whole folder, as blank.py makes it"
            )
    sys.path[:] = [str(folder)] + [p for p in sys.path if Path(p).resolve() not in (HOME, HERE)]
    for name in FILES:
        try:
            importlib.import_module(name)
        except Exception as fault:
            raise pytest.UsageError(f"{folder / name}.py cannot be imported: {type(fault).__name__}: {fault}") from None
    if config.option.tbstyle == "auto":
        config.option.tbstyle = "line"  # a failure is one line; --tb=short shows where it happened


def student_folder(config):
    return (config.invocation_params.dir / config.getoption("--student")).resolve()


@pytest.fixture
def answers(request):
    """experiments.json of whoever is graded, and the folder that the runs named in it are relative to."""
    student = request.config.getoption("--student")
    folder = student_folder(request.config) if student else HERE
    try:
        text = (folder / "experiments.json").read_text(encoding="utf-8-sig")
        return json.loads(text, object_hook=Sheet), folder if student else HOME
    except (OSError, ValueError) as fault:
        pytest.fail(f"experiments.json cannot be read: {fault}", pytrace=False)
    except RecursionError:
        pytest.fail("experiments.json cannot be read: it is nested too deeply", pytrace=False)


class Sheet(dict):
    """A part of experiments.json; what it lacks is said in one sentence."""

    def __missing__(self, key):
        pytest.fail(f"experiments.json lacks {key!r}; blank.py makes it with all names", pytrace=False)
