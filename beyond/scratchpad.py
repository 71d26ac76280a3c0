"""The reasoning written out: first the path from the goal back, then the path.

    python beyond/scratchpad.py [train.py's flags]

If each step of the plan is a token that is trained on, next-token prediction has nothing left to
guess. The chain of lookups from the goal becomes a chain of tokens:

    inputs   … s g =  g  b  a  s  s  a  b      each token back is the only parent of the last one,
    targets         g  b  a  s  s  a  b  g     and then the path can be copied, turned round

This is what a distilled chain of thought gives (and what reverse shows to be easy). Scratchpads are
of Nye et al. 2021 (arXiv 2112.00114). It costs twice the tokens of the path, in training and at
decoding. What is measured with the true path revealed has the whole scratchpad in view.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import torch  # noqa: E402

import data  # noqa: E402
import train  # noqa: E402
from beyond.masked import measure  # noqa: E402
from evaluate import GRAPHS_AT_ONCE, decode  # noqa: E402
from plumbing import flags  # noqa: E402


def make_model(s):
    """train.py's GPT with room for the scratchpad. Raises: ValueError for another model."""
    flags.check_idea(s)
    return train.make_model(s, more_tokens=s.path_len)


def with_scratchpad(path):
    """path (B, l) -> what is written (B, 2 l): the path from the goal back, then the path."""
    return torch.cat([path.flip(1), path], dim=1)


def learn(model, prefix, path, s, step):
    """Add the gradients of one batch: see train.learn. Returns: the loss, a float."""
    inputs, targets = data.layout("next", prefix, with_scratchpad(path), s.num_nodes)
    return train.add_gradients(model, inputs, targets)


@torch.no_grad()
def evaluate(model, prefix, path, s):
    """As evaluate.evaluate, of the path that stands after the scratchpad; a dict.

    scratchpad_accuracy is the share of graphs in which the scratchpad is right.
    """
    written, forced = [], []
    for p, q in zip(prefix.split(GRAPHS_AT_ONCE), path.split(GRAPHS_AT_ONCE)):
        written.append(decode(model, p, 2 * s.path_len, "next", s.num_nodes))
        inputs, _ = data.layout("next", p, with_scratchpad(q), s.num_nodes)
        forced.append(model(inputs, num_outputs=s.path_len).argmax(dim=2))
    written, forced = torch.cat(written), torch.cat(forced)
    pad, answer = written[:, : s.path_len], written[:, s.path_len :]
    right = (pad == path.flip(1)).all(dim=1).double().mean().item()
    return measure(answer, forced, path) | {"scratchpad_accuracy": right}


if __name__ == "__main__":
    train.main(idea=sys.modules[__name__])
