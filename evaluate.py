"""Write paths with a trained model, and measure what it does (sections 4 and 5 of the paper).

The question is not only how often a path is right, but why. With the path so far revealed, a model
that learned the Clever Hans cheat is right at every token but the first step, which it guesses; and
it follows any arm that it is put on. In this file: decoding, the measurements, how they are made.
"""

import copy

import torch
import torch.distributed as dist

import data

GRAPHS_AT_ONCE = 500  # the size of an evaluation batch; bounds its memory


def decode(model, prefix, length, objective, num_nodes):
    """Write paths by greedy decoding, in the order in which the model was trained to write them.

    A teacherless model writes all tokens in one pass, the others one after another, with a cache.
    Arguments: prefix (B, P), int64; length, of the path, in tokens; objective, one of
        data.OBJECTIVES. Returns: (B, length), int64.
    """
    if objective == "teacherless":
        return logits_without_teacher(model, prefix, length, num_nodes).argmax(dim=2)
    first, cache = read_prefix(model, prefix, length)
    return write_on(model, first, length, cache)


def logits_without_teacher(model, prefix, length, num_nodes):
    """A teacherless model's logits for all tokens of the path, in one pass: (B, length, V)."""
    placeholder = prefix[:, :1].expand(-1, length)  # no token of the path is shown
    inputs, _ = data.layout("teacherless", prefix, placeholder, num_nodes)
    return model(inputs, num_outputs=length)


def read_prefix(model, prefix, length):
    """Run the prefix (B, P) into a new cache, with room for all of a path but its last token.

    Returns: the first token written (B, 1), and the cache.
    """
    cache = model.new_cache(len(prefix), prefix.shape[1] + length - 1)
    return model(prefix, 1, cache).argmax(dim=2), cache


def write_on(model, first, length, cache):
    """Decode greedily after `first` (B, 1), which the cache has not seen: (B, length), with it."""
    tokens = [first]
    while len(tokens) < length:
        tokens.append(model(tokens[-1], 1, cache).argmax(dim=2))
    return torch.cat(tokens, dim=1)


@torch.no_grad()
def evaluate(model, prefix, path, s):
    """Measure a model. All numbers but the margin are shares of the graphs, from 0 to 1:

    accuracy            the whole path is right, by greedy decoding (exact match)
    position_accuracy   each token of the path is right, from start to goal
    forced_accuracy     the same with the true path so far revealed (teacher forcing). A teacherless
                        model is shown no path: for it, this is position_accuracy again
    difficult           the difficult token, the first after the start, is right; chance is 1/deg
    margin              its log-probability less that of the likeliest first node of a wrong arm,
                        the true path so far revealed: the mean, in nats (deg > 1, path_len > 2)
    wrong_arm, no_path  the two kinds of mistake: another arm of the graph, or none of its arms; a
                        wrong arm with the goal written at its end counts as none

    next and multi, unless reversed, are also put on a wrong arm, whose nodes are revealed in turn,
    as if the model had written them itself (deg > 1, path_len > 2):

    cheat_rate          it names every further inner node of that arm (path_len > 3). The arm's end
                        is left out, because a model that cheats may copy the goal there
    writes_arm_end, writes_goal     what it names last: the wrong arm's end, the goal, or neither

    Arguments: prefix (M, P) and path (M, l), int64; s, the settings (objective, reverse, deg,
        num_nodes). Under torchrun, each process has its share of the graphs, and all get
        the numbers of the whole.
    Returns: a dict of floats and lists of floats.
    """
    totals, count = {}, torch.tensor(len(path), device=path.device)
    for batch in zip(prefix.split(GRAPHS_AT_ONCE), path.split(GRAPHS_AT_ONCE)):
        for name, values in measure(model, *batch, s).items():
            totals[name] = totals.get(name, 0) + values.sum(dim=0)
    if dist.is_initialized():
        for total in (count, *totals.values()):
            dist.all_reduce(total)
    # Division is done on the CPU: not every device has float64.
    return {name: (total.cpu().double() / int(count)).tolist() for name, total in totals.items()}


def another_arm(arms, path):
    """An arm not of the goal: arms (B, deg, l), where deg > 1, and path (B, l) -> (B, l), int64."""
    is_goal_arm = (arms == path[:, None]).all(dim=2)  # (B, deg)
    another = (is_goal_arm.int().argmax(dim=1) + 1) % arms.shape[1]  # (B,)
    return arms[torch.arange(len(arms)), another]


def on_a_wrong_arm(name_next, arms, path):
    """Here the cheat is caught: what does a model name when it is led along another arm?

    Arguments: name_next, a function from the nodes revealed (B, l - 1) to those named after each of
        them (B, l - 1); arms (B, deg, l) and path (B, l), int64.
    Returns: a dict of bool tensors (B,), for evaluate; without another arm or inner nodes, empty.
    """
    deg, path_len = arms.shape[1:]
    if deg == 1 or path_len < 3:
        return {}
    wrong = another_arm(arms, path)  # (B, l)
    named = name_next(wrong[:, :-1])  # (B, l - 1): tokens 1 … l - 1
    ends = {"writes_arm_end": named[:, -1] == wrong[:, -1]}
    ends |= {"writes_goal": named[:, -1] == path[:, -1]}
    inner = (named == wrong[:, 1:])[:, 1:-1]  # without first step and end: (B, l - 3)
    return ends | ({"cheat_rate": inner.all(dim=1)} if path_len > 3 else {})


def measure(model, prefix, path, s):
    """evaluate for one batch: bool tensors (B,) or (B, l); margin (B,), float."""
    path_len = path.shape[1]
    in_order = (lambda tokens: tokens.flip(1)) if s.reverse else (lambda tokens: tokens)
    arms = data.trace_arms(prefix, s.deg, s.num_nodes)  # (B, deg, l)
    is_goal_arm = (arms == path[:, None]).all(dim=2)  # (B, deg)

    measured = {}
    if s.objective == "teacherless":
        logits = logits_without_teacher(model, prefix, path_len, s.num_nodes)  # (B, l, V)
        written = forced = in_order(logits.argmax(dim=2))
        logits = logits[:, 1:]  # (B, l - 1, V), as below
    else:
        # Three continuations of one prefix: free, with the true path revealed, and on a wrong arm.
        # Each writes into the cache, so all but the last have a copy.
        first, cache = read_prefix(model, prefix, path_len)
        written = in_order(write_on(model, first, path_len, copy.deepcopy(cache)))
        logits = model(in_order(path)[:, :-1], cache=copy.deepcopy(cache))  # (B, l - 1, V)
        forced = in_order(torch.cat([first, logits.argmax(dim=2)], dim=1))
        if not s.reverse:
            name_next = lambda nodes: model(nodes, cache=cache).argmax(dim=2)
            measured |= on_a_wrong_arm(name_next, arms, path)
    if s.deg > 1 and path_len > 2:
        # A difference of logits is a difference of log-probabilities.
        place = path_len - 2 if s.reverse else 1  # of the difficult token, in the order written
        difficult = logits[:, place - 1].float()  # (B, V); logits begin with the second token's
        firsts = difficult.gather(1, arms[:, :, 1])  # (B, deg): the first node of each arm
        wrong_firsts = firsts.masked_fill(is_goal_arm, -torch.inf)
        measured["margin"] = firsts[is_goal_arm] - wrong_firsts.amax(dim=1)

    right = (written == path).all(dim=1)
    is_arm = (arms == written[:, None]).all(dim=2).any(dim=1)
    measured |= {
        "accuracy": right,
        "position_accuracy": written == path,
        "forced_accuracy": forced == path,
        "difficult": written[:, 1] == path[:, 1],
        "wrong_arm": is_arm & ~right,
        "no_path": ~is_arm,
    }
    return measured
