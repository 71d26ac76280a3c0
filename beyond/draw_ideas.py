"""Draw exact match against the graphs seen, one small panel for each idea of beyond/.

    python beyond/draw_ideas.py results results/ideas [--out results/figures]
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import plot  # noqa: E402


def name_of(setting):
    """A setting, as from plot.setting_of, in words, such as "G(2,5), 8 layers, 400 steps"."""
    (deg, path_len, _), _, causal, n_layer, _, steps, _ = setting
    return f"G({deg},{path_len}), {n_layer} layers{', causal' * bool(causal)}, {steps} steps"


def ideas(runs):
    """A figure with a panel for each idea; behind each, next-token prediction on the same graphs.

    Arguments: runs, as from plot.find_runs. Returns: a Figure. Raises: ValueError without a run.
    """
    groups = {}
    for run in runs:
        idea = run["s"].get("idea", "train")
        if idea != "train":
            groups.setdefault((idea, plot.setting_of(run)), []).append(run)
    if not groups:
        raise ValueError("there is no run of an idea; train one, such as beyond/token_order.py")
    usual = [run for run in runs if run["s"]["objective"] == "next" and
             not plot.variation_of(run, but=["causal"])]
    settings = {setting for _, setting in groups}
    rows = math.ceil(len(groups) / 3)
    fig, axes = plot.new_figure(
        "Which ideas give the first step a signal?",
        "Exact match against graphs seen (thousands). Thin: single seeds; thick: their median.\n"
        "Orange: next-token prediction. Dotted: chance."
        + (f" All: {name_of(*settings)}." if len(settings) == 1 else ""),
        rows, 3, panel=2.6)
    plot.plt.setp(axes.flat, visible=False)
    seen, right = (lambda r: r["graphs"] / 1000), (lambda r: r["accuracy"])
    for ax, ((idea, setting), group) in zip(axes.flat, sorted(groups.items())):
        ax.set(visible=True, title=idea if len(settings) == 1 else f"{idea}, {name_of(setting)}")
        beside = [run for run in usual if plot.setting_of(run) == setting]
        if beside:
            plot.draw_seeds(ax, beside, seen, right, **plot.LINE["next"])
        plot.draw_seeds(ax, group, seen, right, color=plot.COLOR["teacherless"], ls=(0, (5, 1.5)))
        ax.axhline(1 / group[0]["graph"][0], **plot.DOTTED)
    return fig


def main(argv=None):
    parser = argparse.ArgumentParser("draw_ideas.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda fault: parser.exit(2, f"draw_ideas.py: {fault}\n")  # without the usage
    parser.add_argument("folders", nargs="+", metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR")
    args = parser.parse_args(argv)
    try:
        plot.save({"ideas": ideas(plot.find_runs(args.folders))}, args.out)
    except (ValueError, OSError) as fault:
        parser.error(fault)


if __name__ == "__main__":
    main()
