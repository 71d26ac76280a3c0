"""Draw the lab's pictures from the logs that train.py leaves, each as a PNG and an SVG.

    python plot.py runs                     all runs in runs/, pictures to figures/
    python plot.py results --out slides     the committed runs, pictures to slides/
    python plot.py runs --graph 2,5,50      of several graphs, show G(2,5) over 50 labels

    path_star           the task: why every token but one can be copied (needs no log)
    exact_match_time    how often the whole path is right, through training
    positions           which token of the path is learned when
    margin              what the model believes about the first step, through training
    bars                how often the whole path is right in the end, graph by graph
    cheat               whether the model follows a wrong arm that it is put on
"""

import argparse
import glob
import json
import math
import os
import sys
from pathlib import Path
from statistics import median, median_high

os.environ["MPLBACKEND"] = "Agg"  # needs no display; a notebook's may not be installed here
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.ticker import PercentFormatter

# ------------------------------------------------------------------------------------------------
# Reading the logs

OBJECTIVES = ("next", "reverse", "teacherless", "multi")  # those of data.py, which imports torch
MODELS = {"gpt": "GPT", "mamba": "Mamba"}
LEARNED = 0.9  # a token counts as learned from this accuracy on


def say(sentence):
    print(f"plot.py: {sentence}", file=sys.stderr)


def find_runs(paths):
    """All runs in some folders, each a run or a folder of runs. Raises: ValueError, one sentence."""
    runs, remedy = [], "give the folder of a run, or train one with: python train.py"
    for path in map(Path, paths):
        if not os.path.exists(path):
            raise ValueError(f"{path} does not exist; {remedy}")
        for folder in path, *(sorted(path.iterdir()) if path.is_dir() else ()):
            if (folder / "config.json").exists() or (folder / "log.jsonl").exists():
                runs.append(read_run(folder))
    runs = [run for run in runs if run]
    if not runs:
        raise ValueError(f"there is no run in {' '.join(map(str, paths))}; {remedy}")
    return runs


def read_run(folder):
    """A run: a dict of folder, s (the settings), graph (deg, path_len, num_nodes) and log (a dict
    a line); None if it has no evaluation yet. Raises: ValueError, one sentence."""
    where, log = folder / "config.json", []
    try:
        s = json.loads(where.read_text(encoding="utf-8"))
        graph = s["deg"], s["path_len"], s["num_nodes"]
        known = s["objective"] in OBJECTIVES and s["model"] in tuple(MODELS)
        if not known or min(*graph, s["steps"]) < 1:
            raise ValueError
        where = folder / "log.jsonl"
        lines = where.read_text(encoding="utf-8").rstrip().splitlines() if where.exists() else []
        if lines and lines[-1].startswith("{") and not lines[-1].endswith("}"):
            lines.pop()
            say(f"{where}: the last line was written only half and is skipped")
        for number, line in enumerate(lines, 1):
            where = f"{folder / 'log.jsonl'}, line {number},"
            r = json.loads(line)
            numbers = [r[name] for name in ("step", "seconds", "accuracy", "difficult")]
            numbers += r["forced_accuracy"] + [r.get("cheat_rate", 0), abs(r.get("margin", 0))]
            good = all(0 <= x < 1e12 for x in numbers) and len(r["forced_accuracy"]) == graph[1]
            if not good or log and r["step"] <= log[-1]["step"]:
                raise ValueError
            log.append(r)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        fault = "is missing, damaged or out of order; fetch it again"
        raise ValueError(f"{where} {fault}, or leave {folder} out") from None
    if not log:
        return say(f"{folder} holds no evaluation yet and is skipped")
    if log[-1]["step"] < s["steps"]:
        say(f"{folder} is drawn as far as it has got, step {log[-1]['step']} of {s['steps']}")
    return {"folder": folder, "s": s, "graph": graph, "log": log}


def is_variation(run):
    """Is a run trained otherwise than the four objectives are, so that they must not be mixed?"""
    s = run["s"]
    flags = "only_difficult", "no_canon", "no_qk_norm", "no_mimetic", "init_from", "n_train"
    other_order = bool(s.get("reverse")) != (s["objective"] == "reverse")
    return any(map(s.get, flags)) or s.get("optimizer", "muon") != "muon" or other_order


def split(runs, key):
    """Sort runs by objective or model, always in the same order: {value: its runs}."""
    groups = {v: [run for run in runs if run["s"][key] == v] for v in (*OBJECTIVES, *MODELS)}
    return {value: group for value, group in groups.items() if group}


def learning_order(runs):
    """The step at which each token first passes 90 %, or math.inf: the median, (path_len,)."""
    def first(run, i):
        return next((r["step"] for r in run["log"] if r["forced_accuracy"][i] >= LEARNED), math.inf)
    return [median_high(first(run, i) for run in runs) for i in range(runs[0]["graph"][1])]


# ------------------------------------------------------------------------------------------------
# The style: Okabe and Ito's colours, safe for the colour-blind; strokes and hatches for grey print

COLOR = {"next": "#D55E00", "reverse": "#009E73", "teacherless": "#0072B2", "multi": "#CC79A7"}
DASHES = {"next": None, "reverse": (5, 1.5), "teacherless": (5, 1.5, 1, 1.5), "multi": (1, 1)}
HATCH = {"next": "", "reverse": "///", "teacherless": "...", "multi": "xxx"}
LINE = {o: {"color": COLOR[o], "ls": (0, DASHES[o])} for o in OBJECTIVES}
BAR = {o: {"fc": (*to_rgb(c), 0.3), "ec": c, "hatch": HATCH[o], "lw": 1.5} for o, c in COLOR.items()}
DOTTED = {"color": "black", "ls": (0, (1, 2)), "lw": 1.5}
plt.rcParams |= {
    "font.size": 13.5, "axes.titlesize": 15, "axes.titleweight": "bold", "hatch.linewidth": 0.8,
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "legend.handlelength": 3.2, "svg.hashsalt": "the same bytes each time",
}


def graph_name(run):
    return "G({},{}), {} labels".format(*run["graph"])


def new_figure(title, caption, rows=1, columns=1, panel=4.2):
    """A figure 11 inches wide, with a caption of two lines at most, and panels that show shares in
    percent, each `panel` inches high. Returns: Figure, array of Axes (rows, columns)."""
    height = 1.25 + rows * panel
    fig, axes = plt.subplots(rows, columns, figsize=(11, height), squeeze=False, sharey=True,
                             layout="constrained")
    fig.get_layout_engine().set(rect=(0.01, 0.01, 0.98, 0.99 - 1.15 / height), hspace=0.06)
    fig.text(0.015, 1 - 0.14 / height, title, size=17, weight="bold", va="top")
    fig.text(0.015, 1 - 0.52 / height, caption, size=12, color="#444444", va="top")
    axes[0, 0].set_ylim(-0.03, 1.03)
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1))
    return fig, axes


def draw_seeds(ax, runs, x, y, **style):
    """Draw y against x, functions of a log's line: each run thin, and thick the median of all, at
    the steps that they share."""
    for run in runs:
        thin = style | {"lw": 1, "ms": 4, "alpha": 0.4, "label": None}
        ax.plot([x(r) for r in run["log"]], [y(r) for r in run["log"]], **thin)
    logs = [{r["step"]: r for r in run["log"]} for run in runs]
    steps = [step for step in logs[0] if all(step in log for log in logs)]
    xs, ys = ([median(f(log[step]) for log in logs) for step in steps] for f in (x, y))
    ax.plot(xs, ys, **{"lw": 3} | style)


def panel_a_model(runs, title, caption, x, y, **style):
    """A figure with a panel a model, and in it a line an objective. Arguments: x and y, each what
    the axis is called and a function of a log's line."""
    panels, objectives = split(runs, "model"), split(runs, "objective")
    fig, axes = new_figure(title, caption, 1, len(panels))
    for ax, (m, group) in zip(axes[0], panels.items()):
        for o, seeds in split(group, "objective").items():
            draw_seeds(ax, seeds, x[1], y[1], **LINE[o], **style)
        ax.set(title=MODELS[m], xlabel=x[0])
    axes[0, 0].set_ylabel(y[0])
    handles = [plt.Line2D([], [], lw=3, label=o, **LINE[o]) for o in objectives]
    fig.legend(handles=handles, loc="outside lower center", ncols=4)
    return fig


# ------------------------------------------------------------------------------------------------
# The pictures. Each function takes runs, of one graph but for bars, and returns a Figure.


def path_star():
    """A graph G(2,5), the tokens of its prefix and target, and the cheat as an arrow."""
    fig, ((ax,),) = new_figure(
        "Only the first step needs a plan; every later node is one edge away",
        "Above: the graph. Below: what the model is given (prefix) and must write (target).")
    ax.set(xlim=(0, 109), ylim=(2, 49))
    ax.axis("off")
    orange, blue = COLOR["next"], COLOR["teacherless"]

    def write(x, y, text, color="black", ha="left", **more):
        weight = "normal" if color == "black" else "bold"
        ax.text(x, y, text, color=color, ha=ha, va="center", **{"weight": weight} | more)

    def arrow(a, b, color, gap):
        style = {"arrowstyle": "-|>", "mutation_scale": 18, "lw": 2, "color": color}
        ax.annotate("", b, a, arrowprops=style | {"shrinkA": gap, "shrinkB": gap})

    for arm, y in ("37419", 45), ("35286", 31):
        places = [(14, 38), (30, y), (45, y), (60, y), (75, y)]
        for a, b in zip(places, places[1:]):
            arrow(a, b, "black", 17)
        for (x, y), node in zip(places, arm):
            fill = {"3": "#BBBBBB", "9": "#F0E442"}.get(node, "white")
            circle = {"boxstyle": "circle,pad=0.35", "lw": 1.5, "fc": fill}
            write(x, y, node, ha="center", size=17, weight="bold", bbox=circle)
    write(14, 32, "start", ha="center")
    write(79, 45, "goal")
    write(79, 31, "the end of the wrong arm")
    write(30, 38, "7 or 5? The answer lies at the other end.", blue)

    prefix = "1 9 | 5 2 | 3 7 | 8 6 | 7 4 | 2 8 | 3 5 | 4 1 / 3 9 ="
    for name, tokens, x, y in ("prefix", prefix, 14, 20), ("target", "3 7 4 1 9", 51.4, 6):
        write(1, y, name)
        for i, token in enumerate(tokens.split()):
            write(x + 3.4 * i, y, token, ha="center", family="monospace", size=15)
    for x, y, color in (54.8, 20, orange), (58.2, 20, orange), (54.8, 6, blue):
        ax.plot(x, y, "s", ms=22, color=color, alpha=0.3, mec="none")
    arrow((54.8, 6), (54.8, 20), orange, 14)
    arrow((58.2, 20), (58.2, 6), orange, 14)
    write(62, 13, "The cheat: once 7 is revealed,\nthe edge 7 4 gives 4 away.", orange)
    write(52, 13, "The difficult token: 7 comes\nfrom 9 ← 1 ← 4 ← 7, or by luck.", blue, "right")
    return fig


def exact_match_time(runs):
    """Exact match against minutes of training, one panel a model."""
    fig = panel_a_model(
        runs, f"How often does the model find the whole path of {graph_name(runs[0])}?",
        "Exact match on unseen graphs. Thin: single seeds; thick: their median.\n"
        "Dotted: chance, for a model that guesses the first step and makes no other mistake.",
        ("time (minutes)", lambda r: r["seconds"] / 60), ("exact match", lambda r: r["accuracy"]))
    for ax in fig.axes:
        ax.axhline(1 / runs[0]["graph"][0], **DOTTED)
    return fig


def positions(runs):
    """Accuracy of each token of the path against steps, next beside teacherless, a row a model."""
    deg, l, _ = runs[0]["graph"]
    names = {0: " (start)", l - 1: " (goal)", 1: " (difficult)"}
    dashes = [(1, 1), None, (8, 1), (4, 1), (4, 1, 1, 1), (2, 1)]
    rows, columns = split(runs, "model"), split(runs, "objective")
    fig, axes = new_figure(
        f"Which token of the path is learned when, in {graph_name(runs[0])}?",
        "Only next is shown the true path so far. Thin: single seeds; thick: their median. 90 %: the"
        " step at which\nit first gets there; a panel ends soon after its last token has.",
        len(rows), len(columns), panel=max(4.2, 0.5 * (l + 2)))
    for ax in axes.flat:
        ax.set_visible(False)
    for row, (m, group) in zip(axes, rows.items()):
        row[0].set_ylabel("accuracy of each token")
        for ax, (o, seeds) in zip(row, split(group, "objective").items()):
            ax.set(visible=True, title=f"{MODELS[m]}, {o}", xlabel="training step")
            order = learning_order(seeds)
            for i in sorted(range(l), key=lambda i: order[i]):
                when = f"90 % at step {order[i]}" if order[i] < math.inf else "below 90 %"
                draw_seeds(ax, seeds, lambda r: r["step"], lambda r: r["forced_accuracy"][i],
                           label=f"token {i}{names.get(i, '')}\n{when}", lw=4 if i == 1 else 2.5,
                           color=plt.cm.plasma(0.85 * i / l), ls=(0, dashes[i % 6]))
            ax.axhline(1 / deg, label=f"chance 1/{deg}", **DOTTED)
            ax.set_xlim(0, min(1.3 * max(order), ax.dataLim.x1) or None)
            ax.legend(loc="upper left", bbox_to_anchor=(1, 1.05), fontsize=12)
    return fig


def margin(runs):
    """The margin of the difficult token against steps, one panel a model."""
    fig = panel_a_model(
        runs, f"What does the model believe about the first step in {graph_name(runs[0])}?",
        "Margin: log-probability of the right first node less that of the likeliest wrong arm's; the "
        "mean.\nDotted: undecided; 3 nats: odds of 20 to 1. Thin: single seeds; thick: their median.",
        ("training step", lambda r: r["step"]), ("margin (nats)", lambda r: r["margin"]))
    values = [r["margin"] for run in runs for r in run["log"]]
    for ax in fig.axes:
        ax.set_yscale("symlog", linthresh=1)
        ax.set_ylim(min(-0.5, 1.5 * min(values)), max(3, 1.5 * max(values)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.axhline(0, **DOTTED)
    return fig


def bars(runs):
    """Exact match at the end of training by graph and objective, one panel a model."""
    panels, objectives = split(runs, "model"), split(runs, "objective")
    fig, axes = new_figure(
        "How often is the whole path right after training?",
        "Exact match on unseen graphs. Bars and the numbers below them: medians, in percent.\n"
        "Dots: single seeds. Dotted: chance, for a model that guesses the first step.",
        len(panels), panel=3.2)
    for ax, (m, group) in zip(axes[:, 0], panels.items()):
        graphs = {graph_name(r): r["graph"] for r in sorted(group, key=lambda r: r["graph"])}
        for x, (graph, (deg, _, _)) in enumerate(graphs.items()):
            here = split([run for run in group if graph_name(run) == graph], "objective")
            for i, (o, seeds) in enumerate(here.items()):
                place = x + 0.2 * (i - (len(here) - 1) / 2)
                ends = [run["log"][-1]["accuracy"] for run in seeds]
                ax.bar(place, median(ends), 0.17, **BAR[o])
                ax.plot([place] * len(ends), ends, "o", color="black", ms=4, clip_on=False)
                ax.text(place, -0.04, f"{100 * median(ends):.0f}", ha="center", va="top", size=12)
            ax.plot([x - 0.42, x + 0.42], [1 / deg] * 2, **DOTTED)
            ax.text(x + 0.43, 1 / deg, f"1/{deg}", va="center", size=12)
        ax.set_xticks(range(len(graphs)), graphs)
        ax.tick_params(axis="x", length=0, pad=22)
        ax.set(title=MODELS[m], ylabel="exact match", ylim=(0, 1.05), xlim=(-0.5, len(graphs) - 0.4))
    handles = [plt.Rectangle((0, 0), 1, 1, label=o, **BAR[o]) for o in objectives]
    fig.legend(handles=handles, loc="outside lower center", ncols=4)
    return fig


def cheat(runs):
    """The cheat rate against the difficult token, a line through training, one panel a model."""
    fig = panel_a_model(
        runs, f"Does the model follow a wrong arm that it is put on, in {graph_name(runs[0])}?",
        "Followed: it names every inner node of that arm. Thin: single seeds; thick: their median. "
        "Dot: the end of\ntraining. Dotted: chance. A dot on top, at chance, is the Clever Hans cheat.",
        ("first steps right (difficult token)", lambda r: r["difficult"]),
        ("wrong arms followed", lambda r: r["cheat_rate"]), marker="o", markevery=[-1], ms=12)
    for ax in fig.axes:
        ax.set_xlim(-0.03, 1.03)
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.axvline(1 / runs[0]["graph"][0], **DOTTED)
    return fig


# ------------------------------------------------------------------------------------------------
# The command line


def draw(runs, graph):
    """All pictures that the runs allow, {name: Figure}. Arguments: graph, "D,L,N", what all but
    bars show; None: that of most runs. Raises: ValueError, one sentence."""
    left_out = [str(run["folder"]) for run in runs if is_variation(run)]
    if left_out:
        say(f"left out, being none of the four objectives as they are: {', '.join(left_out)}")
    runs = [run for run in runs if not is_variation(run)]
    if not runs:
        return {"path_star": path_star()}
    names = [",".join(map(str, run["graph"])) for run in runs]
    graph = graph or max(sorted(set(names)), key=names.count)
    same = [run for run, name in zip(runs, names) if name == graph]
    if not same:
        known = " ".join(sorted(set(names)))
        raise ValueError(f"--graph {graph} is in none of the runs; give one of: {known}")
    if len(same) < len(runs):
        shown = f"{graph_name(same[0])}, {len(same)} of {len(runs)} runs"
        say(f"all pictures but bars show {shown}; --graph shows another")
    sizes = "n_layer", "n_head", "n_embd", "batch_size", "steps", "decay", "lr", "n_future"
    for panel in split(same, "model").values():
        for seeds in split(panel, "objective").values():
            differ = [n for n in sizes if len({str(run["s"].get(n)) for run in seeds}) > 1]
            if differ:
                say(f"{seeds[0]['folder']} and its other seeds differ in {', '.join(differ)}")
    pictures = {"path_star": path_star(), "exact_match_time": exact_match_time(same)}
    pairs = [run for run in same if run["s"]["objective"] in ("next", "teacherless")]
    with_margin = [run for run in same if all("margin" in r for r in run["log"])]
    with_cheat = [run for run in same if all("cheat_rate" in r for r in run["log"])]
    for picture, group in (positions, pairs), (margin, with_margin), (bars, runs), (cheat, with_cheat):
        if group:
            pictures[picture.__name__] = picture(group)
        else:
            say(f"the picture {picture.__name__} is left out: no run's log has what it shows")
    return pictures


def main(argv=None):
    parser = argparse.ArgumentParser("plot.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda fault: parser.exit(2, f"plot.py: {fault}\n")  # without the usage
    parser.add_argument("folders", nargs="*", metavar="DIR", help="default: all runs in results/")
    parser.add_argument("--out", type=Path, default="figures", metavar="DIR")
    parser.add_argument("--graph", metavar="D,L,N", help="default: that of most runs")
    args = parser.parse_args(argv)
    folders = []
    for name in args.folders:  # not every shell expands runs/*; a name may hold brackets, too
        folders += [name] if os.path.lexists(name) else sorted(glob.glob(name)) or [name]
    folders = folders or sorted(path.parent for path in Path("results").glob("*/config.json"))
    if not folders:
        say("results/ holds no run, so only path_star is drawn; train one with: python train.py")
    try:
        pictures = draw(find_runs(folders) if folders else [], args.graph)
        args.out.mkdir(parents=True, exist_ok=True)
        for name, fig in pictures.items():
            for kind, more in ("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}}):
                half = args.out / f"{name}.{kind}.tmp"  # a picture is written whole or not at all
                fig.savefig(half, format=kind, **more)
                os.replace(half, half.with_suffix(""))
            say(f"drew {args.out / name}.png and .svg")
    except ValueError as fault:
        parser.error(fault)
    except OSError as fault:
        parser.error(f"{fault.filename}: {fault.strerror}; give another folder (--out for pictures)")


if __name__ == "__main__":
    main()
