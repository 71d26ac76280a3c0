"""Draw the lab's pictures from the logs that train.py leaves, each as a PNG and an SVG.

    python plot.py                          the committed runs in results/, pictures to figures/
    python plot.py runs --out slides        all runs in runs/, pictures to slides/
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
from collections import Counter
from pathlib import Path
from statistics import median, median_high, mode

os.environ["MPLBACKEND"] = "Agg"  # needs no display; a notebook's may not be installed here
import matplotlib.pyplot as plt

from settings import CHOICES

# ------------------------------------------------------------------------------------------------
# Reading the logs
OBJECTIVES = CHOICES["objective"]
MODELS = {"gpt": "GPT", "mamba": "Mamba"}
SIZES = "n_layer n_head n_embd batch_size steps decay lr weight_decay n_future d_state".split()


def say(sentence):
    print(f"plot.py: {sentence}", file=sys.stderr)


def find_runs(names):
    """All runs in folders of these names or patterns; a folder is a run, or holds some."""
    runs = []
    for name in names:  # not every shell expands runs/*; a name may hold brackets, too
        paths = [name] if os.path.exists(name) else sorted(glob.glob(str(name)))
        if not paths:
            raise ValueError(f"{name} does not exist; give the folder of a run")
        for folder in [f for path in map(Path, paths) for f in (path, *sorted(path.glob("*")))]:
            if (folder / "config.json").exists() or (folder / "log.jsonl").exists():
                runs.append(read_run(folder))
    return [run for run in runs if run]


def read_run(folder):
    """A run, as a dict; None if it has no evaluation yet. Raises: ValueError, one sentence."""
    where, log = folder / "config.json", []
    try:
        s = json.loads(where.read_text(encoding="utf-8"))
        graph = s["deg"], s["path_len"], s["num_nodes"]
        s.setdefault("causal", s["model"] == "gpt")  # as all GPTs were before there was the flag
        s["d_state"] = s.get("d_state", 16) if s["model"] == "mamba" else None  # a GPT has none
        known = s["objective"] in OBJECTIVES and s["model"] in MODELS
        if not known or min(*graph, s["steps"], s["batch_size"]) < 1:
            raise ValueError
        where = folder / "log.jsonl"
        lines = where.read_text(encoding="utf-8").rstrip().splitlines() if where.exists() else []
        if lines and lines[-1].startswith("{") and not lines[-1].endswith("}"):
            lines.pop()
            say(f"{where}: the last line was written only half and is skipped")
        for number, line in enumerate(lines, 1):
            where = f"{folder / 'log.jsonl'}, line {number},"
            r = json.loads(line)
            numbers = [r[name] for name in ("step", "graphs", "seconds", "accuracy", "difficult")]
            numbers += r["forced_accuracy"] + [r.get("cheat_rate", 0), abs(r.get("margin", 0))]
            good = all(0 <= x < 1e12 for x in numbers) and len(r["forced_accuracy"]) == graph[1]
            if not good or log and r["step"] <= log[-1]["step"]:
                raise ValueError
            log.append(r)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{where} is missing, damaged or disordered; leave {folder} out") from None
    if not log:
        return say(f"{folder} holds no evaluation yet and is skipped")
    if log[-1]["step"] < s["steps"]:
        say(f"{folder} is drawn as far as it has got, step {log[-1]['step']} of {s['steps']}")
    name = "G({},{}), {} labels".format(*graph)
    return {"folder": folder, "s": s, "graph": graph, "graph_name": name, "log": log}


def variation_of(run, but=()):
    """How a run differs from the four objectives in more than its sizes: flags, or "" if not.

    Runs that differ so must not mix. Arguments: but, names of settings that may differ.
    """
    s, usual, differs = run["s"], {"optimizer": "muon", "idea": "train"}, []
    names = "only_difficult causal no_canon no_mimetic init_from n_train train_file optimizer idea"
    for name in set(names.split()) - set(but):
        if s.get(name) and s[name] != usual.get(name):
            differs.append(f"--{name}" if s[name] is True else f"--{name} {s[name]}")
    if bool(s.get("reverse")) != (s["objective"] == "reverse"):
        differs.append("--reverse")
    return " ".join(sorted(differs))


def setting_of(run):
    """What an idea must share with an objective to stand beside it in beyond/README.md: a tuple."""
    names = "model", "causal", "n_layer", "n_embd", "steps", "batch_size"
    return run["graph"], *(run["s"].get(name) for name in names)


def split(runs, key):
    """Sort runs by objective or model, always in the same order: {value: its runs}."""
    groups = {v: [run for run in runs if run["s"][key] == v] for v in (*OBJECTIVES, *MODELS)}
    return {value: group for value, group in groups.items() if group}


def learning_order(runs):
    """The step at which each token first passes 90 %, or math.inf: the median, (path_len,)."""
    def first(run, i):
        return next((r["step"] for r in run["log"] if r["forced_accuracy"][i] >= 0.9), math.inf)
    return [median_high(first(run, i) for run in runs) for i in range(runs[0]["graph"][1])]


# ------------------------------------------------------------------------------------------------
# The style: Okabe and Ito's colours, safe for the colour-blind; strokes and hatches for grey print
COLOR = {"next": "#D55E00", "reverse": "#009E73", "teacherless": "#0072B2", "multi": "#CC79A7"}
DASHES = {"next": None, "reverse": (5, 1.5), "teacherless": (5, 1.5, 1, 1.5), "multi": (1, 1)}
HATCH = {"next": "", "reverse": "///", "teacherless": "...", "multi": "xxx"}
LINE = {o: {"color": COLOR[o], "ls": (0, DASHES[o])} for o in OBJECTIVES}
BAR = {o: {"fc": (COLOR[o], 0.3), "ec": COLOR[o], "hatch": HATCH[o], "lw": 1.5} for o in OBJECTIVES}
DOTTED = {"color": "black", "ls": (0, (1, 2)), "lw": 1.5}
plt.rcParams |= {
    "font.size": 13.5, "axes.titlesize": 15, "axes.titleweight": "bold", "legend.frameon": False,
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "figure.constrained_layout.use": True, "svg.hashsalt": "the same bytes each time",
}


def new_figure(title, caption, rows=1, columns=1, panel=4.2):
    """A figure 11 inches wide; panels in percent, `panel` inches high. Returns: Figure, Axes."""
    height = 1.25 + rows * panel
    fig, axes = plt.subplots(rows, columns, figsize=(11, height), squeeze=False, sharey=True)
    fig.get_layout_engine().set(rect=(0.01, 0.01, 0.98, 0.99 - 1.15 / height), hspace=0.06)
    fig.text(0.015, 1 - 0.14 / height, title, size=17, weight="bold", va="top")
    fig.text(0.015, 1 - 0.52 / height, caption, size=12, color="#444444", va="top")
    axes[0, 0].set_ylim(-0.03, 1.03)
    axes[0, 0].yaxis.set_major_formatter("{x:.0%}")
    return fig, axes


def draw_seeds(ax, runs, x, y, **style):
    """Draw y(r) against x(r), r a log's line: the runs thin, their median at common steps thick."""
    for run in runs:
        thin = style | {"lw": 1, "ms": 4, "alpha": 0.4, "label": None}
        ax.plot([x(r) for r in run["log"]], [y(r) for r in run["log"]], **thin)
    logs = [{r["step"]: r for r in run["log"]} for run in runs]
    steps = [step for step in logs[0] if all(step in log for log in logs)]
    xs, ys = ([median(f(log[step]) for log in logs) for step in steps] for f in (x, y))
    ax.plot(xs, ys, **{"lw": 3} | style)


def panel_a_model(runs, title, caption, x, y, dotted, **style):
    """A panel for each model, with a line for each objective. Arguments: x and y, each a name
    and a function of a log's line; dotted, the axis and the value of a dotted line."""
    panels, objectives = split(runs, "model"), split(runs, "objective")
    fig, axes = new_figure(title, caption, 1, len(panels))
    for ax, (m, group) in zip(axes[0], panels.items()):
        for o, seeds in split(group, "objective").items():
            draw_seeds(ax, seeds, x[1], y[1], **LINE[o], **style)
        (ax.axvline if dotted[0] == "x" else ax.axhline)(dotted[1], **DOTTED)
        ax.set(title=MODELS[m], xlabel=x[0])
    axes[0, 0].set_ylabel(y[0])
    handles = [plt.Line2D([], [], lw=3, label=o, **LINE[o]) for o in objectives]
    fig.legend(handles=handles, loc="outside lower center", ncols=4, handlelength=3.2)
    return fig


# ------------------------------------------------------------------------------------------------
# The pictures. Each function takes runs, of one graph but for bars, and returns a Figure.

def path_star():
    """A graph G(2,5), the tokens of its prefix and target, and the cheat as an arrow."""
    fig, ((ax,),) = new_figure(
        "Only the first step needs a plan; every later node is one edge away",
        "Above: the graph. Below: what the model is given (prefix) and must write (target).")
    ax.set(xlim=(0, 100), ylim=(0, 49))
    ax.axis("off")
    orange, blue = COLOR["next"], COLOR["teacherless"]
    arrow = dict(arrowstyle="-|>", fc="black", lw=2, mutation_scale=18, shrinkA=17, shrinkB=17)
    for arm, y in ("37419", 45), ("35286", 31):
        places = [(15, 38), (29, y), (43, y), (57, y), (71, y)]
        for a, b in zip(places, places[1:]):
            ax.annotate("", b, a, arrowprops=arrow)
        for (x, y), node in zip(places, arm):
            fill = {"3": "#BBBBBB", "9": "#F0E442"}.get(node, "white")
            circle = dict(boxstyle="circle,pad=0.35", lw=1.5, fc=fill)
            ax.text(x, y, node, ha="center", va="center", size=17, weight="bold", bbox=circle)
    for y, color, text in (
        (45, "black", "                                                           goal"),
        (38, "black", "start"),
        (38, blue, "                  7 or 5? The answer lies at the other end."),
        (31, "black", "                                                           the wrong arm"),
        (20, "black", "prefix  1 9 | 5 2 | 3 7 | 8 6 |     | 2 8 | 3 5 | 4 1 / 3 9 ="),
        (20, orange, "                                7 4"),
        (15, orange, "                                ↑ ↓   The cheat: once 7 is revealed,"),
        (11, orange, "                                ↑ ↓   the edge 7 4 gives 4 away."),
        (6, "black", "target                        3   4 1 9"),
        (6, blue, "                                7"),
        (1, blue, "        The difficult token: 7 comes from 9 ← 1 ← 4 ← 7, or by luck."),
    ):
        ax.text(1, y, text, color=color, va="center", family="monospace", size=16, weight="bold")
    return fig


def exact_match_time(runs):
    """Exact match against minutes of training on the commonest device, a panel for each model."""
    device = mode(run["s"].get("device") for run in runs)
    here = [run for run in runs if run["s"].get("device") == device]
    if len(here) < len(runs):
        say(f"exact_match_time shows runs on {device} alone: other minutes do not compare")
    return panel_a_model(
        here, f"How often does the model find the whole path of {runs[0]['graph_name']}?",
        "Exact match on unseen graphs. Thin: single seeds; thick: their median.\n"
        "Dotted: chance, for a model that guesses the first step and makes no other mistake.",
        ("time (minutes)", lambda r: r["seconds"] / 60), ("exact match", lambda r: r["accuracy"]),
        dotted=("y", 1 / runs[0]["graph"][0]))


def positions(runs):
    """Accuracy of each token against steps: next and teacherless, a row for each model."""
    deg, l, _ = runs[0]["graph"]
    names = {0: " (start)", l - 1: " (goal)", 1: " (difficult)"}
    dashes = [(1, 1), None, (8, 1), (4, 1), (4, 1, 1, 1), (2, 1)]
    rows, columns = split(runs, "model"), split(runs, "objective")
    fig, axes = new_figure(
        f"Which token of the path is learned when, in {runs[0]['graph_name']}?",
        "Only next is shown the true path so far. 90 %: the step at which a token gets there.\n"
        "A panel ends soon after the last token gets there. Thin: seeds; thick: their median.",
        len(rows), len(columns), panel=max(4.2, 0.5 * (l + 2)))
    plt.setp(axes.flat, visible=False)
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
            ax.legend(loc="upper left", bbox_to_anchor=(1, 1.05), fontsize=12, handlelength=3.2)
    return fig


def margin(runs):
    """The margin of the difficult token against steps, one panel for each model."""
    fig = panel_a_model(
        runs, f"What does the model believe about the first step in {runs[0]['graph_name']}?",
        "Margin: log-probability of the right first node less that of the likeliest wrong one.\n"
        "Dotted: undecided. 3 nats: odds of 20 to 1. Thin: single seeds; thick: their median.",
        ("training step", lambda r: r["step"]), ("margin (nats)", lambda r: r["margin"]),
        dotted=("y", 0))
    values = [r["margin"] for run in runs for r in run["log"]]
    for ax in fig.axes:
        ax.set_yscale("symlog", linthresh=1)
        ax.set_ylim(min(-0.5, 1.5 * min(values)), max(3, 1.5 * max(values)))
        ax.yaxis.set_major_formatter("{x:g}")
    return fig


def bars(runs):
    """Exact match by graph and objective, where most graphs were seen, one panel for each model."""
    seen = lambda run: run["log"][-1]["graphs"]
    panels = split(runs, "model")
    fig, axes = new_figure(
        "How often is the whole path right after training?",
        "Exact match on unseen graphs, of the runs that were trained on most. Bars: medians, as\n"
        "the percentages below. Dots: single runs. Dotted: chance, for a guess at the first step.",
        len(panels), panel=3.2)
    for ax, (m, group) in zip(axes[:, 0], panels.items()):
        graphs = {r["graph_name"]: r["graph"] for r in sorted(group, key=lambda r: r["graph"])}
        for x, (graph, (deg, _, _)) in enumerate(graphs.items()):
            here = [run for run in group if run["graph_name"] == graph]
            for o, seeds in split(here, "objective").items():
                place = x + 0.2 * OBJECTIVES.index(o) - 0.3
                most = max(map(seen, seeds))
                ends = [run["log"][-1]["accuracy"] for run in seeds if seen(run) == most]
                ax.bar(place, median(ends), 0.17, **BAR[o])
                ax.plot([place] * len(ends), ends, "o", color="black", ms=4, clip_on=False)
                ax.text(place, -0.04, f"{100 * median(ends):.0f}", ha="center", va="top", size=12)
            ax.plot([x - 0.42, x + 0.42], [1 / deg] * 2, **DOTTED)
            ax.text(x + 0.43, 1 / deg, f"1/{deg}", va="center", size=12)
        ax.set_xticks(range(len(graphs)), graphs, y=-0.09)
        ax.set(title=MODELS[m], ylabel="exact match", xlim=(-0.5, len(graphs) - 0.4), ylim=0)
    handles = [plt.Rectangle((0, 0), 1, 1, label=o, **BAR[o]) for o in split(runs, "objective")]
    fig.legend(handles=handles, loc="outside lower center", ncols=4)
    return fig


def cheat(runs):
    """The cheat rate against the difficult token, through training, a panel for each model."""
    fig = panel_a_model(
        runs, f"Does the model follow a wrong arm that it is put on, in {runs[0]['graph_name']}?",
        "Followed: every further inner node named. Top of the dotted line: the cheat.\n"
        "Dots: the end of training. Thin: single seeds; thick: their median.",
        ("first steps right (difficult token)", lambda r: r["difficult"]),
        ("wrong arms followed", lambda r: r["cheat_rate"]),
        dotted=("x", 1 / runs[0]["graph"][0]), marker="o", markevery=[-1], ms=12)
    plt.setp(fig.axes, xlim=(-0.03, 1.03))
    plt.setp([ax.xaxis for ax in fig.axes], major_formatter="{x:.0%}")
    return fig


# ------------------------------------------------------------------------------------------------
# The command line

def draw(runs, graph):
    """All pictures that the runs allow, {name: Figure}. graph: "D,L,N", or None for most runs'."""
    variations = {variation_of(run) for run in runs}
    if len(variations) > 1 or "--idea" in "".join(variations):
        for run in filter(variation_of, runs):
            say(f"{run['folder']} is left out, being none of the four objectives as they are")
        runs = [run for run in runs if not variation_of(run)]
    elif any(variations):
        say(f"all runs have {variations.pop()}, which the pictures do not say")
    if not runs:
        say("no run is left, so only path_star is drawn; train one with: python train.py")
        return {"path_star": path_star()}
    names = [",".join(map(str, run["graph"])) for run in runs]
    graph = graph or max(sorted(set(names)), key=names.count)
    same = [run for run, name in zip(runs, names) if name == graph]
    if not same:
        raise ValueError(f"no run has --graph {graph}; give one of: {' '.join(sorted(set(names)))}")
    if len(same) < len(runs):
        say(f"all pictures but bars show {same[0]['graph_name']}, {len(same)} of {len(runs)} runs")
    groups = [s for m in split(same, "model").values() for s in split(m, "objective").values()]
    for seeds in groups:
        length = lambda run: (run["s"]["steps"], run["s"]["batch_size"])
        (commonest, count), *others = Counter(map(length, seeds)).most_common(2)
        if others and count > others[0][1]:  # longer runs would stretch every picture
            usual = "{:,} steps of {:,} graphs".format(*commonest)
            say(f"all pictures but bars leave out {len(seeds) - count} that had not {usual}")
            seeds[:] = [run for run in seeds if length(run) == commonest]
        differ = [n for n in SIZES if len({str(run["s"].get(n)) for run in seeds}) > 1]
        if differ:
            say(f"{seeds[0]['folder']} and its other seeds differ in {', '.join(differ)}")
    same = [run for seeds in groups for run in seeds]
    pairs = [run for run in same if run["s"]["objective"] in ("next", "teacherless")]
    margins = [run for run in same if all("margin" in r for r in run["log"])]
    cheats = [run for run in same if all("cheat_rate" in r for r in run["log"])]
    pictures = {"path_star": path_star()}
    for picture, group in ((exact_match_time, same), (positions, pairs), (margin, margins),
                           (bars, runs), (cheat, cheats)):
        if group:
            pictures[picture.__name__] = picture(group)
        else:
            say(f"the picture {picture.__name__} is left out: no run's log has what it shows")
    return pictures


def save(figures, folder):
    """Write figures, {name: Figure}, as PNG and SVG. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, fig in figures.items():
        for kind, more in ("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}}):
            half = folder / f"{name}.{kind}.tmp"  # a picture is written whole or not at all
            fig.savefig(half, format=kind, **more)
            os.replace(half, half.with_suffix(""))
        say(f"drew {folder / name}.png and .svg")


def main(argv=None):
    parser = argparse.ArgumentParser("plot.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda fault: parser.exit(2, f"plot.py: {fault}\n")  # without the usage
    parser.add_argument("folders", nargs="*", metavar="DIR", help="default: all runs in results/")
    parser.add_argument("--out", type=Path, default="figures", metavar="DIR")
    parser.add_argument("--graph", metavar="D,L,N", help="default: that of most runs")
    args = parser.parse_args(argv)
    try:
        runs = find_runs(args.folders or glob.glob("results"))
        if args.folders and not runs:
            raise ValueError(f"there is no run in {' '.join(args.folders)}; run: python train.py")
        save(draw(runs, args.graph), args.out)
    except (ValueError, OSError) as fault:
        parser.error(fault)
    except KeyboardInterrupt:
        parser.exit(1, "\nplot.py: stopped\n")


if __name__ == "__main__":
    main()
