"""The lesson: the notebook runs from its first cell to its last, and what lesson.md tells to type is there."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

import train
from helpers import HOME
from plumbing import command_line


def flags_are_known(command):
    """Let the command line read the flags of `python train.py …`; unknown ones end the program."""
    words = command.split()[2:]
    given = command_line.parse(words, train.__doc__)
    assert len(given) == sum(word.startswith("--") for word in words)


@pytest.mark.parametrize("page", ["README.md", "lesson.md", "ASSIGNMENTS.md", "results/README.md"])
def test_every_command_and_link_of_a_page_is_there(page):
    text = (HOME / page).read_text(encoding="utf-8")
    text = re.sub(r"`[^`]*`", lambda code: " ".join(code[0].split()), text)  # a command may go on in the next line
    commands = re.findall(r"python (?:train\.py|(\S+\.py)).*?(?=[`\n]| {2,}| &&)", text)
    trains = re.findall(r"python train\.py(?: --\w+(?: (?!--)[\w./-]+)?)*", text)
    assert commands and (trains or page == "results/README.md")
    for script in filter(None, commands):
        assert (HOME / script).is_file(), script
    for command in trains:
        if "--help" not in command and "--nproc" not in command:
            flags_are_known(command)
    for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", text):
        assert (HOME / page).parent.joinpath(link).exists(), link


def test_the_notebook_has_no_code_of_its_own_and_is_kept_without_output():
    cells = json.loads((HOME / "lesson.ipynb").read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            for line in cell["source"]:
                assert line.startswith(("!python ", "%pip ", "Image(", "from IPython")), line


def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    lab = tmp_path / "lab"
    shutil.copytree(HOME, lab, ignore=shutil.ignore_patterns(".*", "runs", "results", "__pycache__", "figures"))
    short = "--steps 4 --eval_every 2 --n_test 60 --batch_size 8 --n_layer 2 --threads 1"
    monkeypatch.setenv("LESSON_FLAGS", short)
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # what is needed is here
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    notebook = nbformat.read(lab / "lesson.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(lab)}}).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert "train.py: " not in output.get("text", "") and "Traceback" not in output.get("text", "")
    shown = [output.get("data", {}).keys() for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in data for data in shown) == 3
    for name in ("next", "reverse", "multi", "teacherless"):
        assert (lab / "runs" / name / "ckpt.pt").is_file()
