"""Which first steps does a run get wrong? By the order in which the prefix gives an arm's edges.

    python results/orders.py [--both_ways] runs/NAME …

A causal network reads the edges in the order of the prefix, and an arm's second and third edge,
v1 v2 and v2 v3, come in one of two orders:

    … 3 7 | … 7 9 | …     forward: when v2 v3 is read, v1 v2 can be looked up
    … 7 9 | … 3 7 | …     backward: when v1 v2 is read, v2 v3 can be

Some runs stall because they can trace only forward arms, and infer the rest by elimination: an arm
that is traced and does not end at the goal is ruled out. Such a run knows the first step of every
forward arm; on a backward one it has one chance in 1 + the number of other arms that are backward.
This script counts how often the first step is right, separately for each case. With --both_ways it
first opens the mask inside the prefix of a GPT that was trained with --causal: each edge sees all
others, as in the default GPT. If the first steps of backward arms are right then, the weights can
trace them, and the mask hid the edge.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import torch  # noqa: E402

import data  # noqa: E402
from ask import load  # noqa: E402
from evaluate import GRAPHS_AT_ONCE, decode  # noqa: E402
from plumbing import flags, graph_files  # noqa: E402


def forward_arms(prefix, arms):
    """Whether the edge v1 v2 of each arm stands before its edge v2 v3.

    Arguments: prefix (B, P), int64; arms (B, deg, l), as from data.trace_arms, of three edges or
        more. Returns: (B, deg), bool.
    """
    parents = data.split_prefix(prefix)[0][:, :, 0]  # (B, E): an inner node is parent of one edge
    v1, v2 = (arms[:, :, i, None] == parents[:, None] for i in (1, 2))  # (B, deg, E)
    return v1.int().argmax(dim=2) < v2.int().argmax(dim=2)


def by_order(first, prefix, path, deg, num_nodes):
    """How often the first step is right, by the order of the goal's arm and of the others.

    Arguments: first (B,), int64, the first steps written; prefix (B, P) and path (B, l), int64.
    Returns: a list of (whether the goal's arm is forward, how many of the others are, graphs, the
        share that is right).
    """
    arms = data.trace_arms(prefix, deg, num_nodes)
    forward, own = forward_arms(prefix, arms), arms[:, :, 1] == path[:, 1:2]  # (B, deg) each
    mine, others = (forward & own).any(dim=1), (forward & ~own).sum(dim=1)
    right = (first == path[:, 1]).double()
    rows = []
    for ahead in (True, False):
        for count in range(deg):
            case = (mine == ahead) & (others == count)
            if case.any():
                rows.append((ahead, count, int(case.sum()), right[case].mean().item()))
    return rows


@torch.no_grad()
def main(argv=None):
    """Print the cases of each run, on its test graphs."""
    given = sys.argv[1:] if argv is None else argv
    folders = [name for name in given if name != "--both_ways"]
    with flags.one_sentence_for_faults(program="orders.py"):
        if {"-h", "--help"} & set(given):
            sys.exit(print(__doc__))
        if not folders:
            raise ValueError("give the folder of one run or more")
        for folder in folders:
            model, s, files = load(folder)
            if s.path_len < 4 or s.reverse:
                raise ValueError(f"{folder}: give a run with --path_len 4 or more, not reversed")
            if "--both_ways" in given and not (s.model == "gpt" and s.causal):
                raise ValueError(f"{folder}: --both_ways opens a causal mask; give a GPT's run"
                                 " with --causal")
            prefix, path = graph_files.test_graphs(s, files)
            parts = prefix.split(GRAPHS_AT_ONCE)
            if "--both_ways" in given:
                for block in (*model.h, *model.future):
                    block.attn.prefix_len = prefix.shape[1]
            paths = [decode(model, p, s.path_len, s.objective, s.num_nodes) for p in parts]
            first = torch.cat(paths)[:, 1]
            right = (first == path[:, 1]).double().mean()
            print(f"{folder}: the first step is right in {right:.1%}")
            for ahead, count, graphs, right in by_order(first, prefix, path, s.deg, s.num_nodes):
                order = "forward" if ahead else "backward"
                print(
                    f"  the goal's arm is {order:8}, {count} of {s.deg - 1} others forward:"
                    f" {right:6.1%} of {graphs}"
                )


if __name__ == "__main__":
    main()
