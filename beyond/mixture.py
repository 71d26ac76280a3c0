"""Three ways to hide the path, in turns: no token, random ones, or all from some place on.

    python beyond/mixture.py [train.py's flags]

TokenUnify (Chen et al. 2024, arXiv 2405.16847) mixes next-token prediction with the prediction of
random tokens and of all the tokens that follow. For a path, each of them hides other inputs:

    next        … s g =  s  a  b      nothing is hidden
    random      … s g =  s  $  b      each token is, with a chance drawn for its graph
    all next    … s g =  s  $  $      all are, from a place drawn for its graph (from the first
    targets           s  a  b  g      place on: teacherless training)

A hidden token cannot be followed to the next one, so the signal about the plan comes back, while
the path is still decoded token by token, as in the first turn. Hiding random tokens alone is one of
the remedies of Frydenlund 2025 (arXiv 2503.10542). (TokenUnify is about images. This is its mixture
of objectives in short, not its network: there, a random token is predicted from both sides, and the
objectives' weights change as training goes on.) A step costs what it costs in train.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import torch  # noqa: E402

import data  # noqa: E402
import train  # noqa: E402
from evaluate import evaluate  # noqa: E402, F401 (the loop calls it)
from plumbing import flags, graph_files  # noqa: E402

TURNS = ("next", "random", "all next")


def make_model(s):
    """train.py's GPT. Raises: ValueError for another model."""
    flags.check_idea(s)
    return train.make_model(s)


def hidden(turn, path, s, step):
    """Which of the path's tokens are hidden in the inputs: (B, l - 1), bool. turn: one of TURNS."""
    generator = graph_files.generator_for(s.seed, graph_files.HOLES, step)
    B, places = len(path), path.shape[1] - 1
    share = torch.rand(B, 1, generator=generator)
    if turn == "next":
        hide = torch.zeros(B, places, dtype=torch.bool)
    elif turn == "random":
        hide = torch.rand(B, places, generator=generator) < share
    else:
        hide = torch.arange(places) >= (share * places).int()
    return hide.to(path.device)


def learn(model, prefix, path, s, step):
    """Add the gradients of one batch, of one kind: see train.learn. Returns: the loss, a float."""
    inputs, targets = data.layout("next", prefix, path, s.num_nodes)
    P = prefix.shape[1]
    hide = hidden(TURNS[step % len(TURNS)], path, s, step)
    inputs[:, P:] = inputs[:, P:].masked_fill(hide, s.num_nodes + data.DUMMY)
    return train.add_gradients(model, inputs, targets)


if __name__ == "__main__":
    train.main(idea=sys.modules[__name__])
