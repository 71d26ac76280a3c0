"""The task: find the one path through a star-shaped graph (Bachmann & Nagarajan 2024, section 4).

A path-star graph G(d, l) has one start node, from which d arms leave. Each arm is a path of l
nodes, counting the start. Every graph has new random labels, so there is nothing to memorise:

      ┌─> 7 ─> 9      prefix   3 5 | 7 9 | 5 2 | 3 7 / 3 9 =     shuffled edges, start, goal
    3 ┤               target   3 7 9                             the path from start to goal
      └─> 5 ─> 2      G(2, 3) with start 3 and goal 9

One choice decides everything: 7 or 5? To know, one must look back from the goal. Every later node
is the only child of the node before it. `python data.py` prints a graph and its four layouts.

In this file: the vocabulary, drawing graphs, the four objectives, keeping test graphs unseen.
"""

import torch

# ------------------------------------------------------------------------------------------------
# The vocabulary: nodes are 0 … num_nodes - 1; four marks follow, in the order of the paper's code.

PIPE, EQUALS, SLASH, DUMMY = range(4)  # added to num_nodes: `|` `=` `/` `$`


def vocab_size(num_nodes):
    """The number of tokens: the node labels and four marks."""
    return num_nodes + 4


def prefix_length(deg, path_len):
    """Tokens before the target: three for each edge (`a b |`), then the start, the goal and `=`."""
    return 3 * deg * (path_len - 1) + 3


def graph_shape(prefix, path):
    """The inverse of prefix_length: prefix (B, P) and path (B, path_len) -> deg, path_len."""
    path_len = path.shape[1]
    return (prefix.shape[1] - 3) // (3 * (path_len - 1)), path_len


def nodes_needed(deg, path_len):
    """Nodes in one graph: the start, and path_len - 1 more on each arm."""
    return 1 + deg * (path_len - 1)


# ------------------------------------------------------------------------------------------------
# Drawing graphs


def sample_graphs(batch_size, deg, path_len, num_nodes, generator):
    """Draw path-star graphs, uniformly over labels, edge orders and goals.

    Arguments: generator, the torch.Generator that all randomness comes from.
    Returns: prefix (B, P) and path (B, path_len), int64, with P = prefix_length(deg, path_len).
    Raises: RuntimeError when there are too few labels; see nodes_needed.
    """
    labels = random_orders(batch_size, num_nodes, generator)[:, : nodes_needed(deg, path_len)]
    arms = labels[:, 1:].unflatten(1, (deg, path_len - 1))  # (B, deg, path_len - 1)
    arms = torch.cat([labels[:, :1, None].expand(-1, deg, 1), arms], dim=2)  # (B, deg, path_len)
    edges = torch.stack([arms[:, :, :-1], arms[:, :, 1:]], dim=3).flatten(1, 2)  # (B, E, 2)
    shuffle = random_orders(batch_size, edges.shape[1], generator)  # (B, E)
    edges = edges.gather(1, shuffle[:, :, None].expand(-1, -1, 2))
    path = arms[:, 0]  # labels are exchangeable, so the first arm is as random as any
    return write_prefix(edges, path[:, 0], path[:, -1], num_nodes), path.contiguous()


def random_orders(batch_size, n, generator):
    """Orders of the numbers 0 … n - 1, each equally likely: (B, n), int64."""
    return torch.rand(batch_size, n, generator=generator, dtype=torch.float64).argsort(dim=1)


def write_prefix(edges, start, goal, num_nodes):
    """Write edges as tokens: `a b |` each, `/` for the last `|`, then the start, the goal and `=`.

    Arguments: edges (B, E, 2), start and goal (B,), all int64. Returns: (B, 3 E + 3), int64.
    """
    tokens = edges.new_full((*edges.shape[:2], 3), num_nodes + PIPE)
    tokens[:, :, :2] = edges
    tokens[:, -1, 2] = num_nodes + SLASH
    equals = torch.full_like(start, num_nodes + EQUALS)
    return torch.cat([tokens.flatten(1), torch.stack([start, goal, equals], dim=1)], dim=1)


def split_prefix(prefix):
    """The inverse of write_prefix: prefix (B, 3 E + 3) -> edges (B, E, 2), start and goal (B,)."""
    edges = prefix[:, :-3].unflatten(1, (-1, 3))[:, :, :2]
    return edges, prefix[:, -3], prefix[:, -2]


def trace_arms(prefix, deg, num_nodes):
    """Follow the edges of each graph from its start, arm by arm, in the order of the first edges.

    This is the Clever Hans cheat (section 4), done exactly: each node is the child of the last one.

    Arguments: prefix (B, P), int64, of path-star graphs. Returns: (B, deg, path_len), int64.
    """
    edges, start, _ = split_prefix(prefix)
    parents, children = edges[:, :, 0], edges[:, :, 1]  # (B, E)
    first = children[parents == start[:, None]].view(-1, deg)  # (B, deg): the start's children
    child = torch.zeros(len(prefix), num_nodes, dtype=torch.int64, device=prefix.device)
    child.scatter_(1, parents, children)  # every inner node has one child; the start's is not used
    arms = [start[:, None].expand(-1, deg), first]
    for _ in range(edges.shape[1] // deg - 1):
        arms.append(child.gather(1, arms[-1]))
    return torch.stack(arms, dim=2)


# ------------------------------------------------------------------------------------------------
# The four objectives (section 4: next; 5: reverse, teacherless; Gloeckle et al. 2024: multi)
#
# An objective is what the model sees (inputs) and what it must predict (targets). The last path_len
# positions have targets, from `=` on; an output there sees no input after it. For the path s a b g:
#
#     next         inputs   … s g =  s  a  b     s is copied; a needs the plan, but b and g follow
#                  targets         s  a  b  g    from the revealed token before them: the cheat
#     reverse      inputs   … s g =  g  b  a     each token is the only parent of the revealed one:
#                  targets         g  b  a  s    following edges is now the true solution
#     teacherless  inputs   … s g =  $  $  $     nothing is revealed, so no edge can be followed;
#                  targets         s  a  b  g    every inner node needs a part of the plan
#     multi        inputs   … s g =  s  a  b     the next n_future tokens, a row per head: the
#                  targets         s  a  b  g    position that sees only s must already name the
#                                  a  b  g  .    tokens after the next, which nothing revealed
#                                  b  g  .  .    gives away (a dot: no target)

OBJECTIVES = ("next", "reverse", "teacherless", "multi")
IGNORE = -100  # no target here (PyTorch's ignore_index)


def layout(objective, prefix, path, num_nodes, reverse=False, n_future=1):
    """Lay out the inputs and targets of one objective, as drawn above.

    Arguments: objective, one of OBJECTIVES; prefix (B, P) and path (B, l), int64; reverse, to write
        the path from goal to start under any objective; n_future, the rows of multi.
    Returns: inputs (B, P + l - 1) and targets (B, l, K), int64; K is n_future for multi, else 1.
    """
    if reverse or objective == "reverse":
        path = path.flip(1)
    if objective == "teacherless":
        dummies = torch.full_like(path[:, :-1], num_nodes + DUMMY)
        return torch.cat([prefix, dummies], dim=1), path[:, :, None]
    inputs = torch.cat([prefix, path[:, :-1]], dim=1)
    if objective == "multi":
        past_the_end = torch.full_like(path[:, :1], IGNORE).expand(-1, n_future - 1)
        return inputs, torch.cat([path, past_the_end], dim=1).unfold(1, n_future, 1)
    return inputs, path[:, :, None]


# ------------------------------------------------------------------------------------------------
# Test graphs never occur in training


def graph_keys(prefix, num_nodes):
    """A number for each graph, the same for every order of its edges and each of its goals.

    Graphs with the same edges count as one, whichever goal is asked for, so no test graph occurs in
    training with another goal. The key is the sum of the edges' numbers, each scrambled by 64-bit
    multiplications in the manner of SplitMix64 (Steele et al. 2014), so that the keys of different
    graphs are equal with a probability below 2^-60.

    Arguments: prefix (B, P), int64. Returns: (B,), int64.
    """
    edges, _, _ = split_prefix(prefix)
    key = edges[:, :, 0] * num_nodes + edges[:, :, 1]  # (B, E)
    for multiplier in (-4658895280553007687, -7723592293110705685):  # as signed 64-bit numbers
        key = (key ^ (key >> 30)) * multiplier + 1
    return (key ^ (key >> 31)).sum(dim=1)


def sample_new_graphs(batch_size, deg, path_len, num_nodes, generator, forbidden):
    """Draw graphs for training: as sample_graphs, but none whose key is in `forbidden`, (K,) int64.

    Raises: ValueError when 1,000 rounds of redrawing do not suffice.
    """
    prefix, path = sample_graphs(batch_size, deg, path_len, num_nodes, generator)
    for _ in range(1000):
        again = torch.isin(graph_keys(prefix, num_nodes), forbidden)
        if not again.any():
            return prefix, path
        count = int(again.sum())
        prefix[again], path[again] = sample_graphs(count, deg, path_len, num_nodes, generator)
    raise ValueError(
        f"nearly all graphs G({deg},{path_len}) over {num_nodes} labels are test graphs, so none"
        " are left to train on; give a larger --num_nodes or a smaller --n_test"
    )


if __name__ == "__main__":
    prefix, path = sample_graphs(1, 2, 4, 10, torch.Generator().manual_seed(1))
    words = [*map(str, range(10)), "|", "=", "/", "$", "."]  # the last one stands for IGNORE
    for objective in OBJECTIVES:
        inputs, targets = layout(objective, prefix, path, 10, n_future=3)
        print(f"{objective:<12} inputs ", *(words[token] for token in inputs[0]))
        for row in targets[0].T.clamp(min=-1):
            blanks = " " * (prefix.shape[1] - 1)  # a target stands below the input that predicts it
            print(" " * 12, "targets", *blanks, *(words[token] for token in row))
