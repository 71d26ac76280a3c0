"""Make the tables from the logs and from bench.jsonl, so that no number is typed by hand.

    python results/table.py            print them
    python results/table.py --write    put them into the READMEs, between the marks

In the table of runs, a row is one model, graph and objective, in one variation. Each number is the
median over the seeds, with the lowest and highest in brackets. The first page has a row for each
network and graph, and in it one variation of each objective.
"""

import importlib
import json
import math
import sys
from pathlib import Path
from statistics import median
from types import SimpleNamespace

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

import train  # noqa: E402
from beyond.draw_ideas import ideas_by_setting, name_of  # noqa: E402
from plot import MODELS, OBJECTIVES, SIZES, find_runs, setting_of, variation_of  # noqa: E402
from plumbing import flags  # noqa: E402
from plumbing.run_folder import write_whole  # noqa: E402
from settings import SETTINGS  # noqa: E402

RUNS, BENCH = "results/table.py", "results/table.py, bench"  # what the marks name
IDEAS, GPU = "results/table.py, ideas", "results/table.py, gpu"
COLUMNS = ["model", "graph", "labels", "size", "objective", "seeds", "graphs seen", "minutes"]
COLUMNS += ["exact match", "difficult token", "the rest, forced", "cheat rate"]
COLUMNS += ["then the goal", "margin", "chance"]
# A row names a run's steps and batches where they are not these
STEPS, BATCH = (SETTINGS["the optimiser"][name][0] for name in ("steps", "batch_size"))
PLAIN = "plain GPT"  # GPT-2's block and nothing of ours
CAUSAL = "causal GPT"  # reads the prefix under the causal mask
NETWORKS = [MODELS["gpt"], MODELS["mamba"], PLAIN, CAUSAL]


def table(runs):
    """The table of runs in Markdown. Arguments: runs, as from plot.find_runs. Returns: a string."""
    return markdown(COLUMNS, [row(kind, group) for kind, group in kinds_of(runs).items()])


def first_table(runs):
    """The first page's table: a row is a network and a graph, with a cell for each objective.

    A cell shows the variation of most seeds or, among equals, of most graphs seen.
    Arguments: runs, as from plot.find_runs. Returns: a string.
    """
    shown = {}  # (network, graph): {objective: (kind, its runs)}
    weight = lambda group: (len(group), group[0]["log"][-1]["graphs"])
    for kind, group in kinds_of(runs).items():
        best = shown.setdefault(kind[:2], {})
        if kind[2] not in best or weight(group) > weight(best[kind[2]][1]):
            best[kind[2]] = kind, group
    first, rates = "network and graph", ["cheat rate of next", "cheat rate of multi"]
    columns, rows = [first, *OBJECTIVES, *rates], []
    for (network, graph), best in shown.items():
        cells = {first: "{}, G({},{}), {} labels".format(NETWORKS[network], *graph)}
        for kind, group in best.values():
            made = dict(zip(COLUMNS, row(kind, group), strict=True))
            objective, *words = kind[3]
            seeds = f"{len(group)} seed" + "s" * (len(group) > 1)
            words = [word for word in words if not word.startswith("n = ")]
            cells[objective] = ", ".join([made["exact match"], seeds, *words])
            cells[f"cheat rate of {objective}"] = made["cheat rate"]
        rows.append([cells.get(column, "") for column in columns])
    return markdown(columns, rows)


def kinds_of(runs):
    """Sort runs that differ only in the seed into one kind: {kind: its runs}, in the tables' order.

    A kind is (network, graph, objective, words, *sizes); words, a tuple, are the objective's name
    and what is not as by default.
    """
    kinds = {}
    for run in runs:
        s = run["s"]
        if s.get("idea", "train") != "train":
            continue  # in the table of ideas
        words = [s["objective"], *["difficult token only"] * s["only_difficult"]]
        if s["init_from"]:
            words += [f"from {s['init_from']}"]
        elif network_of(s) != PLAIN:
            words += ["no Canon"] * s["no_canon"] + ["not mimetic"] * s["no_mimetic"]
            words += ["prefix read once"] * (s["causal"] and s["model"] == "mamba")
        words += ["AdamW"] * (s["optimizer"] == "adamw")
        words += [f"{s['n_train']:,} fixed graphs"] * bool(s["n_train"])
        words += ["graphs of a file"] * bool(s["train_file"])
        words += ["reversed"] * (s["reverse"] and s["objective"] != "reverse")
        words += [f"n = {s['n_future']}"] * (s["n_future"] > 1)
        words += [f"{s['steps']:,} steps"] * (s["steps"] != STEPS)
        words += [f"batches of {s['batch_size']:,}"] * (s["batch_size"] != BATCH)
        order = NETWORKS.index(network_of(s)), run["graph"], OBJECTIVES.index(s["objective"])
        kinds.setdefault((*order, tuple(words), *(s[size] for size in SIZES)), []).append(run)
    return {kind: kinds[kind] for kind in sorted(kinds)}


def markdown(columns, rows):
    """A table in Markdown."""
    rows = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in rows)


def network_of(s):
    """The network's name: the model's, unless it is a GPT that is not the default's."""
    if s["model"] != "gpt" or s["init_from"]:
        return MODELS[s["model"]]
    if all(s[part] for part in ("causal", "no_canon", "no_mimetic")):
        return PLAIN
    return CAUSAL if s["causal"] else MODELS["gpt"]


def share_of(values):
    """The median of some shares, with the lowest and highest in brackets; of two, both.

    Where all are alike, once.
    """
    shown = list(dict.fromkeys(f"{value:.1%}" for value in sorted(values, reverse=True)))
    if len(values) < 3 or len(shown) == 1:
        return ", ".join(shown)
    return f"{median(values):.1%} ({100 * min(values):.1f} to {max(values):.1%})"


def row(kind, runs):
    """The cells of one row: the runs that differ only in the seed."""
    network, (deg, path_len, num_nodes), _, words, layers, _, channels = kind[:7]
    ends = [run["log"][-1] for run in runs]
    # Runs on a GPU shared it, and their times say little.
    minutes = [run["log"][-1]["seconds"] / 60 for run in runs if run["s"]["device"] == "cpu"]

    # A model that trained on the first step alone writes noise before it, so its first step is
    # measured after the true start.
    alone = runs[0]["s"]["only_difficult"]
    first = [end["forced_accuracy"][1] if alone else end["difficult"] for end in ends]
    rest = [min(end["forced_accuracy"][:1] + end["forced_accuracy"][2:]) for end in ends]
    cheat, goal, margin = (
        [end[name] for end in ends if name in end]
        for name in ("cheat_rate", "writes_goal", "margin")
    )
    return [
        NETWORKS[network],
        f"G({deg},{path_len})",
        num_nodes,
        f"{layers} x {channels}",
        ", ".join(words),
        len(runs),
        f"{median(end['graphs'] for end in ends):,.0f}",
        f"{median(minutes):.1f}" if minutes else "",
        share_of([end["accuracy"] for end in ends]),
        share_of(first),
        share_of(rest),
        share_of(cheat) if cheat else "",
        share_of(goal) if goal else "",
        f"{median(margin):.1f}" if margin else "",
        f"{1 / deg:.0%}",
    ]


def idea_table(runs):
    """The ideas of beyond/ beside the four objectives, on the same graphs and seeds.

    A row is an idea or an objective; what it reached has two columns for each setting, that of most
    runs first. The last three columns are of that one.
    Arguments: runs, as from plot.find_runs. Returns: a string.
    """
    same = lambda run: (run["s"]["seed"], setting_of(run))
    cells = ideas_by_setting(runs)  # {setting: {name: its runs}}
    tried = {same(run) for groups in cells.values() for group in groups.values() for run in group}
    for run in runs:
        if same(run) in tried and not variation_of(run, but=["causal"]):  # an idea is a variation
            cells[setting_of(run)].setdefault(run["s"]["objective"], []).append(run)
    names = {name for groups in cells.values() for name in groups}
    names = [name for name in OBJECTIVES if name in names] + sorted(names - set(OBJECTIVES))
    columns = ["trained by"]
    for setting in cells:
        columns += [name_of(setting), "cheat rate"]
    columns += ["99 % at step", "time a step", "parameters more"]
    usual = next(iter(cells.values()), {})
    next_token, rows = speed_of(usual.get("next", [])), []
    for name in names:
        made = [name]
        for groups in cells.values():
            ends = [run["log"][-1] for run in groups.get(name, [])]
            cheat = [end["cheat_rate"] for end in ends if "cheat_rate" in end]
            found = f"{share_of([end['accuracy'] for end in ends])}; {len(ends)}" if ends else ""
            made += [found, share_of(cheat) if cheat else ""]
        group = usual.get(name, [])
        reached = [next((r["step"] for r in run["log"] if r["accuracy"] >= 0.99), math.inf)
                   for run in group]
        made += [f"{median(reached):.0f}" if max(reached, default=math.inf) < math.inf else ""]
        mine = speed_of(group)
        made += [f"{next_token / mine:.1f}" if next_token and mine else ""]
        rows.append([*made, more_parameters(group[0]["s"]) if group else ""])
    return markdown(columns, rows)


def more_parameters(s):
    """What an idea's modules or further heads add to next-token's network, such as "15%"."""
    s, idea = SimpleNamespace(**s), s.get("idea", "train")
    file = train if idea == "train" else importlib.import_module(f"beyond.{idea}")
    usual = SimpleNamespace(**vars(s) | {"n_future": 1})
    sizes = [sum(p.numel() for p in model.parameters())
             for model in (file.make_model(s), train.make_model(usual))]
    return f"{sizes[0] / sizes[1] - 1:.0%}"


def speed_of(runs):
    """The median of the tokens that these runs trained on in a second; of none on a CPU, 0."""
    measured = [r["tokens_per_second"] or 0 for run in runs for r in run["log"][1:]
                if run["s"]["device"] == "cpu"]  # as in row
    return median(measured) if measured else 0


def bench_table(path):
    """The rows of bench.py in Markdown.

    Arguments: path, of bench.jsonl. Returns: a string.
    Raises: ValueError for a damaged row; OSError.
    """
    lines = ["| part | what | ours | beside | | ratio | |", "|" + " --- |" * 7]
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            r = json.loads(line)
            if "ours_megabytes" in r:
                ours, peer = (f"{r[f'{who}_megabytes']:,.0f} MB" for who in ("ours", "peer"))
            else:
                ours, peer = (f"{1000 * r[f'{who}_seconds']:,.1f} ms" for who in ("ours", "peer"))
            ratio = f"{r['ratio']:.2f}"
            cells = [r["name"], r["setting"], ours, r["peer"], peer, ratio, r["note"]]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}, line {number}, is damaged; run results/bench.py again"
            ) from None
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gpu_table(path):
    """What results/gpu.sh measured, a row a measurement; a sentence when there is no such file.

    Arguments: path, of gpu.json. Returns: a string. Raises: ValueError for a damaged row; OSError.
    """
    if not path.exists():
        return "Not yet run on a GPU."
    lines = ["| part | what | measured |", "| --- | --- | --- |"]
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            if row.get("card", "").startswith("no GPU"):
                raise ValueError
            names = "name", "method", "dtype", "model", "sizes", "card"
            what = ", ".join(str(row[name]) for name in names if name in row)
            rest = {name: value for name, value in row.items() if name not in ("part", *names)}
            shown = (f"{value:,.4g}" if isinstance(value, float) else value for value in rest.values())
            measured = ", ".join(f"{name} {value}" for name, value in zip(rest, shown))
            measured = " ".join(measured.replace("|", "/").split())
            lines.append(f"| {row['part']} | {what} | {measured} |")
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}, line {number}, is damaged or was made by --quick; run gpu.sh again"
            ) from None
    return "\n".join(lines)


def put_into(path, name, text):
    """Replace the text between the marks of that name in a file. Raises: ValueError, OSError."""
    begin, end = f"<!-- {name} begins -->", f"<!-- {name} ends -->"
    page = path.read_text(encoding="utf-8")
    if not 0 <= page.find(begin) < page.find(end):
        raise ValueError(f"{path} lacks the marks {begin} and {end}; put them back")
    page = f"{page[: page.find(begin)]}{begin}\n{text}\n{page[page.find(end) :]}"
    write_whole(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def main():
    """The command line. Raises: ValueError, OSError."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    if not set(sys.argv[1:]) <= {"--write"}:
        raise ValueError("give --write, or nothing")
    results = HOME / "results"
    try:
        runs = find_runs([results])
        first_page, all_columns = first_table(runs), table(runs)
        ideas = idea_table(runs + find_runs([results / "ideas"]))
    except KeyError as fault:  # such as the files of a run from an older version
        raise ValueError(
            f"a config.json or log.jsonl in {results} lacks {fault}; fetch it again"
        ) from None
    bench = bench_table(results / "bench.jsonl")
    if "--write" in sys.argv:
        put_into(HOME / "README.md", RUNS, first_page)
        put_into(results / "README.md", RUNS, all_columns)
        put_into(results / "README.md", BENCH, bench)
        put_into(results / "README.md", GPU, gpu_table(results / "gpu.json"))
        put_into(HOME / "beyond" / "README.md", IDEAS, ideas)
    else:
        tables = all_columns, bench, first_page, ideas
        print(*tables, gpu_table(results / "gpu.json"), sep="\n\n")


if __name__ == "__main__":
    with flags.one_sentence_for_faults(program="table.py"):
        main()
