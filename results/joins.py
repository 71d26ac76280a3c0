"""Has a run joined the edges of an arm? What linear probes read in the prefix.

    python results/joins.py runs/NAME …

To find the path, a network must put its edges together. A causal network can begin in the prefix:
where it reads an edge, it can look up a neighbouring edge that it has read before.

    … 7 9 | … 3 7 | …     ahead: where 3 7 is read, 9 can be known
    … 3 7 | … 7 9 | …     back: where 7 9 is read, 3 can be known

This script fits linear probes (Alain & Bengio 2016, arXiv 1610.01644) to what each layer holds at
the last token of an edge and at the separator after it, and counts how often they name that far
node on graphs that they were not fitted to. Beside it stands how often they do where the other edge
comes later: there a causal network can only guess, and one that reads the prefix both ways need
not. Edges from the start are left out: the start is no secret.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import data  # noqa: E402
from ask import load  # noqa: E402
from evaluate import GRAPHS_AT_ONCE  # noqa: E402
from plumbing import flags  # noqa: E402

FIT, TEST = 2000, 1000  # graphs


def neighbours(prefix, arms):
    """Every two neighbouring edges u v and v w of each arm, but for the edge from the start.

    Arguments: prefix (B, P), int64; arms (B, deg, l), as from data.trace_arms, l at least 4.
    Returns: for "ahead" and for "back", by name: where the edge stands among the edges, the far
        node, int64, and whether the other edge comes before, bool; (B, deg, l - 3) each.
    """
    children = data.split_prefix(prefix)[0][:, :, 1]  # (B, E): a node is the child of one edge
    place = (arms[:, :, :, None] == children[:, None, None]).int().argmax(dim=3)  # (B, deg, l)
    u_v, v_w = place[:, :, 2:-1], place[:, :, 3:]
    u, w = arms[:, :, 1:-2], arms[:, :, 3:]
    return {"ahead": (u_v, w, v_w < u_v), "back": (v_w, u, u_v < v_w)}


def share_read(states, places, far, before, num_nodes):
    """How often the best probe names the far node, if the other edge comes before, and if after.

    Arguments: states, a list of (FIT + TEST, P, C), float, one for each layer; the others as from
        neighbours. Returns: two shares, of the same layer and token.
    """
    wanted = F.one_hot(far, num_nodes).double()
    graphs = torch.arange(len(far), device=far.device)[:, None, None]
    best = 0.0, 0.0
    for state in states:
        for token in (1, 2):  # the edge's last token, and the separator
            x = F.pad(state[graphs, 3 * places + token].double(), (0, 1), value=1.0)  # with a bias
            fit, to = x[:FIT].flatten(0, 2), wanted[:FIT].flatten(0, 2)
            ridge = torch.eye(x.shape[3], dtype=x.dtype, device=x.device)
            probe = torch.linalg.solve(fit.T @ fit + ridge, fit.T @ to)  # (C + 1, N)
            right = (x[FIT:] @ probe).argmax(dim=3) == far[FIT:]
            shares = [right[case].double().mean().item() for case in (before[FIT:], ~before[FIT:])]
            best = max(best, tuple(shares))
    return best


@torch.no_grad()
def states_of(model, prefix):
    """What each block but the last holds of the prefix: a list of (B, P, C), float.

    The last block's output there is read by nothing. Of a prefix that is read twice it is the
    second reading.
    """
    blocks = getattr(model, "h", None) or model.layers
    P, layers = prefix.shape[1], [[] for _ in blocks]
    keep = lambda i: lambda _, __, output: layers[i].append(output[:, -P:])
    hooks = [block.register_forward_hook(keep(i)) for i, block in enumerate(blocks)]
    for part in prefix.split(GRAPHS_AT_ONCE):
        model.trunk(part)
    for hook in hooks:
        hook.remove()
    return [torch.cat(parts) for parts in layers[:-1]]


def main(argv=None):
    """Print the shares of each run, on graphs of its own kind."""
    folders = sys.argv[1:] if argv is None else argv
    with flags.one_sentence_for_faults(program="joins.py"):
        if {"-h", "--help"} & set(folders):
            sys.exit(print(__doc__))
        if not folders:
            raise ValueError("give the folder of one run or more")
        for folder in folders:
            model, s, _ = load(folder)
            if s.path_len < 4 or s.n_layer < 2:
                raise ValueError(f"{folder}: give a run with --path_len 4 and --n_layer 2 or more")
            seed = torch.Generator().manual_seed(0)
            prefix, _ = data.sample_graphs(FIT + TEST, s.deg, s.path_len, s.num_nodes, seed)
            prefix = prefix.to(next(model.parameters()).device)
            arms = data.trace_arms(prefix, s.deg, s.num_nodes)
            states = states_of(model, prefix)
            print(f"{folder}: an edge holds the far node of its neighbour on the arm in")
            for name, pairs in neighbours(prefix, arms).items():
                seen, unseen = share_read(states, *pairs, s.num_nodes)
                print(f"  {seen:6.1%} {name}, if the neighbour comes before; {unseen:.1%} if not")


if __name__ == "__main__":
    main()
