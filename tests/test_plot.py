"""plot.py: what is drawn is what the logs say; what cannot be read is refused in one sentence."""

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
PICTURES = ("path_star", "exact_match_time", "positions", "margin", "bars", "cheat")


def make_run(folder, objective="next", model="gpt", seed=1, deg=2, path_len=5, steps=100,
             **settings):
    """Write the log of a made-up run: `next` never learns token 1, the others learn backwards."""
    folder.mkdir(parents=True)
    reverse = objective == "reverse"
    s = dict(objective=objective, reverse=reverse, model=model, deg=deg, path_len=path_len,
             num_nodes=50, seed=seed, only_difficult=False, n_layer=6, steps=steps, batch_size=8,
             causal=False)
    (folder / "config.json").write_text(json.dumps(s | settings))
    rows = []
    for step in range(0, steps + 1, 10):
        tokens = [1.0 if step >= 10 * (path_len - i) + seed else 1 / 8 for i in range(path_len)]
        if objective == "next":
            tokens[1] = 0.5 if step else 0.0
        row = dict(step=step, seconds=1.5 * step * seed, graphs=step * 8, chance=1 / deg,
                   loss=1.0 if step else None, accuracy=tokens[1] * 0.96,
                   margin=20 * tokens[1] - 10, position_accuracy=tokens, forced_accuracy=tokens,
                   difficult=tokens[1])
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
    """A folder of runs: three seeds of each objective and model on G(2,5), one on another graph."""
    for objective in plot.OBJECTIVES:
        for model in plot.MODELS:
            for seed in (1, 2, 3):
                make_run(tmp_path / "runs" / f"{objective}_{model}_{seed}", objective, model, seed)
    make_run(tmp_path / "runs" / "other", "next", deg=5, path_len=4)
    return tmp_path / "runs"


def on_graph(runs, graph=(2, 5, 50)):
    return [run for run in plot.find_runs([runs]) if run["graph"] == graph]


def drawn(ax):
    """The points of every line within a panel."""
    return [list(zip(*(map(float, d) for d in line.get_data()))) for line in ax.lines]


def change_log(folder, change):
    """Write a run's log anew, each line of it changed in place by a function."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for r in log:
        change(r)
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))


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


# ------------------------------------------------------------------------------------------------
# The files


def test_all_pictures_are_images_of_sane_size(runs, tmp_path, capsys):
    plot.main([str(runs), "--out", str(tmp_path / "out")])
    for name in PICTURES:
        width, height = png_size(tmp_path / "out" / f"{name}.png")
        assert width == 1650 and 600 <= height <= 1650, name
        svg = (tmp_path / "out" / f"{name}.svg").read_text()
        assert "<svg" in svg and svg.endswith("</svg>\n"), name
    assert len(list((tmp_path / "out").iterdir())) == 2 * len(PICTURES)  # and nothing else
    said = capsys.readouterr().err
    assert "24 of 25 runs" in said


def test_no_text_is_cut_off_or_overlaps(runs):
    for name in ("exact_match_time", "positions", "margin", "cheat", "bars"):
        make = [run for run in on_graph(runs) if name != "cheat" or "cheat_rate" in run["log"][0]]
        if name == "positions":
            make = [run for run in make if run["s"]["objective"] in ("next", "teacherless")]
        fig = getattr(plot, name)(make)
        fig.canvas.draw()
        texts = [*fig.texts, *(text for legend in fig.legends for text in legend.get_texts())]
        for ax in filter(lambda ax: ax.get_visible(), fig.axes):
            texts += [*ax.texts, ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label]
            texts += ax.get_legend().get_texts() if ax.get_legend() else []
            texts += ax.get_xticklabels() if name == "bars" else []
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
        for i, (text, box) in enumerate(boxes):
            assert box.x0 >= 0 and box.y0 >= 0, (name, text)
            assert box.x1 <= fig.bbox.width and box.y1 <= fig.bbox.height, (name, text)
            for other, there in boxes[:i]:
                assert not box.overlaps(there), (name, text, other)
        plot.plt.close(fig)


def test_drawing_twice_gives_the_same_bytes(runs, tmp_path):
    for out in ("one", "two"):
        plot.main([str(runs / "next_gpt_1"), "--out", str(tmp_path / out)])
    for name in ("bars.svg", "margin.svg", "margin.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_committed_results_are_redrawn(tmp_path):
    if not list((ROOT / "results").glob("*/log.jsonl")):
        pytest.skip("results/ holds no run yet")
    plot.main([*map(str, (ROOT / "results").glob("*")), "--out", str(tmp_path)])
    for name in ("path_star", "exact_match_time", "bars"):
        assert min(png_size(tmp_path / f"{name}.png")) >= 600


# ------------------------------------------------------------------------------------------------
# What is plotted is what the logs say


def curves_of(group, x, y):
    """For each objective, three seeds' curves and that of their medians, in the drawn order."""
    curves = []
    for objective in plot.OBJECTIVES:
        logs = [run["log"] for run in group if run["s"]["objective"] == objective]
        seeds = [[(x(r), y(r)) for r in log] for log in logs]
        middle = [tuple(sorted(v)[1] for v in zip(*points)) for points in zip(*seeds)]
        curves += [*seeds, middle] if seeds else []
    return curves


def test_exact_match_is_the_logs_and_their_median(runs):
    group = on_graph(runs)
    for ax, model in zip(plot.exact_match_time(group).axes, plot.MODELS, strict=True):
        same = [run for run in group if run["s"]["model"] == model]
        curves = curves_of(same, lambda r: r["seconds"] / 60, lambda r: r["accuracy"])
        assert len(curves) == 16 and drawn(ax)[:-1] == curves  # the last is chance


def test_the_margin_is_the_logs_and_their_median(runs):
    group = on_graph(runs)
    fig = plot.margin(group)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["GPT", "Mamba"]
    for ax, model in zip(fig.axes, plot.MODELS, strict=True):
        same = [run for run in group if run["s"]["model"] == model]
        curves = curves_of(same, lambda r: r["step"], lambda r: r["margin"])
        assert drawn(ax) == [*curves, [(0, 0), (1, 0)]]  # undecided
        low, high = ax.get_ylim()
        assert all(low < y < high for curve in curves for _, y in curve)
        assert ax.get_yscale() == "symlog"


def test_runs_without_a_margin_are_left_out_of_its_picture(tmp_path, capsys, monkeypatch):
    drawn_runs = []
    folder = make_run(tmp_path / "runs" / "old")
    change_log(folder, lambda r: r.pop("margin"))
    arguments = [str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    plot.main(arguments)
    assert "the picture margin is left out" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("margin*")) and (tmp_path / "out/bars.png").exists()
    make_run(tmp_path / "runs" / "new", seed=2)
    picture = plot.margin
    monkeypatch.setattr(plot, "margin", lambda runs: drawn_runs.extend(runs) or picture(runs))
    plot.draw(plot.find_runs([tmp_path / "runs"]), None)
    assert [run["folder"].name for run in drawn_runs] == ["new"]


def test_the_chance_line_is_at_one_over_d(runs):
    for graph in ((2, 5, 50), (5, 4, 50)):
        group = on_graph(runs, graph)
        pairs = [run for run in group if run["s"]["objective"] in ("next", "teacherless")]
        for fig in (plot.exact_match_time(group), plot.positions(pairs)):
            for ax in fig.axes:
                if ax.get_visible():
                    assert drawn(ax)[-1] == [(0, 1 / graph[0]), (1, 1 / graph[0])]


def test_positions_are_the_teacher_forced_accuracies(runs):
    panels = [(model, objective) for model in plot.MODELS for objective in ("next", "teacherless")]
    kind = lambda run: (run["s"]["model"], run["s"]["objective"])
    group = [run for run in on_graph(runs) if run["s"]["seed"] == 1 and kind(run) in panels]
    for ax, panel in zip(plot.positions(group).axes, panels, strict=True):
        (run,) = [run for run in group if kind(run) == panel]
        curves = [[(r["step"], r["forced_accuracy"][i]) for r in run["log"]] for i in range(5)]
        assert sorted(drawn(ax)[:-1]) == sorted(2 * curves)  # the seed, and the median of one


def test_positions_name_the_tokens_and_when_they_are_learned(runs):
    group = [run for run in on_graph(runs) if run["s"]["objective"] in ("next", "teacherless")]
    legends = [ax.get_legend().get_texts() for ax in plot.positions(group).axes]
    labels = [[text.get_text() for text in legend] for legend in legends]
    assert labels[0] == ["token 4 (goal)\n90 % at step 20", "token 3\n90 % at step 30",
                         "token 2\n90 % at step 40", "token 0 (start)\n90 % at step 60",
                         "token 1 (difficult)\nbelow 90 %", "chance 1/2"]
    assert labels[1][3] == "token 1 (difficult)\n90 % at step 50"
    assert labels[1][4] == "token 0 (start)\n90 % at step 60"
    assert labels[2:] == labels[:2]


def test_a_panel_of_positions_ends_soon_after_its_last_token_is_learned(runs):
    group = [run for run in on_graph(runs) if run["s"]["objective"] in ("next", "teacherless")]
    ends = [ax.get_xlim()[1] for ax in plot.positions(group).axes]
    assert ends == pytest.approx([100, 78, 100, 78])


def test_learning_order_is_the_first_step_at_90_percent(runs):
    group = on_graph(runs)
    of = lambda objective: [run for run in group if run["s"]["objective"] == objective]
    assert plot.learning_order(of("teacherless")) == [60, 50, 40, 30, 20]
    assert plot.learning_order(of("next")) == [60, math.inf, 40, 30, 20]


def test_a_token_counts_as_learned_from_90_percent_on(tmp_path):
    folder = make_run(tmp_path / "run")
    change_log(folder, lambda r: r.update(forced_accuracy=[r["step"] / 100] * 5))
    assert plot.learning_order(plot.find_runs([folder])) == [90] * 5


def test_bars_are_the_medians_of_the_last_evaluations(runs):
    every = plot.find_runs([runs])
    fig = plot.bars(every)
    heights = [[bar.get_height() for bar in ax.patches] for ax in fig.axes]
    assert heights == [[0.48, 0.96, 0.96, 0.96, 0.48], [0.48, 0.96, 0.96, 0.96]]
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["GPT", "Mamba"]

    longer = next(run for run in plot.find_runs([runs]) if run["s"]["objective"] == "next" and run["s"]["model"] == "gpt")
    longer["log"][-1] |= {"accuracy": 0.7, "graphs": 10**6}
    assert 0.7 in [bar.get_height() for bar in plot.bars([*every, longer]).axes[0].patches]  # alone, not 0.48 beside it
    begun = longer | {"s": longer["s"] | {"steps": 10**6}, "log": longer["log"][:1]}  # a long run, at its first step
    assert [bar.get_height() for bar in plot.bars([*every, begun]).axes[0].patches] == heights[0]


def test_a_few_longer_runs_do_not_stretch_the_pictures(runs, capsys):
    def made(seed, steps):
        run = next(run for run in on_graph(runs) if run["s"]["objective"] == "next" and run["s"]["model"] == "gpt")
        log = [{**r, "step": r["step"] * steps // 400} for r in run["log"]]
        return {**run, "s": run["s"] | {"seed": seed, "steps": steps}, "log": log, "folder": f"{steps}"}

    few = [made(1, 400), made(2, 400), made(3, 2000)]
    def width(group):
        end = plot.draw(group, None)["margin"].axes[0].dataLim.x1
        plot.plt.close("all")
        return end

    assert width(few) == width(few[:2]) and "leave out 1 that had not 400 steps of 8 graphs" in capsys.readouterr().err
    larger = made(4, 400)
    larger["s"] |= {"batch_size": 512}
    assert width([*few, larger]) == width(few[:2]) and "leave out 2 that had not" in capsys.readouterr().err
    assert width(few[1:]) == width(few[2:]) == 5 * width(few[:1])  # of two, neither is the odd one


def test_minutes_on_another_device_are_left_out(runs, capsys):
    group = [{**run, "s": run["s"] | {"device": "cpu"}} for run in on_graph(runs)]
    count = lambda group: [len(ax.lines) for ax in plot.exact_match_time(group).axes]
    drawn = count(group)
    assert capsys.readouterr().err == ""
    on_a_gpu = {**group[0], "s": group[0]["s"] | {"device": "cuda"}}
    assert count([on_a_gpu, *group]) == drawn
    assert "shows runs on cpu alone" in capsys.readouterr().err


def test_each_number_stands_at_the_foot_of_its_own_bar(runs):
    group = on_graph(runs)
    for r, end in zip([run["log"][-1] for run in group if run["s"]["objective"] == "next"],
                      (0.5, 0.99, 0.49, 0.5, 0.99, 0.49)):  # a seed far above the median
        r["accuracy"] = end
    for ax in plot.bars(group).axes:
        numbers = [text for text in ax.texts if "/" not in text.get_text()]
        assert [text.get_text() for text in numbers] == ["50", "96", "96", "96"]
        for text, bar in zip(numbers, ax.patches, strict=True):
            assert text.get_position()[0] == pytest.approx(bar.get_x() + bar.get_width() / 2)
            assert text.get_position()[1] < 0 and text.get_va() == "top"
            assert float(text.get_text()) == pytest.approx(100 * bar.get_height(), abs=0.5)


def test_cheat_is_drawn_for_runs_that_measure_it(runs):
    group = [run for run in on_graph(runs) if run["s"]["objective"] in ("next", "multi")]
    ax = plot.cheat(group).axes[0]
    assert ax.get_ylabel() == "wrong arms followed"
    *lines, chance = drawn(ax)
    assert chance == [(0.5, 0), (0.5, 1)]
    same = [run for run in group if run["s"]["model"] == "gpt"]
    assert lines == curves_of(same, lambda r: r["difficult"], lambda r: r["cheat_rate"])


def test_without_a_cheat_rate_its_picture_is_left_out_and_said(tmp_path, capsys):
    (run,) = plot.find_runs([make_run(tmp_path / "run", "reverse")])
    assert sorted(plot.draw([run], None)) == ["bars", "exact_match_time", "margin", "path_star"]
    said = capsys.readouterr().err
    assert "the picture cheat is left out" in said and "the picture positions is left out" in said


def test_seeds_of_different_length_meet_at_their_common_steps(tmp_path):
    make_run(tmp_path / "a", seed=1, steps=100)
    make_run(tmp_path / "b", seed=2, steps=50)
    ax = plot.exact_match_time(plot.find_runs([tmp_path])).axes[0]
    assert [len(line) for line in drawn(ax)[:-1]] == [11, 6, 6]


def test_other_training_is_kept_out_of_the_four_objectives(tmp_path, capsys):
    make_run(tmp_path / "runs/alone", only_difficult=True)
    make_run(tmp_path / "runs/turned", "teacherless", reverse=True)
    plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    for name in ("alone", "turned"):
        assert f"{tmp_path}/runs/{name} is left out, being none of the four objectives" in said
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["path_star.png", "path_star.svg"]
    assert "no run is left" in said


def test_runs_of_one_variation_alone_are_drawn_and_named(tmp_path, capsys):
    make_run(tmp_path / "a", n_train=200), make_run(tmp_path / "b", n_train=200, seed=2)
    assert set(plot.draw(plot.find_runs([tmp_path]), None)) > {"exact_match_time", "positions", "bars"}
    said = capsys.readouterr().err
    assert "all runs have --n_train 200, which the pictures do not say" in said and "left out" not in said
    (idea,) = plot.find_runs([make_run(tmp_path / "idea", idea="hybrid")])
    assert list(plot.draw([idea], None)) == ["path_star"]


def test_what_is_mixed_and_which_graph_is_shown_are_said(tmp_path, capsys):
    for name, settings in {"a": {}, "b": {"n_layer": 8}, "c": {"path_len": 4}}.items():
        make_run(tmp_path / name, **settings)
    plot.draw(plot.find_runs([tmp_path]), None)
    said = capsys.readouterr().err
    assert "differ in n_layer" in said and "show G(2,5), 50 labels, 2 of 3 runs" in said
    plot.draw(plot.find_runs([tmp_path]), "2,4,50")
    assert "show G(2,4), 50 labels, 1 of 3 runs" in capsys.readouterr().err


def test_of_two_seeds_the_later_one_says_when_a_token_is_learned(runs):
    seeds = [run for run in on_graph(runs) if run["s"]["objective"] == "teacherless"][:2]
    for r in seeds[1]["log"]:  # learns v1 30 steps after the other, and the goal never
        r["forced_accuracy"][1] = float(r["step"] >= 80)
        r["forced_accuracy"][4] = 0.5
    assert plot.learning_order(seeds) == [60, 80, 40, 30, math.inf]


def test_each_graphs_bars_have_its_own_chance_line(runs):
    ax = plot.bars(plot.find_runs([runs])).axes[0]
    chance = [line for line in drawn(ax) if len(line) == 2]  # the seeds' dots are three or one
    assert [[y for _, y in line] for line in chance] == [[1 / 2, 1 / 2], [1 / 5, 1 / 5]]
    assert [round((line[0][0] + line[1][0]) / 2, 6) for line in chance] == [0, 1]


@pytest.mark.parametrize("varied", [
    dict(causal=True), dict(optimizer="adamw"), dict(no_canon=True), dict(no_mimetic=True),
    dict(n_train=200), dict(init_from="gpt2"), dict(only_difficult=True), dict(reverse=True),
])
def test_variations_are_not_mixed_into_the_other_runs(tmp_path, varied):
    make_run(tmp_path / "a", optimizer="muon"), make_run(tmp_path / "b", **varied)
    usual, other = plot.find_runs([tmp_path])
    flags = " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in varied.items())
    assert (plot.variation_of(usual), plot.variation_of(other)) == ("", flags)
    assert plot.variation_of(other, but=varied) == ("--reverse" if "reverse" in varied else "")


# ------------------------------------------------------------------------------------------------
# What cannot be read


def test_a_half_written_last_line_is_skipped_and_said(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    whole = (folder / "log.jsonl").read_text()
    (folder / "log.jsonl").write_text(whole + '{"step": 110, "secon')
    (run,) = plot.find_runs([folder])
    assert [r["step"] for r in run["log"]] == list(range(0, 101, 10))
    assert "last line was written only half and is skipped" in capsys.readouterr().err
    (folder / "log.jsonl").write_text('{"step": 0, "secon')
    assert plot.find_runs([folder]) == []  # nothing is left


@pytest.mark.parametrize("log", [None, "", '{"step": 0, "sec'])
def test_a_run_without_an_evaluation_is_skipped_and_the_others_are_drawn(tmp_path, capsys, log):
    make_run(tmp_path / "a"), make_run(tmp_path / "b")
    (tmp_path / "b" / "log.jsonl").unlink()
    if log is not None:
        (tmp_path / "b" / "log.jsonl").write_text(log)
    assert [run["folder"].name for run in plot.find_runs([tmp_path])] == ["a"]
    assert f"{tmp_path}/b holds no evaluation yet and is skipped" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        plot.main([str(tmp_path / "b"), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2 and "there is no run" in capsys.readouterr().err


def test_patterns_that_the_shell_left_alone_are_expanded(tmp_path, monkeypatch):
    drawn_runs = []
    names = lambda runs, graph: drawn_runs.append([run["folder"].name for run in runs]) or {}
    monkeypatch.setattr(plot, "draw", names)
    for name in ("a1", "a2", "b", "[x]"):
        make_run(tmp_path / "runs" / name)
    for pattern in ("runs/a*", "runs/*", "runs/[x]", "runs"):
        plot.main([str(tmp_path / pattern), "--out", str(tmp_path / "out")])
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
    ("config.json", '{"objective": "magic", "model": "gpt", "deg": 2, "path_len": 5, '
                    '"num_nodes": 50, "steps": 9}'),
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
    {"accuracy": "high"}, {"accuracy": math.nan}, {"step": 90}, {"forced_accuracy": [1.0]},
    {"forced_accuracy": 1.0}, {"cheat_rate": None}, {"difficult": 10**400}, {"margin": None},
    {"margin": math.nan}, {"margin": "wide"}, {"margin": -math.inf},
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
    assert "there is no run" in refused([tmp_path / "empty"], tmp_path, capsys)
    (tmp_path / "README.md").write_text("text")
    assert "there is no run" in refused([tmp_path / "README.md"], tmp_path, capsys)
    assert "2,5,50 5,4,50" in refused([runs, "--graph", "3,3,3"], tmp_path, capsys)
    assert "one of: 2,5,50 5,4,50" in refused([runs, "--graph", "2,5"], tmp_path, capsys)
    assert "one of: 2,5,50 5,4,50" in refused([runs, "--graph", "star"], tmp_path, capsys)
    assert "--magic" in refused([runs, "--magic"], tmp_path, capsys)
    (tmp_path / "out").write_text("a file where the folder should be")
    assert str(tmp_path / "out") in refused([runs / "next_gpt_1"], tmp_path, capsys)


def test_files_and_folders_of_pictures_are_passed_over_quietly(tmp_path, capsys):
    make_run(tmp_path / "run")
    (tmp_path / "README.md").write_text("text")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "bars.png").write_bytes(b"")
    assert len(plot.find_runs(sorted(tmp_path.iterdir()))) == 1
    assert capsys.readouterr().err == ""


def test_the_command_itself(tmp_path):
    """As a student runs it: without results path_star alone; a bad folder: one sentence."""
    command, how = [sys.executable, ROOT / "plot.py"], dict(capture_output=True, text=True)
    bare = subprocess.run(command, cwd=tmp_path, **how)
    assert bare.returncode == 0 and "only path_star is drawn" in bare.stderr
    assert png_size(tmp_path / "figures" / "path_star.png")[0] == 1650
    bad = subprocess.run([*command, "nowhere"], cwd=tmp_path, **how)
    assert bad.returncode == 2 and bad.stdout == ""
    assert bad.stderr == "plot.py: nowhere does not exist; give the folder of a run\n"
