"""Write paths with a trained model, and measure what it does (sections 4 and 5 of the paper).

The question is not only how often a path is right, but why. A model that learned the Clever Hans cheat is perfect
wherever the path so far is revealed to it, follows any arm it is put on, and guesses the first step.
"""

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F

import data

GRAPHS_AT_ONCE = 500  # what one batch of the evaluation holds; bounds its memory


def decode(model, prefix, length, objective, num_nodes):
    """Write paths with the most likely token at every place (greedy decoding), in the order the model was trained on.

    A teacherless model writes all places in one pass; the others write one token after the other, with a cache.
    Arguments: prefix (B, P), int64; length, of the path, in tokens. Returns: (B, length), int64.
    """
    if objective == "teacherless":
        return without_a_teacher(model, prefix, length, num_nodes).argmax(dim=2)
    first, cache = read_prefix(model, prefix, length)
    return write_on(model, first, length, cache)


def without_a_teacher(model, prefix, length, num_nodes):
    """A teacherless model's logits for all places of the path, in one pass: (B, length, V)."""
    no_path = prefix[:, :1].expand(-1, length)  # only its shape matters: no token of it is shown
    inputs, _ = data.layout("teacherless", prefix, no_path, num_nodes)
    return model(inputs, num_logits=length)


def read_prefix(model, prefix, length):
    """Run the prefix (B, P) into a cache with room for a path. Returns: the first token written (B, 1), and the cache."""
    cache = model.new_cache(len(prefix), prefix.shape[1] + length - 1)
    return model(prefix, 1, cache).argmax(dim=2), cache


def write_on(model, first, length, cache):
    """Greedy decoding after `first` (B, 1), which the cache has not seen yet: (B, length) with `first` in front."""
    tokens = [first]
    while len(tokens) < length:
        tokens.append(model(tokens[-1], 1, cache).argmax(dim=2))
    return torch.cat(tokens, dim=1)


def follow(model, path, cache):
    """Reveal `path` (B, l) to the model as it goes (teacher forcing). Returns: the logits at each place but the first,
    (B, l - 1, V). Arguments: cache, from read_prefix.
    """
    return model(path[:, :-1], cache=cache)


@torch.no_grad()
def decode_by_drafts(model, prefix, length):
    """Greedy decoding in fewer passes: self-speculative decoding (Gloeckle et al. 2024, section 3.2; Stern et al. 2018).

    Heads 2 … n draft the tokens after the next. The next pass of the model reads the drafts as if they were written
    and says at each what it would have written itself; drafts are kept up to the first on which the two differ. So
    every token is head 1's choice, as in `decode`, and drafts can only save time.

    Arguments: prefix (1, P), int64: one graph, since each would keep a different number of drafts; length, in tokens.
    Returns: the path (1, length), int64, and the number of passes, the prefix's among them.
    """
    cache = model.new_cache(1, prefix.shape[1] + length - 1)
    unread, drafts, tokens, passes = prefix, prefix[:, :0], prefix[:, :0], 0
    while True:
        saved = copy.deepcopy(cache) if drafts.shape[1] > 0 else None
        trunk = model.trunk(torch.cat([unread, drafts], dim=1), cache)
        says = model.head(trunk, 0, drafts.shape[1] + 1, cache).argmax(dim=2)
        passes += 1
        agree = (says[:, :-1] == drafts).int().cumprod(dim=1)  # 1 up to the first draft that differs
        kept = int(agree.sum())
        new = says[:, : kept + 1]  # the drafts that were kept, and the model's own word after them
        tokens = torch.cat([tokens, new], dim=1)
        if tokens.shape[1] == length:
            return tokens, passes
        heads = range(1, model.config.n_future)
        ahead = [model.head(trunk, k, drafts.shape[1] + 1, cache).argmax(dim=2) for k in heads]
        if kept == drafts.shape[1]:
            unread = new[:, -1:]
        else:  # the cache has read drafts that were wrong: go back, and read what was right with the next drafts
            cache, unread = saved, torch.cat([unread, new], dim=1)
        drafts = torch.cat([said[:, kept : kept + 1] for said in ahead] + [prefix[:, :0]], dim=1)
        drafts = drafts[:, : length - tokens.shape[1] - 1]  # a pass writes one token more than it keeps drafts


@torch.no_grad()
def evaluate(model, prefix, path, s):
    """Measure a model on one set of graphs. All numbers but the margin are shares of the graphs, from 0 to 1:

    accuracy            the whole path is right, by greedy decoding (exact match)
    position_accuracy   each place of the path is right, from the start to the goal
    forced_accuracy     the same with the true path so far revealed (teacher forcing). A teacherless model is shown no
                        path: it has written all places freely, and this is position_accuracy again
    difficult           the first node after the start is right; chance is 1/deg
    margin              the difficult token's log-probability less that of the likeliest first node of a wrong arm, with
                        the true path so far revealed; the mean, in nats. Only where there is a wrong arm (deg above 1)
                        and the difficult token is not the goal (path_len above 2)
    wrong_arm, no_path  the two kinds of mistake: another arm of the graph, or no arm at all
    head_accuracy       multi: row k is output head k + 1, teacher-forced; column i is path token i

    Where the path is revealed from the start on (next, multi), and there is a wrong arm, the model is also put on that
    arm, whose nodes are revealed in turn as if it had written them itself:

    cheat_rate          after the wrong arm's first node, it names each further inner node of that arm. Only if there is
                        one (path_len above 3). The last place is left out: a model that cheats may copy the goal there
    writes_arm_end, writes_goal     what it names last: the wrong arm's end, the goal, or (the rest) neither

    Arguments: prefix (M, P) and path (M, l), int64; s, the settings. Under torchrun, each process has its share of the
        graphs, and all get the numbers of the whole.
    Returns: a dict of floats and lists of floats; head_accuracy is a list of lists.
    """
    totals, count = {}, torch.tensor(len(path), device=path.device)
    for i in range(0, len(path), GRAPHS_AT_ONCE):
        for name, hits in hits_of(model, prefix[i : i + GRAPHS_AT_ONCE], path[i : i + GRAPHS_AT_ONCE], s).items():
            totals[name] = totals.get(name, 0) + hits.sum(dim=0)
    if dist.is_initialized():
        for total in (count, *totals.values()):
            dist.all_reduce(total)
    # Hits are counted in integers and divided on the CPU: not every device has float64.
    return {name: (total.cpu().double() / int(count)).tolist() for name, total in totals.items()}


def hits_of(model, prefix, path, s):
    """evaluate for one batch: a dict of bool tensors, (B,), (B, l) or (B, n_future, l); margin is float, (B,)."""
    objective, deg, num_nodes, l = s["objective"], s["deg"], s["num_nodes"], path.shape[1]
    in_order = (lambda tokens: tokens.flip(1)) if s["reverse"] else (lambda tokens: tokens)  # its own inverse
    arms = data.trace_arms(prefix, deg, num_nodes)  # (B, deg, l)
    is_goal_arm = (arms == path[:, None]).all(dim=2)  # (B, deg)

    hits, difficult = {}, l - 2 if s["reverse"] else 1  # the place at which the difficult token is written
    if objective == "teacherless":
        logits = without_a_teacher(model, prefix, l, num_nodes)
        written = forced = in_order(logits.argmax(dim=2))
        logits = logits[:, 1:]
    else:
        # Three continuations of one prefix: by the model alone, with the true path revealed, and on a wrong arm.
        first, cache = read_prefix(model, prefix, l)
        written = in_order(write_on(model, first, l, copy.deepcopy(cache)))
        logits = follow(model, in_order(path), copy.deepcopy(cache))  # (B, l - 1, V)
        forced = in_order(torch.cat([first, logits.argmax(dim=2)], dim=1))
        if not s["reverse"] and deg > 1 and l > 2:
            after_goal_arm = (is_goal_arm.int().argmax(dim=1) + 1) % deg  # (B,)
            wrong = arms[torch.arange(len(arms)), after_goal_arm]  # (B, l)
            named = follow(model, wrong, cache).argmax(dim=2)  # (B, l - 1): places 1 … l - 1
            if l > 3:
                hits["cheat_rate"] = (named == wrong[:, 1:])[:, 1:-1].all(dim=1)
            hits["writes_arm_end"], hits["writes_goal"] = named[:, -1] == wrong[:, -1], named[:, -1] == path[:, -1]
    if deg > 1 and l > 2:
        # Differences of logits are differences of log-probabilities.
        firsts = logits[:, difficult - 1].float().gather(1, arms[:, :, 1])  # (B, deg): the arms' first nodes
        hits["margin"] = firsts[is_goal_arm] - firsts.masked_fill(is_goal_arm, -torch.inf).amax(dim=1)

    right = (written == path).all(dim=1)
    is_arm = (arms == written[:, None]).all(dim=2).any(dim=1)
    hits |= {
        "accuracy": right,
        "position_accuracy": written == path,
        "forced_accuracy": forced == path,
        "difficult": written[:, 1] == path[:, 1],
        "wrong_arm": is_arm & ~right,
        "no_path": ~is_arm,
    }
    if objective == "multi":
        inputs, targets = data.layout(objective, prefix, path, num_nodes, s["reverse"], s["n_future"])
        trunk = model.trunk(inputs)
        rows = []
        for k in range(s["n_future"]):
            good = model.head(trunk, k, num_logits=l).argmax(dim=2) == targets[:, :, k]  # by where the head stands
            rows.append(in_order(F.pad(good[:, : l - k], (k, 0))))  # by the token it speaks of; it has none before k
        hits["head_accuracy"] = torch.stack(rows, dim=1)
    return hits
