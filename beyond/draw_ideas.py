"""Draw exact match against the graphs seen, one small panel for each idea of beyond/.

    python beyond/draw_ideas.py results results/ideas [--out results/figures]

Runs on other graphs, of other sizes or lengths have pictures of their own.
"""

import argparse
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import plot  # noqa: E402
from settings import SETTINGS  # noqa: E402


def ideas_by_setting(runs):
    """The runs of ideas: {setting: {idea: its runs}}, by plot.setting_of, that of most runs first.

    Arguments: runs, as from plot.find_runs.
    """
    groups = {}
    for run in runs:
        idea = run["s"].get("idea", "train")
        if idea != "train":
            groups.setdefault(plot.setting_of(run), {}).setdefault(idea, []).append(run)
    size = lambda setting: sum(len(group) for group in groups[setting].values())
    return {setting: groups[setting] for setting in sorted(groups, key=size, reverse=True)}


def name_of(setting):
    """A setting, as from plot.setting_of, in words, such as "G(2,5), 8 x 64, 400 steps"."""
    (deg, path_len, _), _, causal, n_layer, n_embd, steps, batch_size = setting
    words = f"G({deg},{path_len}), {n_layer} x {n_embd}{', causal' * bool(causal)}, {steps} steps"
    usual = SETTINGS["the optimiser"]["batch_size"][0]
    return words + f", batches of {batch_size}" * (batch_size != usual)


def ideas(runs):
    """A figure for each setting, with a panel for each idea; behind it, next-token prediction.

    Arguments: runs, as from plot.find_runs. Returns: {name: Figure}. Raises: ValueError without a
    run of an idea.
    """
    settings = ideas_by_setting(runs)
    if not settings:
        raise ValueError("there is no run of an idea; train one, such as beyond/token_order.py")
    usual = [run for run in runs if run["s"]["objective"] == "next" and
             not plot.variation_of(run, but=["causal"])]
    seen, right = (lambda r: r["graphs"] / 1000), (lambda r: r["accuracy"])
    figures = {}
    for setting, groups in settings.items():
        beside = [run for run in usual if plot.setting_of(run) == setting]
        fig, axes = plot.new_figure(
            "Which ideas give the first step a signal?",
            "Exact match against graphs seen (thousands). Thin: one seed; thick: their median.\n"
            + "Orange: next-token prediction. " * bool(beside)
            + f"Dotted: chance. {name_of(setting)}.",
            math.ceil(len(groups) / 3), 3, panel=2.6)
        plot.plt.setp(axes.flat, visible=False)
        for ax, (idea, group) in zip(axes.flat, sorted(groups.items())):
            ax.set(visible=True, title=idea)
            if beside:
                plot.draw_seeds(ax, beside, seen, right, **plot.LINE["next"])
            plot.draw_seeds(ax, group, seen, right, color=plot.COLOR["teacherless"],
                            ls=(0, (5, 1.5)))
            ax.axhline(1 / setting[0][0], **plot.DOTTED)
        name = re.sub(r"\W+", "_", f"ideas {name_of(setting)}") if figures else "ideas"
        figures[name] = fig
    return figures


def main(argv=None):
    parser = argparse.ArgumentParser("draw_ideas.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda fault: parser.exit(2, f"draw_ideas.py: {fault}\n")  # without the usage
    parser.add_argument("folders", nargs="+", metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR")
    args = parser.parse_args(argv)
    try:
        plot.save(ideas(plot.find_runs(args.folders)), args.out)
    except (ValueError, OSError) as fault:
        parser.error(fault)


if __name__ == "__main__":
    main()
