"""plot.py: what is drawn is what the logs say, and what cannot be read is refused in one sentence."""

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import plot

ROOT = Path(__file__).parent.parent
DRAWN_FROM_LOGS = ("path_star", "exact_match_time", "positions", "bars", "cheat")


def make_run(folder, objective="next", model="gpt", seed=1, deg=2, path_len=5, steps=100, **settings):
    """Write the log of a made-up run: `next` never learns position 1, the others learn from the goal backwards."""
    folder.mkdir(parents=True)
    reverse = objective == "reverse"
    s = dict(objective=objective, reverse=reverse, model=model, deg=deg, path_len=path_len, num_nodes=50, seed=seed,
             only_difficult=False, n_layer=6, steps=steps)
    (folder / "config.json").write_text(json.dumps(s | settings))
    rows = []
    for step in range(0, steps + 1, 10):
        tokens = [1.0 if step >= 10 * (path_len - i) + seed else 1 / 8 for i in range(path_len)]
        if objective == "next":
            tokens[1] = 0.5 if step else 0.0
        row = dict(step=step, seconds=1.5 * step * seed, graphs=step * 8, loss=1.0 if step else None, chance=1 / deg,
                   accuracy=tokens[1] * 0.96, position_accuracy=tokens, forced_accuracy=tokens, difficult=tokens[1])
        if objective in ("next", "multi"):
            row["cheat_rate"] = 0.97 if step else 0.0
        rows.append(json.dumps(row) + "\n")
    (folder / "log.jsonl").write_text("".join(rows))
    return folder


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plot.plt.close("all")


@pytest.fixture
def runs(tmp_path):
    """Three seeds of each objective and model on G(2,5), and one run on another graph: the folder that holds them."""
    for objective in plot.OBJECTIVES:
        for model in plot.MODELS:
            for seed in (1, 2, 3):
                make_run(tmp_path / "runs" / f"{objective}_{model}_{seed}", objective, model, seed)
    make_run(tmp_path / "runs" / "other", "next", deg=5, path_len=4)
    return tmp_path / "runs"


def on_graph(runs, graph=(2, 5, 50)):
    return [run for run in plot.find_runs([runs]) if run["graph"] == graph]


def drawn(ax):
    """The points of every line within a panel: those of the runs and medians, not the strokes of the labels."""
    return [list(zip(*(map(float, d) for d in line.get_data()))) for line in ax.lines if line.get_clip_on()]


def png_size(path):
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n", path
    return struct.unpack(">II", header[16:24])


def refused(arguments, tmp_path, capsys):
    """Run main, which must leave with status 2 and one sentence on stderr: that sentence."""
    with pytest.raises(SystemExit) as stopped:
        plot.main([*map(str, arguments), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("plot.py: ") and error.count("\n") == 1, error
    return error


# ---------------------------------------------------------------------------------------------------------
# The files


def test_all_pictures_are_images_of_sane_size(runs, tmp_path, capsys):
    plot.main([str(runs), "--out", str(tmp_path / "out")])
    for name in DRAWN_FROM_LOGS:
        width, height = png_size(tmp_path / "out" / f"{name}.png")
        assert width == 1650 and 600 <= height <= 1650, name
        svg = (tmp_path / "out" / f"{name}.svg").read_text()
        assert "<svg" in svg and svg.endswith("</svg>\n"), name
    assert len(list((tmp_path / "out").iterdir())) == 2 * len(DRAWN_FROM_LOGS)  # and nothing else is left there
    said = capsys.readouterr().err
    assert "24 of 25 runs" in said


def test_no_text_is_cut_off_or_overlaps(runs):
    for name in ("exact_match_time", "positions", "cheat", "bars"):
        fig = getattr(plot, name)(on_graph(runs))
        fig.canvas.draw()
        for ax in fig.axes:
            texts = [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label]
            texts = [text.get_window_extent() for text in texts if text.get_text()]
            for i, box in enumerate(texts):
                assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= fig.bbox.width and box.y1 <= fig.bbox.height, (name, i)
                assert not any(box.overlaps(other) for other in texts[:i]), (name, i)
        for text in fig.texts:
            assert text.get_window_extent().x1 <= fig.bbox.width, (name, text.get_text())
        plot.plt.close(fig)


def test_drawing_twice_gives_the_same_bytes(runs, tmp_path):
    for out in ("one", "two"):
        plot.save(plot.bars(on_graph(runs)), tmp_path / out, "bars")
    assert (tmp_path / "one/bars.svg").read_bytes() == (tmp_path / "two/bars.svg").read_bytes()


def test_committed_results_are_redrawn(tmp_path):
    folders = [path for path in sorted((ROOT / "results").glob("*")) if (path / "log.jsonl").exists()]
    if not folders:
        pytest.skip("results/ holds no run yet")
    plot.main([*map(str, (ROOT / "results").glob("*")), "--out", str(tmp_path)])
    for name in ("path_star", "exact_match_time", "bars"):
        assert min(png_size(tmp_path / f"{name}.png")) >= 600


# ---------------------------------------------------------------------------------------------------------
# What is plotted is what the logs say


def test_exact_match_is_the_logs_and_their_median(runs):
    group = on_graph(runs)
    for ax, model in zip(plot.exact_match_time(group).axes, plot.MODELS):
        lines = drawn(ax)[1:]  # the first is chance
        for objective in plot.OBJECTIVES:
            seeds = [run["log"] for run in group if (run["s"]["objective"], run["s"]["model"]) == (objective, model)]
            curves = [[(r["seconds"] / 60, r["accuracy"]) for r in log] for log in seeds]
            assert lines[:3] == curves
            middle = [tuple(sorted(values)[1] for values in zip(*points)) for points in zip(*curves)]
            assert lines[3] == middle
            lines = lines[4:]
        assert lines == []


def test_the_chance_line_is_at_one_over_d(runs):
    for graph in ((2, 5, 50), (5, 4, 50)):
        group = on_graph(runs, graph)
        for fig in (plot.exact_match_time(group), plot.positions(group)):
            for ax in fig.axes:
                if ax.get_visible():
                    assert drawn(ax)[0] == [(0, 1 / graph[0]), (1, 1 / graph[0])]


def test_positions_are_the_teacher_forced_accuracies(runs):
    group = [run for run in on_graph(runs) if run["s"]["seed"] == 1]
    axes = plot.positions(group).axes
    panels = [(model, objective) for model in plot.MODELS for objective in ("next", "teacherless")]
    for ax, (model, objective) in zip(axes, panels, strict=True):
        (run,) = [run for run in group if (run["s"]["objective"], run["s"]["model"]) == (objective, model)]
        curves = [[(r["step"], r["forced_accuracy"][i]) for r in run["log"]] for i in range(5)]
        assert sorted(drawn(ax)[1:]) == sorted(curves)


def test_learning_order_is_the_first_step_at_90_percent(runs):
    group = on_graph(runs)
    order = lambda objective: plot.learning_order([run for run in group if run["s"]["objective"] == objective])
    assert order("teacherless") == [60, 50, 40, 30, 20]
    assert order("next") == [60, math.inf, 40, 30, 20]


def test_a_token_counts_as_learned_from_90_percent_on(tmp_path):
    folder = make_run(tmp_path / "run")
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for r in log:  # 0, 10, … 100 %
        r["forced_accuracy"] = [r["step"] / 100] * 5
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
    assert plot.learning_order(plot.find_runs([folder])) == [90] * 5


def test_the_title_of_positions_names_the_order(runs):
    group = on_graph(runs)
    title = plot.positions(group).texts[0].get_text().replace("\n", " ")
    assert title == "GPT and Mamba: next does not learn v1 in 100 steps; teacherless learns v3, then v2, then v1"


def test_titles_say_what_the_logs_say_even_if_it_is_another_finding(tmp_path):
    """A `next` that succeeds and a teacherless run that learns from left to right are called so."""
    for objective in ("next", "teacherless"):
        folder = make_run(tmp_path / objective, objective)
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for r in log:
            r["forced_accuracy"] = [float(r["step"] >= 10 * i) for i in range(5)]
            r["accuracy"] = float(r["step"] >= 50) if objective == "next" else 0.3
        (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
    runs = plot.find_runs([tmp_path])
    assert "teacherless learns v1, then v2, then v3" in plot.positions(runs).texts[0].get_text()
    title = plot.exact_match_time(runs).texts[0].get_text()
    assert title == "GPT: with next it finds the path; teacherless ends at 30%"


def test_bars_are_the_medians_of_the_last_evaluations(runs):
    every = plot.find_runs([runs])
    fig = plot.bars(every)
    heights = [[bar.get_height() for bar in ax.patches] for ax in fig.axes]
    assert heights == [[0.48, 0.96, 0.96, 0.96, 0.48], [0.48, 0.96, 0.96, 0.96]]
    title = fig.texts[0].get_text().replace("\n", " ")
    assert title.endswith("next 0 of 3, reverse 2 of 2, teacherless 2 of 2, multi 2 of 2")


def test_cheat_is_drawn_for_runs_that_measure_it(runs):
    ax = plot.cheat(on_graph(runs)).axes[0]
    (chance, *lines) = drawn(ax)
    assert chance == [(0.5, 0), (0.5, 1)]
    log = on_graph(runs)[0]["log"]
    assert [(r["difficult"], r["cheat_rate"]) for r in log] in lines
    assert plot.cheat([run for run in on_graph(runs) if run["s"]["objective"] == "reverse"]) is None


def test_seeds_of_different_length_meet_at_their_common_steps(tmp_path):
    make_run(tmp_path / "a", seed=1, steps=100)
    make_run(tmp_path / "b", seed=2, steps=50)
    ax = plot.exact_match_time(plot.find_runs([tmp_path])).axes[0]
    assert [len(line) for line in drawn(ax)[1:]] == [11, 6, 6]


def test_other_training_is_kept_out_of_the_four_objectives(tmp_path, capsys):
    make_run(tmp_path / "runs/alone", only_difficult=True)
    make_run(tmp_path / "runs/turned", "teacherless", reverse=True)
    plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    said = f"left out, being none of the four objectives as they are: {tmp_path}/runs/alone, {tmp_path}/runs/turned\n"
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["path_star.png", "path_star.svg"]


def test_what_is_mixed_and_which_graph_is_shown_are_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plot, "save", lambda *picture: None)  # the pictures' files take time and say nothing here
    for name, settings in {"a": {}, "b": {"n_layer": 8}, "c": {"path_len": 4}}.items():
        make_run(tmp_path / "runs" / name, **settings)
    arguments = [str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    plot.main(arguments)
    said = capsys.readouterr().err
    assert "differ in n_layer" in said and "show G(2,5) over 50 labels, 2 of 3 runs" in said
    plot.main([*arguments, "--graph", "2,4,50"])
    assert "show G(2,4) over 50 labels, 1 of 3 runs" in capsys.readouterr().err


def test_of_two_seeds_the_later_one_says_when_a_token_is_learned(runs):
    seeds = [run for run in on_graph(runs) if run["s"]["objective"] == "teacherless"][:2]
    for r in seeds[1]["log"]:  # learns v1 30 steps after the other, and the goal never
        r["forced_accuracy"][1] = float(r["step"] >= 80)
        r["forced_accuracy"][4] = 0.5
    assert plot.learning_order(seeds) == [60, 80, 40, 30, math.inf]


@pytest.mark.parametrize("end, verdict", [(0.0, "0%"), (0.16, "16%, chance"), (0.24, "24%, chance"), (0.3, "30%")])
def test_an_end_near_one_over_d_is_called_chance(tmp_path, end, verdict):
    (run,) = plot.find_runs([make_run(tmp_path / "run", deg=5)])
    run["log"][-1]["accuracy"] = end
    assert plot.exact_match_time([run]).texts[0].get_text() == f"GPT: next ends at {verdict}"


def test_each_graphs_bars_have_its_own_chance_line(runs):
    ax = plot.bars(plot.find_runs([runs])).axes[0]
    chance = [line for line in drawn(ax) if len(line) == 2]  # the seeds' dots are three or one
    assert [[y for _, y in line] for line in chance] == [[1 / 2, 1 / 2], [1 / 5, 1 / 5]]
    assert [round((line[0][0] + line[1][0]) / 2, 6) for line in chance] == [0, 1]


def test_the_title_of_cheat_names_each_number_for_what_it_is(runs):
    title = plot.cheat(on_graph(runs)).texts[0].get_text().replace("\n", " ")
    sentence = "walks 97% of wrong arms to the end, {} of first steps are right"
    assert title == f"GPT and Mamba: next {sentence.format('50%')}; multi {sentence.format('100%')}"


@pytest.mark.parametrize("varied", [dict(optimizer="adamw"), dict(no_qk_norm=True), dict(no_canon=True), dict(n_train=200), dict(init_from="gpt2")])
def test_variations_are_not_mixed_into_the_plain_runs(tmp_path, varied):
    plain, other = plot.find_runs([make_run(tmp_path / "a", optimizer="muon"), make_run(tmp_path / "b", **varied)])
    assert plot.is_plain(plain) and not plot.is_plain(other)


# ---------------------------------------------------------------------------------------------------------
# What cannot be read


def test_a_half_written_last_line_is_skipped_and_said(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    whole = (folder / "log.jsonl").read_text()
    (folder / "log.jsonl").write_text(whole + '{"step": 110, "secon')
    (run,) = plot.find_runs([folder])
    assert [r["step"] for r in run["log"]] == list(range(0, 101, 10))
    assert "last line was written only half and is skipped" in capsys.readouterr().err
    (folder / "log.jsonl").write_text('{"step": 0, "secon')  # nothing is left
    with pytest.raises(ValueError, match="there is no run"):
        plot.find_runs([folder])


@pytest.mark.parametrize("log", [None, "", '{"step": 0, "sec'])
def test_a_run_without_an_evaluation_is_skipped_and_the_others_are_drawn(tmp_path, capsys, log):
    make_run(tmp_path / "a"), make_run(tmp_path / "b")
    (tmp_path / "b" / "log.jsonl").unlink()
    if log is not None:
        (tmp_path / "b" / "log.jsonl").write_text(log)
    assert [run["folder"].name for run in plot.find_runs([tmp_path])] == ["a"]
    assert f"{tmp_path}/b holds no evaluation yet and is skipped" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there is no run"):
        plot.find_runs([tmp_path / "b"])


def test_patterns_that_the_shell_left_alone_are_expanded(tmp_path, monkeypatch):
    drawn_runs = []
    monkeypatch.setattr(plot, "draw", lambda runs, graph, out: drawn_runs.append([run["folder"].name for run in runs]))
    for name in ("a1", "a2", "b", "[x]"):
        make_run(tmp_path / "runs" / name)
    for pattern in ("runs/a*", "runs/*", "runs/[x]", "runs"):
        plot.main([str(tmp_path / pattern)])
    assert drawn_runs == [["a1", "a2"], ["[x]", "a1", "a2", "b"], ["[x]"], ["[x]", "a1", "a2", "b"]]


def test_a_notebooks_backend_that_is_not_installed_does_not_matter(tmp_path):
    environment = os.environ | {"MPLBACKEND": "module://no_such_backend"}
    command = [sys.executable, ROOT / "plot.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_a_run_under_way_is_drawn_and_said(tmp_path, capsys):
    folder = make_run(tmp_path / "run", steps=50)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"steps": 200}))
    assert len(plot.find_runs([folder])[0]["log"]) == 6
    assert "step 50 of 200" in capsys.readouterr().err


@pytest.mark.parametrize("file, text", [
    ("log.jsonl", '{"step": 0}\n'),
    ("log.jsonl", "[]\n"),
    ("log.jsonl", 'garbage\n{"step": 0}\n'),
    ("log.jsonl", b"\xff\xfe\x00"),
    ("config.json", None),
    ("config.json", ""),
    ("config.json", "[1, 2]"),
    ("config.json", '{"objective": "next"}'),
    ("config.json", '{"objective": "magic", "model": "gpt", "deg": 2, "path_len": 5, "num_nodes": 50, "steps": 9}'),
    ("config.json", "[" * 100_000),
])
def test_damaged_files_are_refused_in_one_sentence(file, text, tmp_path, capsys):
    path = make_run(tmp_path / "run") / file
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    error = refused([tmp_path / "run"], tmp_path, capsys)
    assert str(path) in error and "leave" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [
    {"accuracy": "high"}, {"accuracy": math.nan}, {"step": 90}, {"forced_accuracy": [1.0]}, {"forced_accuracy": 1.0},
    {"cheat_rate": None}, {"difficult": 10**400},
])
def test_lines_that_are_no_evaluations_are_refused(change, tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    lines = (folder / "log.jsonl").read_text().splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | change)
    (folder / "log.jsonl").write_text("\n".join(lines))
    assert "line 11" in refused([folder], tmp_path, capsys)


def test_missing_folders_and_graphs_are_refused(runs, tmp_path, capsys):
    assert "does not exist" in refused([tmp_path / "nowhere"], tmp_path, capsys)
    (tmp_path / "empty").mkdir()
    assert "holds no log.jsonl" in refused([tmp_path / "empty"], tmp_path, capsys)
    (tmp_path / "README.md").write_text("text")
    assert "there is no run" in refused([tmp_path / "README.md"], tmp_path, capsys)
    assert "2,5,50 5,4,50" in refused([runs, "--graph", "3,3,3"], tmp_path, capsys)
    assert "like 2,5,50" in refused([runs, "--graph", "2,5"], tmp_path, capsys)
    assert "like 2,5,50" in refused([runs, "--graph", "star"], tmp_path, capsys)
    assert "--magic" in refused([runs, "--magic"], tmp_path, capsys)
    (tmp_path / "out").write_text("a file where the folder should be")
    assert "--out" in refused([runs / "next_gpt_1"], tmp_path, capsys)


def test_files_and_folders_of_pictures_are_passed_over_quietly(tmp_path, capsys):
    make_run(tmp_path / "run")
    (tmp_path / "README.md").write_text("text")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "bars.png").write_bytes(b"")
    assert len(plot.find_runs(sorted(tmp_path.iterdir()))) == 1
    assert capsys.readouterr().err == ""


def test_the_command_itself(tmp_path):
    """As a student runs it, in a folder without results: picture 1 alone; a bad folder: one sentence, no traceback."""
    bare = subprocess.run([sys.executable, ROOT / "plot.py"], cwd=tmp_path, capture_output=True, text=True)
    assert bare.returncode == 0 and "only picture 1 is drawn" in bare.stderr
    assert png_size(tmp_path / "figures" / "path_star.png") == (1650, 840)
    bad = subprocess.run([sys.executable, ROOT / "plot.py", "nowhere"], cwd=tmp_path, capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stdout == ""
    remedy = "give the folder of a run, or train one with: python train.py"
    assert bad.stderr == f"plot.py: nowhere does not exist; {remedy}\n"
