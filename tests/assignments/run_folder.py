"""Reading the run folders that exercises 6 and 7 name."""

import json
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent.parent  # the lab


def read_run(folder, name, exercise):
    """The settings and the log of a complete run; `name` is its folder, as experiments.json has it, under `folder`."""
    run = folder / name
    assert name and (run / "log.jsonl").is_file() and (run / "config.json").is_file(), (
        f"exercise {exercise}: experiments.json must name a run's folder, with log.jsonl and config.json, not {name!r}"
    )
    text = (run / "log.jsonl").read_text(encoding="utf-8")
    if folder != HOME:  # a student's
        ours = [log.read_text(encoding="utf-8") for log in (HOME / "results").glob("*/log.jsonl")]
        assert text not in ours, f"exercise {exercise}: {name} is a run of ours; hand in your own"
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in text.splitlines()]
    steps = [record["step"] for record in log]
    assert steps[0] == 0 and steps == sorted(set(steps)), f"exercise {exercise}: the log of {name} is not one whole run"
    assert steps[-1] == config["steps"], f"exercise {exercise}: {name} stopped at step {steps[-1]} of {config['steps']}"
    assert all(record["graphs"] == record["step"] * config["batch_size"] for record in log)
    return config, log


def is_share(number):
    return type(number) in (int, float) and 0 <= number <= 1
