"""Reading the run folders that exercises 6 and 7 name."""

import json
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent.parent  # the lab


def is_ours(folder):
    """Is it our own runs that are graded? A lab made for a class has no answers, and is the student's own."""
    return folder == HOME and (HOME / "tests" / "assignments" / "solutions.py").is_file()


def read_run(folder, name, exercise):
    """The settings and the log of a complete run; `name` is its folder, as experiments.json has it, under `folder`."""
    run = folder / name
    inside = folder.resolve() in run.resolve().parents
    assert inside or not name, f"exercise {exercise}: {name!r} lies outside the folder; hand the run in with it"
    assert name and (run / "log.jsonl").is_file() and (run / "config.json").is_file(), (
        f"exercise {exercise}: experiments.json must name a run's folder, with log.jsonl and config.json, not {name!r}"
    )
    text = (run / "log.jsonl").read_text(encoding="utf-8")
    if not is_ours(folder) and (HOME / "results") not in (folder / name).parents:
        ours = [log.read_text(encoding="utf-8") for log in (HOME / "results").rglob("log.jsonl")]
        assert text not in ours, f"exercise {exercise}: {name} is a run of ours; hand in your own"
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in text.splitlines()]
    steps = [record["step"] for record in log]
    assert steps[0] == 0 and steps == sorted(set(steps)), f"exercise {exercise}: the log of {name} is not one whole run"
    assert steps[-1] == config["steps"], f"exercise {exercise}: {name} stopped at step {steps[-1]} of {config['steps']}"
    assert all(record["graphs"] == record["step"] * config["batch_size"] for record in log)
    return config, log


def evaluate_again(folder, name, exercise):
    """What --eval_only prints of a student's run, {name: list of shares}; None for ours, whose checkpoints are not kept."""
    if is_ours(folder):
        return None
    assert (folder / name / "ckpt.pt").is_file(), f"exercise {exercise}: {name} has no ckpt.pt; hand it in with the log"
    lab = folder if exercise == 7 else HOME  # in exercise 7, the network may be the student's
    command = [sys.executable, "train.py", "--resume", folder / name, "--eval_only", "--threads", "1", "--device", "cpu"]
    try:
        done = subprocess.run(command, cwd=lab, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"exercise {exercise}: evaluating ckpt.pt of {name} took longer than two minutes") from None
    assert done.returncode == 0, f"exercise {exercise}: ckpt.pt of {name} cannot be evaluated: {done.stderr.strip()[-200:]}"
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    return {row[0]: [float(n.rstrip("%")) / 100 for n in row[1:] if n.endswith("%")] for row in rows if row}


def is_share(number):
    return type(number) in (int, float) and 0 <= number <= 1
