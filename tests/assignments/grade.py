"""Grade a class by one command.

    python tests/assignments/grade.py SUBMISSIONS/ --out grades.csv       one folder a student
    python tests/assignments/grade.py ONE/ --out results.json             one student, in Gradescope's form

A submission is the folder that blank.py made, or the changed files of it alone. Each exercise is graded in a process of
its own, with a time limit, in a fresh lab that has our answers to all other exercises: a mistake in one function costs
its own exercise, and a file that Python cannot read the exercises of that file. The points of a group are given when all
of its tests pass. A test that is not reported counts as failed.

Sizes and seeds are drawn anew at each call; --seed N, which is printed, draws the same again. The answers run as programs
on this machine: grade on one that holds nothing of value, or in a container, as with any autograder.
"""

import argparse
import ast
import contextlib
import csv
import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import blank  # noqa: E402

# Exercise, points, what they are for, and the tests that must all pass. 100 points together.
GROUPS = [
    (1, 5, "the checker", ["test_"]),
    (2, 5, "what is seen", ["test_shapes", "test_the_first", "test_with_a_teacher", "test_without", "test_no_output"]),
    (2, 3, "multi", ["test_head_k", "test_no_output"]),
    (3, 4, "causal", ["test_the_future", "test_the_last_outputs", "test_the_order"]),
    (3, 8, "attention", ["test_queries", "test_two_tokens", "test_a_head"]),
    (4, 6, "a: the recurrence", ["test_a_"]),
    (4, 14, "b: its gradient", ["test_b_"]),
    (5, 5, "each token is read once", ["test_every", "test_the_two", "test_models_read"]),
    (5, 5, "the same is written", ["test_the_gpt", "test_models_write"]),
    (6, 6, "the cheat rate", ["test_of_", "test_it_writes"]),
    (6, 4, "predicted and measured", ["test_the_prediction"]),
    (7, 2, "the plateau", ["test_the_plateau_was_found"]),
    (7, 8, "the plateau, shortened", ["test_the_plateau_was_shortened"]),
    (8, 6, "loss and gradients", ["test_loss", "test_gradients"]),
    (8, 4, "heads take turns", ["test_heads", "test_loss"]),
    (9, 5, "the forgetful teacher", ["test_"]),
    (10, 2, "the prompts", ["test_a_prompt"]),
    (10, 8, "the graph in the weights", ["test_the_graph"]),
]
EXERCISES = range(1, 11)
FILES = {file for _, file, *_ in blank.BODIES} | {"experiments.json"}  # that a submission may hold


def grader_of(exercise):
    return next(HERE.glob(f"test_{exercise}_*.py"))


# ---------------------------------------------------------------------------------------------------------
# A lab in which only the answer to one exercise is the student's


def graft(theirs, ours, exercise, file):
    """The student's text of a file, with our bodies for the functions that other exercises ask for.

    Raises: SyntaxError when theirs is no Python.
    """
    their_tree, our_tree = ast.parse(theirs, file), ast.parse(ours)
    lines, our_lines, changes = theirs.split("\n"), ours.split("\n"), []
    for other, where, name, _ in blank.BODIES:
        if where == file and other != exercise:
            try:
                old, new = (blank.find(tree, name) for tree in (their_tree, our_tree))
            except StopIteration:
                continue  # the student has thrown it away, and must do without
            first, end = (min([d.lineno for d in node.decorator_list] + [node.lineno]) for node in (old, new))
            changes.append((first, old.end_lineno, our_lines[end - 1 : new.end_lineno]))
    for first, last, body in sorted(changes, reverse=True):
        lines[first - 1 : last] = body
    return "\n".join(lines)


def lay_out(submission, exercise, lab):
    """Make the lab for one exercise. Raises: SyntaxError, OSError, ValueError with what is wrong with the answer."""
    blank.copy_lab(lab)
    sheet = json.loads((lab / "experiments.json").read_text(encoding="utf-8"))
    for _, file, name, hint in [body for body in blank.BODIES if body[0] == exercise]:
        if not (submission / file).is_file():
            blank.leave_out(lab / file, exercise, name, hint)
    files = {file for other, file, *_ in blank.BODIES if other == exercise and (submission / file).is_file()}
    for file in files:
        theirs = (submission / file).read_text(encoding="utf-8-sig")  # some editors begin with a mark
        (lab / file).write_text(graft(theirs, (lab / file).read_text(encoding="utf-8"), exercise, file), encoding="utf-8")
    if str(exercise) in blank.EXPERIMENTS:
        sheet[str(exercise)] = blank.EXPERIMENTS[str(exercise)]
        if (submission / "experiments.json").is_file():
            try:
                sheet |= json.loads((submission / "experiments.json").read_text(encoding="utf-8-sig"))
            except (ValueError, TypeError, RecursionError) as fault:
                raise ValueError(f"experiments.json is not as it was handed out: {fault}") from None
        if exercise == 7:  # a run may need the student's own network; what Python cannot read, it cannot need
            for path in submission.glob("*.py"):
                with contextlib.suppress(SyntaxError, ValueError):
                    ast.parse(path.read_text(encoding="utf-8-sig"))
                    shutil.copyfile(path, lab / path.name)
        if (submission / "runs").is_dir():
            shutil.copytree(submission / "runs", lab / "runs", symlinks=True)
        (lab / "experiments.json").write_text(json.dumps(sheet), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------
# Grading


def run_tests(files, lab, seed, time_limit, *options):
    """Run pytest on some files in a process of its own; at the time limit, kill it and all that it started.

    Returns: its output, a string, or None when the time was over.
    """
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--tb=short", *map(str, files)]
    command += ["-c", str(blank.HOME / "pytest.ini"), "--rootdir", str(blank.HOME)]
    command += ["--student", str(lab), *map(str, options)]
    environment = os.environ | {"GRADER_SEED": str(seed), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
    process = subprocess.Popen(
        command, cwd=lab.parent, env=environment, text=True, errors="replace", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    try:
        return process.communicate(timeout=time_limit)[0]
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(OSError):
            if os.name == "posix":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True)
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # what has fled may hold the output open
            process.communicate(timeout=5)


def outcomes_of(report):
    """{(file, test): None where it passed, else its message} of a JUnit file; {} where there is none."""
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return {}
    outcomes = {}
    for case in cases:
        faults = [child for child in case if child.tag in ("failure", "error", "skipped")]
        message = (faults[0].get("message") or "failed").strip().splitlines()[0] if faults else None
        outcomes[case.get("classname", "").rpartition(".")[2], case.get("name")] = message
    return outcomes


def expected_tests(seed):
    """{exercise: the names of all its tests}, asked of our own lab."""
    with tempfile.TemporaryDirectory() as folder:
        blank.copy_lab(Path(folder, "lab"))
        listed = run_tests([grader_of(e) for e in EXERCISES], Path(folder, "lab"), seed, 300, "--collect-only")
    tests = {exercise: [] for exercise in EXERCISES}
    for line in listed.splitlines():
        file, _, name = line.strip().partition("::")
        for exercise in EXERCISES:
            if name and Path(file).name == grader_of(exercise).name:
                tests[exercise].append(name)
    if not all(tests.values()):
        sys.exit(f"grade.py: the graders themselves do not run:\n{listed}")
    return tests


def grade_exercise(submission, exercise, tests, seed, time_limit):
    """Grade one exercise of one submission. Returns: a list of (points, most, title, note), one a group."""
    groups = [group[1:] for group in GROUPS if group[0] == exercise]
    nothing = lambda note: [(0, most, title, note) for most, title, _ in groups]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        lab, report = Path(folder, "lab"), Path(folder, f"{secrets.token_hex(8)}.xml")
        try:
            lay_out(submission, exercise, lab)
        except SyntaxError as fault:
            return nothing(f"{fault.filename}, line {fault.lineno}: {fault.msg}")
        except (OSError, ValueError, RecursionError, MemoryError) as fault:
            return nothing(f"{type(fault).__name__}: {fault}"[:300])
        files = [grader_of(exercise), HERE / "must_fail.py"]
        output = run_tests(files, lab, seed, time_limit, f"--junitxml={report}")
        outcomes = outcomes_of(report)
    if output is None:
        return nothing(f"it ran for longer than {time_limit} s")
    if not outcomes:
        lines = [line for line in output.splitlines() if line.strip()]
        return nothing(f"the tests did not come to their end: {lines[-1] if lines else 'no output'}"[:300])
    must_fail = [message for (file, _), message in outcomes.items() if file == "must_fail"]
    if len(must_fail) != 7 or None in must_fail:
        return nothing("the answer has changed how tests are judged")
    graded = []
    for most, title, parts in groups:
        note = ""
        for test in [test for test in tests if test.startswith(tuple(parts))]:
            message = outcomes.get((grader_of(exercise).stem, test), "not reported")
            if message is not None:
                name = test.removeprefix("test_").replace("_", " ")
                note = f"{name}: {message}"[:300]
                break
        graded.append((0 if note else most, most, title, note))
    return graded


def grade(submission, tests, seed, time_limit):
    """Grade one submission. Returns: {exercise: as from grade_exercise}."""
    if not any((submission / file).is_file() for file in FILES):
        inner = [path for path in submission.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))]
        submission = inner[0] if len(inner) == 1 else submission  # a folder in the folder, as archives have it
    if not any((submission / file).is_file() for file in FILES):
        note = "the folder holds none of the files that are handed in"
        return {e: [(0, most, title, note) for e2, most, title, _ in GROUPS if e2 == e] for e in EXERCISES}
    return {e: grade_exercise(submission, e, tests[e], seed, time_limit) for e in EXERCISES}


# ---------------------------------------------------------------------------------------------------------
# What is handed out


def row_of(name, graded):
    """A line of the CSV: the points of each exercise, and a note for each group that failed."""
    points = {e: sum(group[0] for group in groups) for e, groups in graded.items()}
    notes = [f"{e}, {title}: {note}" for e, groups in graded.items() for _, _, title, note in groups if note]
    return {"submission": name, "points": sum(points.values()), **points, "notes": "; ".join(notes)}


def gradescope(graded):
    """The results.json that Gradescope's autograder reads."""
    tests = [
        {"name": f"{e}. {title}", "score": points, "max_score": most, "output": note or "all tests passed"}
        for e, groups in graded.items() for points, most, title, note in groups
    ]
    return {"score": sum(test["score"] for test in tests), "tests": tests}


def csv_of(rows):
    """The CSV of some rows, a string. The mark at its start tells Excel that it is UTF-8."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return "\ufeff" + text.getvalue()


def write_whole(path, text):
    """Write a file under a temporary name, and move it into place; say in one sentence when that fails."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    try:
        os.replace(temporary, path)
    except OSError as fault:  # such as a spreadsheet that has it open
        refuse(f"{path} cannot be replaced ({fault.strerror}); the grades so far are in {temporary}")


def main(argv=None):
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = argparse.ArgumentParser(
        prog="grade.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("submissions", type=Path, help="a folder of submissions, or one submission")
    parser.add_argument("--out", type=Path, required=True, help="grades.csv, or results.json for one submission")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**9), help="draws sizes and seeds (default: anew)")
    parser.add_argument("--time_limit", type=int, default=180, metavar="SECONDS", help="for one exercise (default: 180)")
    parser.error = refuse
    given = parser.parse_args(argv)
    if not given.submissions.is_dir():
        refuse(f"{given.submissions} is no folder; give one that holds submissions")
    if given.out.suffix not in (".csv", ".json") or given.out.is_dir() or not given.out.resolve().parent.is_dir():
        refuse(f"--out {given.out} must be a file that ends in .csv, or in .json, in a folder that is there")
    one = any((given.submissions / file).is_file() for file in FILES)
    folders = [path for path in given.submissions.iterdir() if path.is_dir()]
    folders = [given.submissions] if one else sorted(path for path in folders if not path.name.startswith((".", "__")))
    if not folders:
        refuse(f"{given.submissions} holds no folder; each submission is one")
    if given.out.suffix == ".json" and not one:
        refuse(f"{given.submissions} holds several submissions; a .json is for one, give --out grades.csv")

    tests, rows = expected_tests(given.seed), []
    print(f"{len(folders)} submissions, --seed {given.seed}")
    for folder in folders:
        graded = grade(folder.resolve(), tests, given.seed, given.time_limit)
        rows.append(row_of(folder.name, graded))
        print(f"{rows[-1]['points']:>4} of 100  {folder.name}", flush=True)
        if given.out.suffix == ".json":
            write_whole(given.out, json.dumps(gradescope(graded), indent=1) + "\n")
            return
        write_whole(given.out, csv_of(rows))  # after each submission, so that none is lost


def refuse(message):
    """Say in one sentence what cannot be done, and leave with exit status 2."""
    print(f"grade.py: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
