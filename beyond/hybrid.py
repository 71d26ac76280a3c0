"""Teacherless and next-token batches in turns; decoded token by token (Nagarajan et al. 2025).

    python beyond/hybrid.py [train.py's flags]

"Roll the dice & look before you leap" (arXiv 2504.15266) trains one model on both:

    even steps   inputs   … s g =  $  $  $     nothing is revealed: a signal about the plan
                 targets         s  a  b  g
    odd steps    inputs   … s g =  s  a  b     the teacher is back: the model learns to go on from
                 targets         s  a  b  g    its own tokens, and is decoded so

The question is whether the first step of the second kind profits from the plan that the first kind
teaches: `=` sees the same tokens in both, but the position after it does not. A step costs what it
costs in train.py.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import train  # noqa: E402
from evaluate import evaluate  # noqa: E402, F401 (the loop calls it)
from plumbing import flags  # noqa: E402


def make_model(s):
    """train.py's GPT. Raises: ValueError for another model."""
    flags.check_idea(s)
    return train.make_model(s)


def learn(model, prefix, path, s, step):
    """Add the gradients of one batch, of either kind: see train.learn. Returns: the loss."""
    turn = SimpleNamespace(**vars(s) | {"objective": "next" if step % 2 else "teacherless"})
    return train.learn(model, prefix, path, turn, step)


if __name__ == "__main__":
    train.main(idea=sys.modules[__name__])
