"""What the README and results/README.md say was measured is what the committed logs say."""

import json
import re
import subprocess
import sys

import pytest

import data
import train
from helpers import DEFAULTS, HOME, lines
from plumbing.command_line import parse
from plumbing.flags import settle

sys.path.insert(0, str(HOME / "results"))
import table  # noqa: E402


@pytest.mark.parametrize(
    "name, mark, which",
    [
        ("README.md", "results/table.py", 2),
        ("results/README.md", "results/table.py", 0),
        ("results/README.md", "results/table.py, bench", 1),
        ("beyond/README.md", "results/table.py, ideas", 3),
        ("results/README.md", "results/table.py, gpu", 4),
    ],
)
def test_the_tables_are_made_from_the_logs(name, mark, which):
    made = subprocess.run([sys.executable, HOME / "results" / "table.py"], capture_output=True, text=True, check=True)
    text = (HOME / name).read_text(encoding="utf-8")
    shown = text.split(f"<!-- {mark} begins -->\n")[1].split(f"\n<!-- {mark} ends -->")[0]
    assert shown == made.stdout.rstrip("\n").split("\n\n")[which] and shown.count("\n") > 4


def test_the_log_lines_that_the_readme_shows_are_those_of_seed_101():
    text = (HOME / "README.md").read_text(encoding="utf-8")
    form = r"step +(\d+)/400 +loss ([\d.]+) +exact match +([\d.]+%) +difficult token +([\d.]+%)"
    made = set()
    for objective in data.OBJECTIVES:
        for r in lines(HOME / "results" / f"{objective}_gpt_2_5_seed_101")[1:]:
            made.add((str(r["step"]), f"{r['loss']:.3f}", f"{r['accuracy']:.1%}", f"{r['difficult']:.1%}"))
    shown = re.findall(form, text)
    assert len(shown) > 8 and set(shown) <= made


def test_what_a_gpu_showed_becomes_rows(tmp_path):
    assert table.gpu_table(tmp_path / "gpu.json") == "Not yet run on a GPU."
    rows = [{"part": "machine", "card": "A card", "torch": "2.13"}]
    rows += [{"part": "scan time", "method": "triton", "sizes": [2, 3, 4], "both_ms": 0.123456, "bytes": 5}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "gpu.json").write_text(text, encoding="utf-8")
    assert table.gpu_table(tmp_path / "gpu.json").splitlines()[2:] == [
        "| machine | A card | torch 2.13 |",
        "| scan time | triton, [2, 3, 4] | both_ms 0.1235, bytes 5 |",
    ]
    (tmp_path / "gpu.json").write_text(text + "{", encoding="utf-8")
    with pytest.raises(ValueError, match="line 3, is damaged"):
        table.gpu_table(tmp_path / "gpu.json")


def test_a_new_table_takes_the_old_ones_place_and_nothing_else(tmp_path):
    page = "above\n<!-- a begins -->\n{}\n<!-- a ends -->\nbetween\n<!-- a, b begins -->\n{}\n<!-- a, b ends -->\nbelow ü\n"
    (tmp_path / "page.md").write_text(page.format("| old |", "| other |"), encoding="utf-8")
    for _ in range(2):
        table.put_into(tmp_path / "page.md", "a", "| new |")
        assert (tmp_path / "page.md").read_text(encoding="utf-8") == page.format("| new |", "| other |")
    table.put_into(tmp_path / "page.md", "a, b", "| another |")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page.format("| new |", "| another |")


@pytest.mark.parametrize("page", ["no marks", "<!-- a ends -->\n<!-- a begins -->", "<!-- a begins -->"])
def test_a_page_without_its_marks_is_left_as_it_is(tmp_path, page):
    (tmp_path / "page.md").write_text(page)
    with pytest.raises(ValueError, match="lacks the marks"):
        table.put_into(tmp_path / "page.md", "a", "| new |")
    assert (tmp_path / "page.md").read_text() == page


def test_runs_that_differ_in_more_than_the_seed_have_rows_of_their_own():
    variations = [{}, dict(seed=2), dict(objective="reverse", reverse=True), dict(objective="multi", n_future=2)]
    variations += [dict(objective="multi", n_future=2, reverse=True), dict(optimizer="adamw"), dict(only_difficult=True)]
    mamba, no_parts = dict(model="mamba"), dict(no_canon=True, no_mimetic=True)
    variations += [dict(steps=1600), mamba, dict(weight_decay=0.3), mamba | dict(causal=True), mamba | dict(d_state=16)]
    variations += [mamba | dict(no_mimetic=True), mamba | no_parts | dict(init_from="mamba-130m")]
    variations += [dict(train_file="graphs.txt"), dict(causal=True), dict(causal=True, no_mimetic=True)]
    variations += [no_parts | dict(causal=True), no_parts, dict(n_embd=128), dict(batch_size=1024)]
    end = dict(graphs=1, seconds=60, accuracy=0.5, difficult=0.25, forced_accuracy=[1.0, 0.75, 1.0, 1.0, 1.0])
    runs = [dict(s=DEFAULTS | dict(n_future=1, device="cpu") | v, graph=(2, 5, 50), log=[end]) for v in variations]
    rows = [line.split(" | ") for line in table.table(runs).splitlines()[2:]]
    assert [row[4] for row in rows] == [
        "next", "next", "next", "next, 1,600 steps", "next, AdamW", "next, batches of 1,024",
        "next, difficult token only", "next, graphs of a file", "next, no Canon, not mimetic",
        "reverse", "multi, n = 2", "multi, reversed, n = 2",
        "next", "next", "next, from mamba-130m", "next, not mimetic", "next, prefix read once", "next", "next", "next, not mimetic",
    ]  # fmt: skip
    assert [row[5] for row in rows] == ["2"] + ["1"] * 19
    assert all(row[7] == "1.0" for row in rows)
    on_a_gpu = [runs[0] | {"s": runs[0]["s"] | {"device": "cuda"}}]
    assert table.table(on_a_gpu).splitlines()[2].split(" | ")[7] == ""  # it was shared, and its minutes say little
    networks = ["| plain GPT", "| causal GPT", "| causal GPT"]
    assert [row[0] for row in rows] == ["| GPT"] * 12 + ["| Mamba"] * 5 + networks
    assert [row[3] for row in rows[:4]] == ["8 x 64", "8 x 64", "8 x 128", "8 x 64"]
    # Where only the first step is trained, it is measured after the true start.
    assert [row[9] for row in rows[:7]] == [*["25.0%"] * 6, "75.0%"]


def test_the_first_page_shows_each_objectives_best_measured_variation():
    end = dict(graphs=1, seconds=60, accuracy=0.5, difficult=0.25, forced_accuracy=[1.0] * 5)
    sizes = dict(n_future=1, device="cpu", num_nodes=20)

    def made(accuracy, graphs=1, cheat_rate=None, graph=(2, 5, 20), **changes):
        cheat = {} if cheat_rate is None else {"cheat_rate": cheat_rate}
        log = [end | dict(accuracy=accuracy, graphs=graphs) | cheat]
        return dict(s=DEFAULTS | sizes | changes, graph=graph, log=log)

    multi = dict(objective="multi", n_future=4)
    runs = [made(0.4, cheat_rate=1.0), made(0.5, cheat_rate=1.0), made(0.6, cheat_rate=1.0)]  # most seeds
    runs += [made(0.9, 9, 1.0, steps=2000), made(0.7, 9, 1.0, steps=2000)]
    runs += [made(0.2, 1, 0.1, **multi), made(0.3, 2, 0.2, batch_size=1024, **multi)]  # most graphs
    runs += [made(0.8, 1, graph=(3, 5, 20), objective="teacherless"), made(1.0, model="mamba", objective="reverse", reverse=True)]
    runs += [made(0.1, idea="hybrid")]
    assert table.first_table(runs).splitlines()[2:] == [
        "| GPT, G(2,5), 20 labels | 50.0% (40.0 to 60.0%), 3 seeds |  |  | 30.0%, 1 seed, batches of 1,024 | 100.0% | 20.0% |",
        "| GPT, G(3,5), 20 labels |  |  | 80.0%, 1 seed |  |  |  |",
        "| Mamba, G(2,5), 20 labels |  | 100.0%, 1 seed |  |  |  |  |",
    ]


def test_ideas_stand_beside_the_objectives_that_saw_the_same_graphs():
    def made(seed, accuracies, speed, graph=(2, 5, 20), **changes):
        log = [dict(step=50 * i, accuracy=a, difficult=a, tokens_per_second=speed) for i, a in enumerate(accuracies)]
        log = [r | dict(graphs=r["step"] * 128) for r in log]
        s = DEFAULTS | dict(n_future=1, device="cpu", seed=seed, idea="train") | changes
        return dict(s=s, graph=graph, log=log, folder="x")

    runs = [made(11, [0, 0.5, 0.5], 100), made(12, [0, 0.5, 0.4], 100), made(99, [0, 1, 1], 100)]
    runs += [made(11, [0, 0.2, 1], 50, idea="hybrid"), made(12, [0, 0.995, 0.98], 50, idea="hybrid")]
    runs[-2]["log"][-1]["cheat_rate"] = 0.9
    causal = dict(causal=True, n_embd=96)
    runs += [made(11, [0, 1], 50, idea="hybrid", **causal), made(11, [0, 0.6], 100, **causal), made(12, [0, 1], 9, **causal)]
    runs += [made(11, [0, 1], 9, idea="joint_tokens", device="cuda")]
    runs += [made(11, [0, 1, 1], 100, graph=(3, 5, 20)), made(11, [0, 1, 1], 100, no_canon=True)]
    runs += [made(11, [0, 1, 1], 100, steps=2000), made(11, [0, 1, 1], 100, batch_size=512)]  # no idea has these
    runs += [made(11, [0, 0.3], 8, (5, 5, 25)), made(11, [0, 0.7], 2, (5, 5, 25), idea="hybrid")]
    assert table.idea_table(runs).splitlines() == [
        "| trained by | G(2,5), 8 x 64, 400 steps | cheat rate | G(2,5), 8 x 96, causal, 400 steps | cheat rate"
        " | G(5,5), 8 x 64, 400 steps | cheat rate | 99 % at step | time a step | parameters more |",
        "|" + " --- |" * 10,
        "| next | 50.0%, 40.0%; 2 |  | 60.0%; 1 |  | 30.0%; 1 |  |  | 1.0 | 0% |",
        "| hybrid | 100.0%, 98.0%; 2 | 90.0% | 100.0%; 1 |  | 70.0%; 1 |  | 75 | 2.0 | 0% |",
        "| joint_tokens | 100.0%; 1 |  |  |  |  |  | 50 |  | 12% |",  # one block more than eight
    ]
    assert "hybrid" not in table.table([run | {"log": [run["log"][-1] | dict(
        graphs=1, seconds=60, forced_accuracy=[1.0] * 5)]} for run in runs])


def test_the_pictures_and_files_that_the_texts_point_to_are_there():
    for name in ("README.md", "results/README.md", "ASSIGNMENTS.md"):
        text = (HOME / name).read_text(encoding="utf-8")
        pointed = re.findall(r"\]\((?!https?:)([^)#]+)\)", text) + re.findall(r"`([a-z_]+\.py)`", text)
        assert name != "README.md" or len(pointed) > 10
        for target in pointed:
            places = [HOME / target, (HOME / name).parent / target, HOME / "tests" / "assignments" / target]
            assert any(place.exists() for place in places), f"{name} points to {target}"


def test_every_committed_run_is_one_of_the_listed_command_lines_and_complete():
    lines = [line.split() for line in (HOME / "results" / "runs.txt").read_text().splitlines()]
    assert all((HOME / line[0]).is_file() and line[1] == "--out_dir" for line in lines)
    listed = {line[2]: line[3:] for line in lines}
    runs = {path.parent.relative_to(HOME).as_posix(): path.parent for path in (HOME / "results").rglob("config.json")}
    assert sorted(listed) == sorted(runs)
    for name, run in runs.items():
        config = json.loads((run / "config.json").read_text())
        config.setdefault("causal", config["model"] == "gpt")  # as plot.py reads older runs
        last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
        assert last["step"] == config["steps"]
        s, _, _ = settle(parse([*listed[name], "--device", "cpu"], train.__doc__))
        changed = {key for key, value in vars(s).items() if key in config and config[key] != value}
        assert changed <= {"out_dir", "threads", "idea", "device", "compile"}, name  # how it ran, not what
