"""Make the tables from the logs and from bench.jsonl, so that no number in them is written by hand.

    python results/table.py            print both
    python results/table.py --write    put them into README.md and results/README.md, between the marks

In the table of runs, one row is one model, graph and objective; each number is the median over the seeds, with the
worst seed in brackets.
"""

import json
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from plot import MODELS, OBJECTIVES, find_runs, median  # noqa: E402
from plumbing.run_folder import write_whole  # noqa: E402

RUNS, BENCH = "results/table.py", "results/table.py, bench"  # what the marks name
COLUMNS = ["model", "graph", "labels", "objective", "seeds", "graphs seen", "minutes", "exact match", "first step"]
COLUMNS += ["the rest, forced", "cheat rate", "chance"]
HEAD = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"


def table(runs):
    """The table in Markdown. Arguments: runs, as from plot.find_runs. Returns: str."""
    kinds = {}
    for run in runs:
        s = run["s"]
        name = s["objective"] + ", only the first step" * s["only_difficult"]
        name += ", no Canon" * s["no_canon"] + ", no QK-norm" * s["no_qk_norm"] + ", AdamW" * (s["optimizer"] == "adamw")
        name += f", {s['n_train']:,} fixed graphs" * bool(s["n_train"])
        name += ", reversed" * (s["reverse"] and s["objective"] != "reverse")
        name += f", n = {s['n_future']}" * (s["n_future"] > 1)
        order = list(MODELS).index(s["model"]), run["graph"], OBJECTIVES.index(s["objective"])
        kinds.setdefault((*order, name, s["steps"] * s["batch_size"]), []).append(run)
    return "\n".join([HEAD, *(row(kind, kinds[kind]) for kind in sorted(kinds))])


def row(kind, runs):
    """One line of the table: the runs that differ in nothing but the seed."""
    model, (deg, path_len, num_nodes), _, name, _ = kind
    ends = [run["log"][-1] for run in runs]

    def share(values):
        return f"{median(values):.1%}" + (f" ({min(values):.1%})" if len(values) > 1 else "")

    # Where only the first step was trained, what is written before it is noise: there it is measured after the true start.
    alone = runs[0]["s"]["only_difficult"]
    first = [end["forced_accuracy"][1] if alone else end["difficult"] for end in ends]
    rest = [min(end["forced_accuracy"][:1] + end["forced_accuracy"][2:]) for end in ends]
    cheat = [end["cheat_rate"] for end in ends if "cheat_rate" in end]
    cells = [
        list(MODELS.values())[model],
        f"G({deg},{path_len})",
        num_nodes,
        name,
        len(runs),
        f"{median(end['graphs'] for end in ends):,.0f}",
        f"{median(end['seconds'] for end in ends) / 60:.1f}",
        share([end["accuracy"] for end in ends]),
        share(first),
        share(rest),
        share(cheat) if cheat else "",
        f"{1 / deg:.0%}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def bench_table(path):
    """The rows of bench.py in Markdown. Arguments: path, of bench.jsonl. Returns: str."""
    lines = ["| part | what | ours | beside | | ratio | |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for line in path.read_text(encoding="utf-8").splitlines():
        r = json.loads(line)
        unit, digits = ("MB", 0) if "ours_megabytes" in r else ("ms", 1)
        ours, peer = (
            r[f"{who}_megabytes"] if unit == "MB" else 1000 * r[f"{who}_seconds"] for who in ("ours", "peer")
        )
        shown = [f"{value:,.{digits}f} {unit}" for value in (ours, peer)]
        cells = [r["name"], r["setting"], shown[0], r["peer"], shown[1], f"{r['ratio']:.2f}", r["note"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def put_into(path, name, text):
    """Replace what stands between the marks of that name in a file. Raises: ValueError, OSError."""
    begin, end = f"<!-- {name} begins -->", f"<!-- {name} ends -->"
    page = path.read_text(encoding="utf-8")
    if not 0 <= page.find(begin) < page.find(end):
        raise ValueError(f"{path} lacks the marks {begin} and {end}; put them back")
    page = f"{page[:page.find(begin)]}{begin}\n{text}\n{page[page.find(end):]}"
    write_whole(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def main():
    if not set(sys.argv[1:]) <= {"--write"}:
        raise ValueError("give --write, or nothing")
    results = HOME / "results"
    runs, bench = table(find_runs([results])), bench_table(results / "bench.jsonl")
    if "--write" in sys.argv:
        put_into(results / "README.md", RUNS, runs)
        put_into(results / "README.md", BENCH, bench)
    else:
        print(f"{runs}\n\n{bench}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, KeyError, OSError) as fault:
        sys.exit(f"table.py: {fault}")
