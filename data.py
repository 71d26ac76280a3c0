"""The task: find the one path through a star-shaped graph (Bachmann & Nagarajan 2024, section 4).

A path-star graph G(d, l) has one start node from which `deg` arms leave, each a path of `path_len`
nodes counted with the start. Labels are drawn afresh for every graph, so nothing can be memorised:

        3 -> 7 -> 9          prefix   3 5 | 7 9 | 5 2 | 3 7 / 3 9 =      the shuffled edges, start, goal
      /                      target   3 7 9                              the path from start to goal
    3                        text     3,5|7,9|5,2|3,7/3,9=3,7,9          one line of the paper's files
      \\
        3 -> 5 -> 2          G(2, 3), start 3, goal 9

After the start, one choice decides everything: 7 or 5? It takes looking back from the goal. Every
later node is the only child of the one before it. This file holds, in order:

    the vocabulary        numbers for nodes and for the four marks
    sample_graphs         a batch of random graphs, without a loop over graphs
    trace_arms            the way back: from the tokens of a prefix to the arms of its graph
    graph_keys            the identity of a graph, which keeps test graphs out of training
    layout                the four objectives, side by side: the paper's argument on one screen
    read_graphs           text files, in exactly the form of the paper's
"""

import array
import re

import torch

# ---------------------------------------------------------------------------------------------------------
# The vocabulary: nodes are 0 … num_nodes-1, then the marks, in the order of the paper's code.

PIPE, EQUALS, SLASH, DUMMY = range(4)  # added to num_nodes: `|` `=` `/` `$`


def vocab_size(num_nodes):
    """How many tokens there are: the node labels and four marks."""
    return num_nodes + 4


def prefix_length(deg, path_len):
    """Tokens before the target: three an edge (`a b |`), then start, goal and `=`."""
    return 3 * deg * (path_len - 1) + 3


def graph_shape(prefix, path):
    """The shape G(deg, path_len) of tokens, from their numbers: prefix_length the other way round.

    Arguments: prefix (B, P) and path (B, path_len). Returns: deg, path_len.
    """
    path_len = path.shape[1]
    return (prefix.shape[1] - 3) // (3 * (path_len - 1)), path_len


def nodes_needed(deg, path_len):
    """Nodes of one graph: the start and `path_len - 1` further ones on every arm."""
    return 1 + deg * (path_len - 1)


# ---------------------------------------------------------------------------------------------------------
# Drawing graphs


def sample_graphs(batch_size, deg, path_len, num_nodes, generator):
    """Draw a batch of path-star graphs, uniformly over labels, edge orders and goals.

    Arguments: `generator`, the torch.Generator that all the randomness comes from.
    Returns: prefix (B, P) and path (B, path_len), int64, with P = prefix_length(deg, path_len).
    Raises: ValueError when the labels do not suffice, or the sizes are no graph.
    """
    check_sizes(deg, path_len, num_nodes)
    labels = draw_labels(batch_size, nodes_needed(deg, path_len), num_nodes, generator)  # the start's, then arm by arm
    heads = torch.arange(1, labels.shape[1])  # all nodes but the start end one edge, which begins at the node before …
    tails = (heads - 1) * ((heads - 1) % (path_len - 1) != 0)  # … or at the start, where an arm begins
    edges = torch.stack([tails, heads], dim=1)  # (E, 2): which of a graph's labels each of its edges joins
    shuffle = torch.rand(batch_size, len(edges), generator=generator).argsort(dim=1)  # (B, E)
    edges = labels.gather(1, edges[shuffle].flatten(1)).unflatten(1, (-1, 2))  # (B, E, 2)
    # The labels are exchangeable, so the first arm is as good a goal arm as one drawn at random.
    path = labels[:, :path_len].contiguous()
    return write_prefix(edges, path[:, 0], path[:, -1], num_nodes), path


def draw_labels(batch_size, count, num_nodes, generator):
    """Draw `count` different labels for each graph, every order of them equally likely.

    Each draw is first a rank among the labels that are left (as in Fisher & Yates' shuffle); from the last draw to the
    first, the ranks of those after it then skip the label that it took.

    Returns: (B, count), int64.
    """
    left = num_nodes - torch.arange(count)[:, None]
    labels = (torch.rand(count, batch_size, generator=generator) * left).int()  # (count, B)
    for i in reversed(range(count - 1)):
        labels[i + 1 :] += labels[i + 1 :] >= labels[i]
    return labels.t().long().contiguous()


def check_sizes(deg, path_len, num_nodes):
    """Raise ValueError, saying what to do, when G(deg, path_len) cannot be drawn from `num_nodes` labels."""
    if deg < 1:
        raise ValueError(f"--deg is {deg}, but a graph has at least 1 arm; give --deg 1 or more")
    if path_len < 2:
        raise ValueError(f"--path_len is {path_len}, but a path has at least its start and its goal; give 2 or more")
    need = nodes_needed(deg, path_len)
    if need > num_nodes:
        raise ValueError(f"G({deg},{path_len}) has {need} nodes, but --num_nodes is {num_nodes}; give {need} or more")


def write_prefix(edges, start, goal, num_nodes):
    """Put edges into tokens: `a b |` for each, `/` in place of the last `|`, then start, goal and `=`.

    Arguments: edges (B, E, 2), start and goal (B,), all int64. Returns: (B, 3 E + 3), int64.
    """
    tokens = edges.new_full((*edges.shape[:2], 3), num_nodes + PIPE)
    tokens[:, :, :2] = edges
    tokens[:, -1, 2] = num_nodes + SLASH
    equals = torch.full_like(start, num_nodes + EQUALS)
    return torch.cat([tokens.flatten(1), torch.stack([start, goal, equals], dim=1)], dim=1)


def split_prefix(prefix):
    """Take tokens apart again: prefix (B, 3 E + 3) into edges (B, E, 2), start (B,) and goal (B,)."""
    edges = prefix[:, :-3].unflatten(1, (-1, 3))[:, :, :2]
    return edges, prefix[:, -3], prefix[:, -2]


def trace_arms(prefix, deg, num_nodes):
    """Follow the edges of each graph from its start: the arms, in the order of their first edges.

    This is all that the Clever Hans cheat knows how to do (section 4), done exactly; the
    evaluation uses it to tell a wrong arm from a path that is not in the graph.

    Arguments: prefix (B, P), int64, of well-formed path-star graphs.
    Returns: (B, deg, path_len), int64.
    """
    edges, start, _ = split_prefix(prefix)
    tails, heads = edges[:, :, 0], edges[:, :, 1]  # (B, E)
    leaves_start = tails == start[:, None]
    first = heads[leaves_start].view(-1, deg)  # (B, deg): one head an arm
    child = torch.zeros(len(prefix), num_nodes, dtype=torch.int64, device=prefix.device)
    child.scatter_(1, tails, heads)  # every inner node has one child; the start's entry is never used
    arms = [start[:, None].expand(-1, deg), first]
    for _ in range(edges.shape[1] // deg - 1):
        arms.append(child.gather(1, arms[-1]))
    return torch.stack(arms, dim=2)


# ---------------------------------------------------------------------------------------------------------
# Test graphs never occur in training


def graph_keys(prefix, num_nodes):
    """One number a graph, the same for every order of its edges and for each of its goals.

    Two graphs with the same edges are one graph here, although they differ as examples: a model
    that saw an arm in training knows its path, whichever goal was asked for then. The key is the sum of
    its edges' numbers, each scrambled by 64-bit multiplications that wrap around (Steele et al. 2014,
    SplitMix64). Two different graphs share a key with probability 2^-64; sample_new_graphs would then skip one.

    Arguments: prefix (B, P), int64. Returns: (B,), int64.
    """
    edges, _, _ = split_prefix(prefix)
    key = edges[:, :, 0] * num_nodes + edges[:, :, 1]  # (B, E)
    for multiplier in (-4658895280553007687, -7723592293110705685):  # SplitMix64's, as signed numbers
        key = (key ^ (key >> 30)) * multiplier + 1
    return (key ^ (key >> 31)).sum(dim=1)


def sample_new_graphs(batch_size, deg, path_len, num_nodes, generator, forbidden):
    """sample_graphs, but none of the graphs whose keys are in `forbidden`: training uses this.

    Arguments: `forbidden`, a sorted int64 tensor of graph_keys.
    Returns: as sample_graphs.
    Raises: ValueError as sample_graphs, and when 1,000 draws in a row leave some place unfilled.
    """
    prefix, path = sample_graphs(batch_size, deg, path_len, num_nodes, generator)
    if len(forbidden) == 0:
        return prefix, path
    for _ in range(1000):
        again = is_in(graph_keys(prefix, num_nodes), forbidden)
        if not again.any():
            return prefix, path
        prefix[again], path[again] = sample_graphs(int(again.sum()), deg, path_len, num_nodes, generator)
    raise ValueError(
        f"nearly all graphs G({deg},{path_len}) over {num_nodes} labels are test graphs, so none are left to train on;"
        " give a larger --num_nodes or a smaller --n_test"
    )


def is_in(keys, sorted_keys):
    """Which `keys` (B,) stand in `sorted_keys` (K,), K at least 1: (B,), bool."""
    place = torch.searchsorted(sorted_keys, keys).clamp(max=len(sorted_keys) - 1)
    return sorted_keys[place] == keys


# ---------------------------------------------------------------------------------------------------------
# The four objectives (next: section 4; reverse, teacherless: section 5; multi: Gloeckle et al. 2024, section 2)
#
# An objective is what the model sees (inputs) and what it must say (targets). The output at input position i
# sees inputs 0 … i; the last `path_len` of them are asked. For the path  s a b g  and the prefix  … s g = :
#
#     next         inputs   … s g =  s  a  b        s is free; a needs the plan, but b and g follow from
#                  targets         s  a  b  g       the revealed token before them: the cheat
#     reverse      inputs   … s g =  g  b  a        each token is the only parent of the revealed one,
#                  targets         g  b  a  s       so following edges is now the true solution
#     teacherless  inputs   … s g =  $  $  $        nothing is revealed: no cheat, and every token of the
#                  targets         s  a  b  g       path tells the model something about the plan
#     multi        inputs   … s g =  s  a  b        the next `n_future` tokens at once, a row a head.
#                  targets         s  a  b  g       The position that sees only `s` must already name the
#                                  a  b  g  .       tokens after the next, which no revealed token gives away
#                                  b  g  .  .

OBJECTIVES = ("next", "reverse", "teacherless", "multi")
IGNORE = -100  # no target here (PyTorch's ignore_index): past the end of the path, and where only the first step counts


def layout(objective, prefix, path, num_nodes, reverse=False, n_future=1):
    """Lay out inputs and targets of one objective, as drawn above.

    Arguments: objective, one of OBJECTIVES; prefix (B, P) and path (B, l), int64; reverse, to write the path from
        the goal to the start under another objective too; n_future, multi's rows.
    Returns: inputs (B, P + l - 1) and targets (B, l, K), int64, with K = n_future for multi and 1 for the others.
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


# ---------------------------------------------------------------------------------------------------------
# Text files: one graph a line, `3,5|7,9|5,2|3,7/3,9=3,7,9`, as in the paper's deg_2_path_5_nodes_50_test_20000.txt

LINE = re.compile(
    r"((?:[0-9]{1,9},[0-9]{1,9}[|])*[0-9]{1,9},[0-9]{1,9})/([0-9]{1,9},[0-9]{1,9})=([0-9]{1,9}(?:,[0-9]{1,9})+)"
)
LONGEST_LINE = 1_000_000  # characters; a file that is one endless line is refused, not read into memory


def write_graphs(file, prefix, path):
    """Write graphs to an open text file, one a line. Arguments: prefix (B, P) and path (B, l), int64."""
    edges, start, goal = split_prefix(prefix)
    for e, s, g, p in zip(edges.tolist(), start.tolist(), goal.tolist(), path.tolist()):
        file.write("|".join(f"{a},{b}" for a, b in e) + f"/{s},{g}=" + ",".join(map(str, p)) + "\n")


def read_graphs(file_name, num_nodes):
    """Read a text file of graphs, all of one shape G(deg, path_len). Empty lines and blanks around marks are passed over.

    Returns: prefix (M, P) and path (M, path_len), int64, as from sample_graphs; graph_shape tells deg and path_len.
    Raises: ValueError for the first line that is not a path-star graph with its path: it names the file, the
        line and the fault; for a line of another shape than the first's, for a file without graphs, and for one in
        UTF-16. OSError when the file cannot be opened.
    """
    with open(file_name, "rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError(f"{file_name} is text in UTF-16; save it as UTF-8 or ASCII")
    # Numbers go straight into one flat array of 4 bytes each: a list of Python integers would take ten times that.
    numbers, shape, count, line_number = array.array("i"), None, 0, 0
    with open(file_name, encoding="utf-8-sig", errors="replace") as file:  # -sig: a byte order mark is no part of it
        while line := file.readline(LONGEST_LINE):
            line_number += 1
            if line.isspace():
                continue
            try:
                row, deg, path_len = parse_graph(line, num_nodes)
                shape = shape or (deg, path_len)
                if (deg, path_len) != shape:
                    raise ValueError(
                        f"the graph is a G({deg},{path_len}), but the first line's is a G({shape[0]},{shape[1]})"
                    )
            except ValueError as fault:
                raise ValueError(f"{file_name}, line {line_number}: {fault}") from None
            numbers.extend(row)
            count += 1
    if shape is None:
        raise ValueError(f"{file_name} holds no graph; it should hold one graph a line, like 3,5|7,9|5,2|3,7/3,9=3,7,9")
    deg, path_len = shape
    table = torch.frombuffer(numbers, dtype=torch.int32).view(count, -1).long()
    ends = 2 * deg * (path_len - 1)  # the edges' end points come first in a row, then start, goal and path
    edges = table[:, :ends].unflatten(1, (-1, 2))
    return write_prefix(edges, table[:, ends], table[:, ends + 1], num_nodes), table[:, ends + 2 :].contiguous()


def parse_graph(line, num_nodes):
    """Take one line apart and prove that it is a path-star graph with the path from its start to its goal.

    Returns: the line's numbers in their order (a list of int), deg and path_len. Raises: ValueError, saying what is wrong.
    """
    line = "".join(part.strip(" \t") for part in re.split("([,|/=])", line.strip()))  # blanks around marks change nothing
    match = LINE.fullmatch(line)
    if not match:
        shown = ascii(line[:40])
        raise ValueError(f"{shown} … is not of the form a,b|c,d|…/start,goal=start,…,goal")
    edges, (start, goal), path = ([int(n) for n in re.split("[,|]", part)] for part in match.groups())
    if max(*edges, *path, start, goal) >= num_nodes:
        raise ValueError(f"label {max(*edges, *path, start, goal)} is out of range: --num_nodes is {num_nodes}")

    tails, heads = edges[0::2], edges[1::2]
    first = [head for tail, head in zip(tails, heads) if tail == start]  # one an arm
    child = {tail: head for tail, head in zip(tails, heads) if tail != start}
    if len(child) + len(first) != len(tails) or len(set(heads)) != len(heads) or start in heads or not first:
        raise ValueError(
            f"the edges are no path-star graph: from the start {start}, arms must leave that never meet or fork"
        )
    arms = []
    for node in first:
        arms.append([start, node])
        while arms[-1][-1] in child:
            arms[-1].append(child[arms[-1][-1]])
    path_len = len(arms[0])
    if any(len(arm) != path_len for arm in arms) or len(arms) * (path_len - 1) != len(tails):
        raise ValueError(
            f"the edges are no path-star graph: the arms from the start {start} differ in length, or edges lie off them"
        )
    if path not in arms and path[::-1] in arms:
        raise ValueError(
            f"the path {','.join(map(str, path))} is written from the goal to the start; write it from the start to the"
            " goal, and let --reverse turn it round"
        )
    if path not in arms:
        raise ValueError(f"the path {','.join(map(str, path))} is no arm of the graph")
    if path[-1] != goal:
        raise ValueError(f"the path ends at {path[-1]}, but the goal is {goal}")
    return edges + [start, goal] + path, len(arms), path_len
