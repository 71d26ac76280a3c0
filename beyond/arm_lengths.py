"""Arms of mixed lengths: next-token prediction, unchanged, on graphs that teach the plan in parts.

    python beyond/arm_lengths.py [train.py's flags]

Frydenlund 2025 (arXiv 2503.10542) holds that the path-star task is hard because it comes whole: the
first step needs all lookups at once, and no example asks for fewer. Among his remedies are arms of
mixed lengths. Here the ends of arms move. The last n nodes of one arm are hung on the end of
another, with n drawn anew for each step, and one of the two new ends is the goal:

      ┌─> a ─> b ─> c ─> g                 ┌─> a ─> b                  path s a b, goal b
    s ┤                        n = 2     s ┤
      └─> w ─> x ─> y ─> z                 └─> w ─> x ─> y ─> z ─> c ─> g     path s w … g

The cheat is as good as before, and nothing is hidden. But on a short arm the goal is one or two
lookups away from the difficult token, so that there is a first lookup to learn, and then a second.
The labels and the number of edges stay the same, and so do the test graphs, whose arms are all of
one length. (The idea is the paper's; which lengths are drawn, how, and that they differ within a
graph, is our own choice.) Paths have 2 to 2 l - 2 tokens; a step costs, on average, what it costs
in train.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import torch  # noqa: E402

import data  # noqa: E402
import train  # noqa: E402
from evaluate import another_arm, evaluate  # noqa: E402, F401
from plumbing import flags, graph_files  # noqa: E402


def make_model(s):
    """train.py's GPT with room for longer paths. Raises: ValueError without a second arm, or for
    another model.
    """
    flags.check_idea(s)
    if s.deg == 1:
        raise ValueError("arm_lengths.py moves nodes to another arm; give --deg 2 or more")
    return train.make_model(s, more_tokens=s.path_len - 2)


def move_tail(prefix, path, n, longer, s):
    """Move the last n nodes of the goal's arm to the end of another arm.

    Arguments: prefix (B, P) and path (B, l), int64; n, from 0 to l - 2; longer, whether the goal is
        the end of the arm that has become longer.
    Returns: the new prefix (B, P) and path (B, l + n), or (B, l - n) if not longer.
    """
    if n == 0:
        return prefix, path
    edges, start, _ = data.split_prefix(prefix)
    other = another_arm(data.trace_arms(prefix, s.deg, s.num_nodes), path)  # (B, l)
    stays, moves = path[:, :-n], path[:, -n:]
    cut = edges[:, :, 1] == moves[:, :1]  # (B, E): the edge into the first node that moves
    edges = edges.clone()
    edges[:, :, 0] = torch.where(cut, other[:, -1:], edges[:, :, 0])
    path = torch.cat([other, moves], dim=1) if longer else stays
    return data.write_prefix(edges, start, path[:, -1], s.num_nodes), path


def learn(model, prefix, path, s, step):
    """Add the gradients of one batch: see train.learn. Returns: the loss, a float."""
    generator = graph_files.generator_for(s.seed, graph_files.HOLES, step)
    n = int(torch.randint(s.path_len - 1, (), generator=generator))
    longer = bool(torch.randint(2, (), generator=generator))
    return train.learn(model, *move_tail(prefix, path, n, longer, s), s, step)


if __name__ == "__main__":
    train.main(idea=sys.modules[__name__])
