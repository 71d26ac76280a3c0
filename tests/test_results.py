"""What the README and results/README.md say was measured is what the committed logs say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "name, mark, which",
    [
        ("README.md", "results/table.py", 0),
        ("results/README.md", "results/table.py", 0),
        ("results/README.md", "results/table.py, bench", 1),
    ],
)
def test_the_tables_are_made_from_the_logs(name, mark, which):
    made = subprocess.run([sys.executable, HOME / "results" / "table.py"], capture_output=True, text=True, check=True)
    text = (HOME / name).read_text(encoding="utf-8")
    shown = text.split(f"<!-- {mark} begins -->\n")[1].split(f"\n<!-- {mark} ends -->")[0]
    assert shown == made.stdout.rstrip("\n").split("\n\n")[which] and shown.count("\n") > 4


def test_the_pictures_and_files_that_the_texts_point_to_are_there():
    for name in ("README.md", "results/README.md", "ASSIGNMENTS.md"):
        text = (HOME / name).read_text(encoding="utf-8")
        pointed = re.findall(r"\]\((?!https?:)([^)#]+)\)", text) + re.findall(r"`([a-z_]+\.py)`", text)
        assert name != "README.md" or len(pointed) > 10
        for target in pointed:
            places = [HOME / target, HOME / "tests" / "assignments" / target]
            assert any(place.exists() for place in places), f"{name} points to {target}"


def test_every_committed_run_is_one_of_the_listed_command_lines_and_complete():
    lines = [line.split() for line in (HOME / "results" / "runs.txt").read_text().splitlines()]
    listed = {line[1]: line[2:] for line in lines}
    runs = {path.parent.relative_to(HOME).as_posix(): path.parent for path in (HOME / "results").rglob("config.json")}
    assert sorted(listed) == sorted(runs)
    for name, run in runs.items():
        config = json.loads((run / "config.json").read_text())
        last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
        assert last["step"] == config["steps"]
        flags = listed[name]
        for flag, value in zip(flags, flags[1:] + ["--"]):
            if flag.startswith("--") and flag[2:] in config and not isinstance(config[flag[2:]], bool):
                assert str(config[flag[2:]]) == value
