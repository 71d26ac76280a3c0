"""Make a folder to work in: a copy of the lab in which the bodies that the exercises ask for are left out.

    python tests/assignments/blank.py DIR                  all of them
    python tests/assignments/blank.py DIR 3 5              those of exercises 3 and 5 only; the others are written
    python tests/assignments/blank.py DIR 1 2 6 --for-class         to hand out: with the graders, and without our answers
                                                           to 1, 2 and 6 and to what has no place in the lab's files

Signatures, docstrings and everything else stay as they are. ASSIGNMENTS.md says what to do with it.
"""

import ast
import json
import shlex
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = HERE.parent.parent  # the lab

# What is left out: the exercise, the file, the function, and the line that is raised in place of its body.
BODIES = [
    (1, "solutions.py", "is_path_star", "prove that one example is a path-star graph with its path"),
    (2, "data.py", "layout", "lay out inputs and targets as they are drawn above"),
    (3, "model_gpt.py", "Attention.forward", "write attention"),
    (3, "model_gpt.py", "attend", "softmax attention, in which a query sees the keys up to its own place, and the whole prefix"),
    (4, "model_mamba.py", "selective_scan_reference", "part a, write the recurrence, one step after the other"),
    (4, "scan.py", "FastScan.backward", "part b, return the gradients of the seven inputs in order"),
    (5, "model_gpt.py", "Cache.append", "keep these keys and values, and return all so far"),
    (5, "evaluate.py", "read_prefix", "run the prefix into a new cache"),
    (5, "evaluate.py", "write_on", "write token after token, each time showing the model the newest one only"),
    (6, "solutions.py", "cheat_rate", "put the model on a wrong arm and let it write"),
    (8, "train.py", "add_gradients", "run forward and backward, one output head after the other"),
    (9, "solutions.py", "masked_layout", "hide a random part of the path from the model"),
    (10, "solutions.py", "in_weights_prompts", "ask for each arm without showing an edge"),
    (10, "solutions.py", "memorise", "train a small model on one graph's edges and paths"),
]

# What no exercise needs; and beyond/mixture.py, which hides tokens as exercise 9 asks for
LEFT_OUT = shutil.ignore_patterns("*.pt", "*.svg", "__pycache__", "bench*", "search*", "mixture.py")

# ASSIGNMENTS.md speaks of a folder beside the lab. In a class's copy, which is both, it says this instead.
IN_CLASS = {
    "    python tests/assignments/blank.py homework                      your starting point: all of it, in a new folder\n": "",
    "    python tests/assignments/blank.py homework 3                    or with only exercise 3 left out, the rest written\n": "",
    " Teachers\nfind points, rubrics and the command that grades a class [at the end](#for-the-teacher).": "",
    "--student homework": "--student .",
    "`homework` is a copy": "This folder is a copy",
    "`homework/": "`",
    "stay in `homework`, with": "stay here, with",
    "Work in that folder, and run the graders from the lab's. Hand in":
        "The lab's own tests, its notebook and `beyond/mixture.py` are not here; `python -m pytest` runs the graders. Hand in",
    "To do one on its own, let `blank.py` leave out that one only.": "If you skip one that another needs, ask for it.",
}

EXPERIMENTS = {  # what is left of experiments.json
    "6": {
        "predicted": {"next": None, "multi": None},
        "why": "",
        "measured": {"next": None, "multi": None},
        "runs": {"next": "", "multi": ""},
    },
    "7": {"level_on_the_plateau": None, "changed": "", "why": "", "run": ""},
}


def find(tree, name):
    """The definition of a function in a parsed file, by its name, such as "layout" or "Cache.append"."""
    node = tree
    for part in name.split("."):
        node = next(child for child in node.body if getattr(child, "name", None) == part)
    return node


def leave_out(path, exercise, name, hint):
    """Replace one function's body, all that follows its docstring, by a NotImplementedError; keep every other byte."""
    text = path.read_bytes().decode("utf-8")
    function = find(ast.parse(text), name)
    first = function.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    begin = first.end_lineno if has_docstring else first.lineno - 1  # lines before the ones that go
    lines = text.split("\n")
    end_of_line = "\r" if lines[begin - 1].endswith("\r") else ""
    raised = f'{" " * first.col_offset}raise NotImplementedError("exercise {exercise}: {hint}"){end_of_line}'
    lines[begin : function.end_lineno] = [raised]
    path.write_bytes("\n".join(lines).encode("utf-8"))


def copy_lab(folder):
    """Copy the lab into a folder as a student would hand it in: every body written, solutions.py beside data.py."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*HOME.glob("*.py"), *HOME.glob("*.md"), HOME / "requirements.txt", *HERE.glob("solutions.py")]:
        shutil.copyfile(path, folder / path.name)
    for part in ("plumbing", "beyond", "results"):
        shutil.copytree(HOME / part, folder / part, ignore=LEFT_OUT)
    shutil.copyfile(HERE / "experiments.json", folder / "experiments.json")


def add_graders(folder, chosen):
    """Give a class what it needs to grade itself: the graders, but neither our answers nor the teacher's pages.

    Arguments: chosen, the numbers of the exercises that are set, in order.
    """
    page = folder / "ASSIGNMENTS.md"
    text = page.read_text(encoding="utf-8").split("\n## For the teacher")[0] + "\n"
    for words, in_class in IN_CLASS.items():
        text = text.replace(words, in_class)
    if len(chosen) < 10:
        text = text.replace("\n\n", f"\n\n**Set for you**: {', '.join(chosen)}.\n\n", 1)
    page.write_text(text, encoding="utf-8")
    there = folder / "tests" / "assignments"
    there.mkdir(parents=True)
    shutil.copyfile(HOME / "tests" / "conftest.py", folder / "tests" / "conftest.py")
    shutil.copyfile(HOME / "pytest.ini", folder / "pytest.ini")
    for name in ("conftest.py", "run_folder.py", "sizes.py", *sorted(path.name for path in HERE.glob("test_*.py"))):
        shutil.copyfile(HERE / name, there / name)


def main(arguments):
    if hasattr(sys.stdout, "reconfigure"):  # where an encoding lacks a letter of a folder's name, print its number
        sys.stdout.reconfigure(errors="backslashreplace")
    numbers = {str(exercise) for exercise, *_ in BODIES} | EXPERIMENTS.keys()
    if arguments in (["-h"], ["--help"]):
        sys.exit(print(__doc__))
    if not arguments:
        refuse("name the folder to make, as in: python tests/assignments/blank.py homework")
    if arguments[0] == "--for-class":
        refuse("name the folder first, as in: python tests/assignments/blank.py class 1 2 6 --for-class")
    if arguments[0].startswith("-"):
        refuse(f"{arguments[0]} is no flag of mine; name the folder to make")
    for_class = "--for-class" in arguments[1:]
    folder, chosen = Path(arguments[0]), set(arguments[1:]) - {"--for-class"} or numbers
    for word in sorted(chosen - numbers):
        refuse(f"{word} is no flag of mine" if word.startswith("-") else f"there is no exercise {word}; they are 1 to 10")
    if HOME in folder.resolve().parents and folder.resolve().parent != HOME:
        refuse(f"{folder} lies inside the lab, whose folders are copied; give a folder beside them")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        refuse(f"{folder} exists and is not empty, and nothing in it is overwritten; give a new folder")
    try:
        copy_lab(folder)
    except OSError as fault:
        refuse(f"the lab could not be copied to {folder}: {fault}")
    for exercise, file, name, hint in BODIES:
        if str(exercise) in chosen or (for_class and file == "solutions.py"):
            leave_out(folder / file, exercise, name, hint)
    sheet = json.loads((folder / "experiments.json").read_text(encoding="utf-8"))
    sheet |= {exercise: blank for exercise, blank in EXPERIMENTS.items() if exercise in chosen or for_class}
    (folder / "experiments.json").write_text(json.dumps(sheet, indent=1) + "\n", encoding="utf-8")
    if for_class:
        add_graders(folder, sorted(chosen, key=int))
        print(f"{folder} is ready to be handed out. In it: python -m pytest tests/assignments --student .")
        return
    graders, there = (shlex.quote(str(path)) for path in (HERE, folder.resolve()))
    print(f"{folder} is ready. Write, and then: python -m pytest {graders} --student {there}")


def refuse(message):
    """Say in one sentence what cannot be done, and leave with exit status 2."""
    print(f"blank.py: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
