"""Draw every picture of this lab from the logs that train.py leaves.

    python plot.py runs                     all runs in runs/, pictures to figures/
    python plot.py results --out slides     the committed runs, pictures to slides/
    python plot.py runs --graph 2,5,50      of several graphs, show G(2,5) over 50 labels

Nothing is asserted here that the logs do not show: each title is put together from the numbers. In this file, in
order: reading the logs, the style that all pictures share, the command line's work, and one function a picture:

    1 path_star           the task, drawn: why every step but one can be copied (needs no log)
    2 exact_match_time    what each objective reaches, and when
    3 positions           which token of the path is learned when: the cheat beside the cascade
    4 bars                what each objective reaches in the end, graph by graph
    5 cheat               does the model walk any arm it is put on?
"""

import argparse
import glob
import json
import math
import os
import sys
import textwrap
from pathlib import Path
from statistics import median, median_high

os.environ["MPLBACKEND"] = "Agg"  # draws without a display, whatever a notebook asks for (it may not be installed here)
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.ticker import PercentFormatter

# ---------------------------------------------------------------------------------------------------------
# Reading the logs

OBJECTIVES = ("next", "reverse", "teacherless", "multi")
MODELS = {"gpt": "GPT", "mamba": "Mamba"}
PASS = 0.9  # an accuracy from here on counts as learned


def say(sentence):
    """Tell the user, on stderr, what is not drawn or not as expected."""
    print(f"plot.py: {sentence}", file=sys.stderr)


def find_runs(paths):
    """Read all runs in the given folders: a folder is a run, or holds some. What is no folder is passed over, and so is
    a run that has not come to its first evaluation.

    Returns: a list of runs, as from read_run. Raises: ValueError, one sentence, for the first that cannot be read.
    """
    is_run = lambda folder: (folder / "log.jsonl").exists() or (folder / "config.json").exists()
    runs = []
    for path in map(Path, paths):
        try:
            there = path.exists()
        except OSError:  # such as a name that is too long
            there = False
        if not there:
            raise ValueError(f"{path} does not exist; give the folder of a run, or train one with: python train.py")
        if path.is_dir():
            if not any(path.iterdir()):  # a run may be about to begin there
                say(f"{path} is empty and is skipped")
                continue
            inside = [path] if is_run(path) else list(filter(is_run, sorted(path.iterdir())))
            if not inside and not any(path.glob("*.png")):  # a folder of pictures may lie among the runs
                raise ValueError(f"{path} holds no log.jsonl, nor do its folders; give a folder that train.py wrote")
            runs += filter(None, map(read_run, inside))
    if not runs:
        raise ValueError(f"there is no run in {' '.join(map(str, paths))}; train one with: python train.py")
    return runs


def read_run(folder):
    """Read one run.

    Returns: None, which is said, when it has not come to its first evaluation; else a dict with `folder` (a Path), `s` (the settings of config.json), `graph` (deg, path_len, num_nodes) and
        `log` (the lines of log.jsonl, each a dict, in the order of their steps, one at least).
    Raises: ValueError, one sentence with the file, its fault and a remedy.
    """
    path = folder / "config.json"
    try:
        s = json.loads(path.read_text(encoding="utf-8"))
        graph = s["deg"], s["path_len"], s["num_nodes"]
        if s["objective"] not in OBJECTIVES or s["model"] not in tuple(MODELS) or min(*graph, s["steps"]) < 1:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path} is missing, damaged or no run's; fetch it again, or leave {folder} out") from None

    path, log = folder / "log.jsonl", []
    try:
        lines = path.read_text(encoding="utf-8").rstrip().split("\n")
    except FileNotFoundError:
        lines = [""]
    except (OSError, ValueError):
        raise ValueError(f"{path} is no text; fetch it again, or leave {folder} out") from None
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                if line:
                    say(f"{path}: the last line was written only half and is skipped")
                break
            record = None
        if not is_evaluation(record, s["path_len"]) or (log and record["step"] <= log[-1]["step"]):
            raise ValueError(f"{path}, line {number}, is damaged or out of order; delete it, or leave {folder} out")
        log.append(record)
    if not log:
        return say(f"{folder} holds no evaluation yet and is skipped")
    if log[-1]["step"] < s["steps"]:
        say(f"{folder} has got to step {log[-1]['step']} of {s['steps']} and is drawn as far as that")
    return {"folder": folder, "s": s, "graph": graph, "log": log}


def is_evaluation(record, path_len):
    """Does a line of a log hold the numbers that the pictures are made of?"""
    try:
        numbers = [record[name] for name in ("step", "seconds", "accuracy", "difficult")] + record["forced_accuracy"]
        numbers.append(record.get("cheat_rate", 0))
        return len(record["forced_accuracy"]) == path_len and all(0 <= x < 1e12 for x in numbers)
    except (KeyError, TypeError, AttributeError, OverflowError):
        return False


def is_plain(run):
    """Is a run one of the four objectives as it is, trained as the others are: none of the variations on them?"""
    s = run["s"]
    varied = any(s.get(flag) for flag in ("only_difficult", "no_canon", "no_qk_norm", "init_from", "n_train"))
    varied = varied or s.get("optimizer", "muon") != "muon"
    return not varied and bool(s.get("reverse")) == (s["objective"] == "reverse")


def split(runs, key):
    """Sort runs by their `objective` or `model`, always in the same order: {value: its runs}, no value without runs."""
    groups = {value: [run for run in runs if run["s"][key] == value] for value in (*OBJECTIVES, *MODELS)}
    return {value: group for value, group in groups.items() if group}


def final(runs, name):
    """A number at the end of training, the median over the seeds."""
    return median(run["log"][-1][name] for run in runs)


def learning_order(runs):
    """The step at which each token of the path first passes 90 %, teacher-forced: the median over the seeds.

    Returns: a list of path_len steps, math.inf for never.
    """
    first = lambda run, i: next((r["step"] for r in run["log"] if r["forced_accuracy"][i] >= PASS), math.inf)
    return [median_high(first(run, i) for run in runs) for i in range(runs[0]["graph"][1])]


# ---------------------------------------------------------------------------------------------------------
# The style: Okabe and Ito's colours, safe for the colour-blind, and a stroke and a hatch for those who print in grey

COLOR = {"next": "#D55E00", "reverse": "#009E73", "teacherless": "#0072B2", "multi": "#CC79A7"}
STROKE = {"next": "-", "reverse": (0, (6, 1.5)), "teacherless": (0, (6, 1.5, 1, 1.5)), "multi": (0, (1.5, 1))}
HATCH = {"next": "", "reverse": "///", "teacherless": "...", "multi": "xxx"}
STYLE = {o: {"color": COLOR[o], "ls": STROKE[o]} for o in OBJECTIVES}
CHANCE = {"color": "black", "ls": (0, (1, 2)), "lw": 1.5}
GREY = "#666666"
plt.rcParams.update({
    "font.size": 13.5, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
    "axes.titlesize": 15, "hatch.linewidth": 0.8, "svg.hashsalt": "plot.py",
})


def new_figure(title, note, height, rows=1, columns=1, right=1.95):
    """A figure 11 inches wide: the title on top, a note in small print below, room for labels right of each panel.

    Arguments: height and right (the room), in inches. Returns: Figure, array of Axes (rows, columns).
    """
    title = "\n".join("\n".join(textwrap.wrap(line, 84)) for line in title.split("\n"))
    fig, axes = plt.subplots(rows, columns, figsize=(11, height), squeeze=False, sharey=True)
    above, width = 0.95 + 0.26 * title.count("\n"), (11 - 1.05 - columns * right) / columns
    fig.subplots_adjust(1.05 / 11, 0.95 / height, 1 - right / 11, 1 - above / height, wspace=right / width, hspace=0.4)
    fig.text(0.015, 1 - 0.14 / height, title, size=15, weight="bold", va="top")
    fig.text(0.015, 0.13 / height, note, size=11.5, color=GREY)
    return fig, axes


def percent(axis):
    """Show the shares 0 to 1 on one axis of a panel in percent, with room for a line at either end."""
    axis.axes.set(**{f"{axis.axis_name}lim": (-0.03, 1.03)})
    axis.set_major_formatter(PercentFormatter(1))


def draw_seeds(ax, runs, x, y, **style):
    """Draw y against x, both functions of a line of the log: every run thin, the median at their common steps thick.

    Returns: the last point of the median, (x, y).
    """
    for run in runs if len(runs) > 1 else ():
        ax.plot([x(r) for r in run["log"]], [y(r) for r in run["log"]], **style | {"lw": 1, "alpha": 0.4})
    logs = [{r["step"]: r for r in run["log"]} for run in runs]
    steps = [step for step in logs[0] if all(step in log for log in logs)]
    if not steps:
        raise ValueError(f"{runs[0]['folder']} and the other seeds were evaluated at different steps; leave some out")
    xs, ys = ([median(f(log[step]) for log in logs) for step in steps] for f in (x, y))
    ax.plot(xs, ys, **{"lw": 3} | style)
    return xs[-1], ys[-1]


def label_right(ax, labels):
    """Name lines on the right of a panel at the heights where they end, pushed apart where they would touch.

    Arguments: labels, a list of (y, text, style of the line); of those at one height the first stands on top.
    """
    low, high = ax.get_ylim()
    inches = ax.get_position().height * ax.figure.get_figheight(), ax.get_position().width * 11
    gap, place, stroke = 0.27 * (high - low) / inches[0], math.inf, 0.4 / inches[1]
    for i, (y, text, style) in enumerate(sorted(labels, key=lambda label: -round(20 * label[0]))):
        place = max(min(y, place - gap), low + gap * (len(labels) - 1 - i))
        there = {"transform": ax.get_yaxis_transform(), "clip_on": False}
        ax.plot([1 + stroke / 4, 1 + stroke * 1.25], [place, place], **{"lw": 3} | style | there)
        ax.text(1 + stroke * 1.5, place, text, va="center", color=style["color"], weight="bold", **there)


def small_print(runs):
    deg, path_len, num_nodes = runs[0]["graph"]
    return f"G({deg},{path_len}), {num_nodes} node labels. Thin: single seeds; thick: their median."


def by_model(findings):
    """One title from a finding for each model, {model: sentence}."""
    if len(set(findings.values())) == 1:
        return " and ".join(MODELS[m] for m in findings) + ": " + next(iter(findings.values()))
    return "\n".join(f"{MODELS[m]}: {sentence}" for m, sentence in findings.items())


def listed(words):
    """a; a and b; a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


# ---------------------------------------------------------------------------------------------------------
# The pictures


def path_star():
    """Picture 1: a star graph G(2,5), the tokens of its prefix and target, and the cheat as an arrow."""
    fig, axes = new_figure("Only the first step needs a plan; every later node is one edge away from the last", "", 5.6)
    fig.subplots_adjust(0, 0, 1, 0.93)
    ax = axes[0, 0]
    ax.set(xlim=(0, 109), ylim=(0, 51))
    ax.axis("off")
    cheat, plan = COLOR["next"], COLOR["teacherless"]

    def write(x, y, text, color="black", align="left", **more):
        ax.text(x, y, text, color=color, ha=align, va="center", **more)

    def arrow(a, b, color, gap):
        style = {"arrowstyle": "-|>", "mutation_scale": 18, "lw": 2, "color": color, "shrinkA": gap, "shrinkB": gap}
        ax.annotate("", b, a, arrowprops=style)

    for arm, y in ((3, 7, 4, 1, 9), 45), ((3, 5, 2, 8, 6), 31):
        places = [(14, 38)] + [(30 + 15 * i, y) for i in range(4)]
        for a, b in zip(places, places[1:]):
            arrow(a, b, "black", 17)
        for (x, y), label in zip(places, arm):
            box = {"boxstyle": "circle,pad=0.35", "fc": {3: "black", 9: "#F0E442"}.get(label, "white"), "lw": 1.5}
            write(x, y, label, "white" if label == 3 else "black", "center", size=17, weight="bold", bbox=box)
    write(14, 32.5, "start", align="center")
    write(79, 45, "goal")
    write(79, 31, "the end of the wrong arm", GREY)
    write(30, 38, "7 or 5? The answer lies at the other end.", plan, weight="bold")

    column = lambda i: 14 + 3.4 * i
    prefix = "prefix", 20, 0, "1 9 | 5 2 | 3 7 | 8 6 | 7 4 | 2 8 | 3 5 | 4 1 / 3 9 =", {12: cheat, 13: cheat}
    target = "target", 6, 11, "3 7 4 1 9", {12: plan}
    for name, y, first, tokens, marked in prefix, target:
        write(1, y, name, GREY)
        for i, token in enumerate(tokens.split(), first):
            box = {"boxstyle": "square,pad=0.18", "fc": (*to_rgb(marked.get(i, "white")), 0.3), "ec": "none"}
            write(column(i), y, token, align="center", family="monospace", size=15, bbox=box)
    write(column(0) - 1, 24.5, "the edges, shuffled", GREY, size=11.5)
    write(column(24) - 1, 24.5, "start, goal", GREY, size=11.5)
    arrow((column(12), 6), (column(12), 20), cheat, 14)
    arrow((column(13), 20), (column(13), 6), cheat, 14)
    write(column(15), 13, "The cheat: once 7 is revealed,\nthe edge 7 4 gives 4 away.", cheat, weight="bold")
    difficult = "The difficult token: 7 comes\nfrom 9 ← 1 ← 4 ← 7, or by luck."
    write(column(10) + 1, 6, difficult, plan, "right", weight="bold")
    return fig


def exact_match_time(runs):
    """Picture 2: exact match against minutes of training, one panel a model. Arguments: plain runs of one graph."""
    deg = runs[0]["graph"][0]

    def finding(runs):
        ends = {o: final(seeds, "accuracy") for o, seeds in split(runs, "objective").items()}
        solved = [o for o in ends if ends[o] >= PASS]
        verdict = lambda v: f"{v:.0%}" + (", chance" if abs(v - 1 / deg) <= 0.05 else "")
        others = [f"{o} ends at {verdict(ends[o])}" for o in ends if o not in solved]
        return "; ".join([f"with {listed(solved)} it finds the path"] * bool(solved) + others)

    panels = split(runs, "model")
    title = by_model({m: finding(group) for m, group in panels.items()})
    fig, axes = new_figure(title, small_print(runs), 5.6, 1, len(panels))
    for ax, (m, group) in zip(axes[0], panels.items()):
        percent(ax.yaxis)
        ax.axhline(1 / deg, **CHANCE)
        labels = [(1 / deg, f"chance 1/{deg}", CHANCE)]
        for o, seeds in split(group, "objective").items():
            _, y = draw_seeds(ax, seeds, lambda r: r["seconds"] / 60, lambda r: r["accuracy"], **STYLE[o])
            labels.append((y, o, STYLE[o]))
        label_right(ax, labels)
        ax.set(title=MODELS[m], xlabel="time (minutes)")
    axes[0, 0].set_ylabel("exact match on unseen graphs")
    return fig


def positions(runs):
    """Picture 3: accuracy of each token of the path against steps, next beside teacherless, one row a model.

    Arguments: plain runs of one graph. Returns: a Figure, or None when the runs have neither objective.
    """
    rows = split([run for run in runs if run["s"]["objective"] in ("next", "teacherless")], "model")
    if not rows:
        return None
    deg, l, _ = runs[0]["graph"]
    names = ["start"] + [f"v{i}" for i in range(1, l - 1)] + ["goal"]
    inner = range(1, max(2, l - 1))  # the start and the goal can be copied from the end of the prefix

    def finding(objective, seeds):
        order = learning_order(seeds)
        missed = [names[i] for i in inner if order[i] == math.inf]
        if missed:
            return f"{objective} does not learn {listed(missed)} in {seeds[0]['log'][-1]['step']} steps"
        steps = sorted({order[i] for i in inner})
        together = [listed([names[i] for i in inner if order[i] == step]) for step in steps]
        return f"{objective} learns {', then '.join(together)}"

    cells = {m: split(group, "objective") for m, group in rows.items()}
    findings = {m: [finding(o, seeds) for o, seeds in row.items()] for m, row in cells.items()}
    title = by_model({m: "; ".join(sentences) for m, sentences in findings.items()})
    note = small_print(runs) + " Steps: first at 90%. Only next sees the true path so far."
    fig, axes = new_figure(title, note, 1.6 + 4 * len(cells), len(cells), max(map(len, cells.values())), right=2.2)
    for ax in axes.flat:
        ax.set_visible(False)
    for axes_row, (m, row) in zip(axes, cells.items()):
        for ax, (o, seeds) in zip(axes_row, row.items()):
            ax.set_visible(True)
            percent(ax.yaxis)
            ax.axhline(1 / deg, **CHANCE)
            labels, order = [(1 / deg, f"chance 1/{deg}", CHANCE)], learning_order(seeds)
            for i in sorted(range(l), key=lambda i: order[i]):
                tint = 0 if i == 1 else 0.25 + 0.3 * i / l  # the difficult token in the full colour
                style = {"color": [c + (1 - c) * tint for c in to_rgb(COLOR[o])], "lw": 4 if i == 1 else 2.5}
                style["ls"] = "-" if i == 1 else (0, ((1, 1), (8, 1), (5, 1.5), (5, 1.5, 1, 1.5), (2, 1))[i % 5])
                _, y = draw_seeds(ax, seeds, lambda r: r["step"], lambda r: r["forced_accuracy"][i], **style)
                labels.append((y, f"{names[i]}: {'not yet' if order[i] == math.inf else f'step {order[i]}'}", style))
            label_right(ax, labels)
            ax.set(title=f"{MODELS[m]}, {o}", xlabel="training step")
        axes_row[0].set_ylabel("accuracy of each token")
    return fig


def bars(runs):
    """Picture 4: exact match at the end of training by graph and objective, one row a model. Arguments: plain runs."""
    graphs, panels = sorted({run["graph"] for run in runs}), split(runs, "model")
    ends = {}  # the final accuracies of the seeds, by (objective, model, graph)
    for run in runs:
        key = run["s"]["objective"], run["s"]["model"], run["graph"]
        ends.setdefault(key, []).append(run["log"][-1]["accuracy"])
    shown = [o for o in OBJECTIVES if o in {key[0] for key in ends}]
    solved = {o: [median(ends[key]) >= PASS for key in ends if key[0] == o] for o in shown}
    counts = [f"{o} {sum(yes)} of {len(yes)}" for o, yes in solved.items()]
    title = f"Solved (exact match 90% or more): {', '.join(counts)}"
    note = "Bars: medians; dots: single seeds; dotted: chance."
    fig, axes = new_figure(title, note, 1.7 + 2.8 * len(panels), len(panels), right=0.2)
    white = {"fc": "white", "ec": "none", "pad": 0.5}
    bar_style = lambda o: {"fc": (*to_rgb(COLOR[o]), 0.3), "ec": COLOR[o], "hatch": HATCH[o], "lw": 1.5}
    for ax, m in zip(axes[:, 0], panels):
        percent(ax.yaxis)
        for x, graph in enumerate(graphs):
            here = [o for o in shown if (o, m, graph) in ends]
            for i, o in enumerate(here):
                place, seeds = x + 0.2 * (i - (len(here) - 1) / 2), ends[o, m, graph]
                ax.bar(place, median(seeds), 0.17, **bar_style(o))
                ax.plot([place] * len(seeds), seeds, "o", color="black", ms=4)
                ax.text(place, max(seeds) + 0.05, f"{100 * median(seeds):.0f}", ha="center", size=12, bbox=white)
            if here:
                ax.plot([x - 0.42, x + 0.42], [1 / graph[0]] * 2, **CHANCE)
                ax.text(x + 0.43, 1 / graph[0], f"1/{graph[0]}", va="center", size=11.5)
        ax.set(title=MODELS[m], ylabel="exact match", ylim=(0, 1.15), yticks=[0, 0.5, 1])
        ax.set_xlim(-0.5, len(graphs) - 0.4)
        ax.set_xticks(range(len(graphs)), [f"G({d},{l}), {n} labels" for d, l, n in graphs])
    handles = [plt.Rectangle((0, 0), 1, 1, label=o, **bar_style(o)) for o in shown]
    fig.legend(handles=handles, loc="lower right", ncols=4, frameon=False)
    return fig


def cheat(runs):
    """Picture 5: cheat rate against the difficult token's accuracy, a trajectory through training, one panel a model.

    Arguments: plain runs of one graph. Returns: a Figure, or None when no run has a cheat rate.
    """
    panels = split([run for run in runs if all("cheat_rate" in r for r in run["log"])], "model")
    if not panels:
        return None
    deg = runs[0]["graph"][0]

    def finding(group):
        walks = lambda seeds: f"walks {final(seeds, 'cheat_rate'):.0%} of wrong arms to the end"
        finds = lambda seeds: f"{final(seeds, 'difficult'):.0%} of first steps are right"
        return "; ".join(f"{o} {walks(seeds)}, {finds(seeds)}" for o, seeds in split(group, "objective").items())

    note = small_print(runs) + " On top, at chance: the Clever Hans cheat. Dot: the end of training."
    title = by_model({m: finding(group) for m, group in panels.items()})
    fig, axes = new_figure(title, note, 6, 1, len(panels), right=1.5)
    for ax, (m, group) in zip(axes[0], panels.items()):
        percent(ax.xaxis)
        percent(ax.yaxis)
        ax.axvline(1 / deg, **CHANCE)
        ax.text(1 / deg + 0.02, 0.5, f"chance 1/{deg}", weight="bold")
        labels = []
        for o, seeds in split(group, "objective").items():
            x, y = draw_seeds(ax, seeds, lambda r: r["difficult"], lambda r: r["cheat_rate"], **STYLE[o])
            ax.plot(x, y, "o", ms=12, color=COLOR[o], clip_on=False)
            labels.append((y, o, STYLE[o]))
        label_right(ax, labels)
        ax.set(title=MODELS[m], xlabel="first steps right (difficult token)")
    axes[0, 0].set_ylabel("wrong arms walked to the end")
    return fig


# ---------------------------------------------------------------------------------------------------------
# The command line


def draw(runs, graph, out):
    """Draw into the folder `out` all pictures that the runs allow, and say what is left out.

    Arguments: graph, (deg, path_len, num_nodes) for pictures 2, 3 and 5; None takes the one with most runs.
    Raises: ValueError, one sentence.
    """
    special = [str(run["folder"]) for run in runs if not is_plain(run)]
    runs = [run for run in runs if is_plain(run)]
    graphs = [run["graph"] for run in runs]
    shown = graph or max(sorted(set(graphs)), key=graphs.count, default=None)
    if runs and shown not in graphs:
        known = " ".join(",".join(map(str, g)) for g in sorted(set(graphs)))
        raise ValueError(f"--graph {','.join(map(str, shown))} is in none of the runs; give one of: {known}")
    save(path_star(), out, "path_star")
    if special:
        say(f"left out, being none of the four objectives as they are: {', '.join(special)}")
    if not runs:
        return
    if len(set(graphs)) > 1:
        count = f"{graphs.count(shown)} of {len(graphs)} runs"
        say(f"pictures 2, 3 and 5 show G({shown[0]},{shown[1]}) over {shown[2]} labels, {count}; --graph shows another")
    same = [run for run in runs if run["graph"] == shown]
    for group in [seeds for panel in split(same, "model").values() for seeds in split(panel, "objective").values()]:
        names = ("n_layer", "n_head", "n_embd", "batch_size", "steps", "decay", "lr", "n_train", "n_future")
        differ = [name for name in names if len({str(run["s"].get(name)) for run in group}) > 1]
        if differ:
            say(f"{group[0]['folder']} and others of its kind differ in {listed(differ)}; their median mixes them")
    save(exact_match_time(same), out, "exact_match_time")
    save(positions(same), out, "positions", "a run with next or teacherless")
    save(bars(runs), out, "bars")
    save(cheat(same), out, "cheat", "a run with next or multi")


def save(fig, out, name, need=None):
    """Write a picture as PNG and SVG, all or nothing; where there is none, say which runs it needs."""
    if fig is None:
        return say(f"the picture {name} is left out: it needs {need}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for kind, more in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
            fig.savefig(out / f"{name}.{kind}.tmp", format=kind, **more)
            os.replace(out / f"{name}.{kind}.tmp", out / f"{name}.{kind}")
    except OSError as fault:
        raise ValueError(f"{out}/{name} cannot be written ({fault.strerror}); give another folder with --out") from None
    plt.close(fig)
    print(out / f"{name}.png")


def main(argv=None):
    if hasattr(sys.stdout, "reconfigure"):  # where an encoding lacks a letter of a file's name, print its number
        sys.stdout.reconfigure(errors="backslashreplace")
    usage, pictures = __doc__.split("Nothing is")[0], "The pictures:" + __doc__.split("a picture:")[1]
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("plot.py", description=usage, epilog=pictures, formatter_class=plain)
    flag = parser.add_argument
    flag("folders", nargs="*", metavar="DIR", help="a run, or a folder of runs; default: all in results/")
    flag("--out", type=Path, default=Path("figures"), metavar="DIR", help="where pictures go (default: figures)")
    flag("--graph", metavar="D,L,N", help="deg,path_len,num_nodes of pictures 2, 3 and 5 (default: that of most runs)")
    parser.error = refuse  # one sentence, without the usage
    args = parser.parse_args(argv)
    try:
        graph = tuple(map(int, args.graph.split(","))) if args.graph else None
        if graph and len(graph) != 3:
            raise ValueError
    except ValueError:
        refuse(f"--graph {args.graph} is no graph; give deg,path_len,num_nodes, like 2,5,50")
    try:
        # Not every shell expands runs/*; a name that is there may hold brackets.
        named = []
        for name in args.folders:
            named += [name] if os.path.lexists(name) else sorted(glob.glob(name)) or [name]
        folders = named or [path.parent for path in sorted(Path("results").glob("*/config.json"))]
        if not folders:
            say("results/ holds no run, so only picture 1 is drawn; train one with: python train.py")
        draw(find_runs(folders) if folders else [], graph, args.out)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        sys.stdout = open(os.devnull, "w")  # Python would flush the broken one at its end
        refuse("standard output was closed before the end")
    except ValueError as fault:
        refuse(str(fault))
    except OSError as fault:
        refuse(f"{fault.filename or 'standard output'}: {fault.strerror}")
    except KeyboardInterrupt:
        sys.exit("\nplot.py: stopped")


def refuse(message):
    """Say in one sentence what is wrong, and leave with status 2."""
    say(message)
    sys.exit(2)


if __name__ == "__main__":
    main()
