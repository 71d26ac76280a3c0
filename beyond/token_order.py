"""Token order prediction: a second head ranks which tokens come soon (Zuhri et al. 2025).

    python beyond/token_order.py [train.py's flags]

TOP (arXiv 2508.19228, section 3) keeps next-token prediction and adds one linear head. Where the
next token is the first of `a b g`, its target is a distribution over the vocabulary that falls off
with the distance to a token's next occurrence:

    inputs            … s g =  s
    next              a
    order             softmax of the scores a: W, b: W - 1, g: W - 2, others: minus infinity

So the place that sees only s must tell the nodes of its arm from the other arm's. W is the window,
here the path's length. The loss is next-token's cross-entropy plus this one's, with equal weight;
the head is dropped at decoding. As in the authors' path-star experiments, it is applied to the
path only. A linear head: next to no cost a step.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import data  # noqa: E402
import train  # noqa: E402
from beyond.belief_state import states  # noqa: E402
from evaluate import evaluate  # noqa: E402, F401 (the loop calls it)
from plumbing import flags  # noqa: E402


def make_model(s):
    """train.py's GPT with one linear head more. Raises: ValueError for another model."""
    flags.check_idea(s)
    model = train.make_model(s)
    model.order = nn.Linear(s.n_embd, data.vocab_size(s.num_nodes), bias=False)
    return model


def order_targets(path, vocab_size):
    """For each token of the path, which tokens come from there on, and how soon.

    Arguments: path (B, l), int64, without repeats. Returns: (B, l, V), float; each row is a
    distribution.
    """
    B, l = path.shape
    place = torch.arange(l, device=path.device)
    distance = place[None, :] - place[:, None]  # (l, l): from output i to token j
    scores = (l - distance).float().masked_fill(distance < 0, -torch.inf)
    soon = scores.softmax(dim=1).expand(B, -1, -1)  # (B, l, l)
    where = path[:, None].expand(-1, l, -1)
    return torch.zeros(B, l, vocab_size, device=path.device).scatter(2, where, soon)


def losses(model, inputs, path):
    """The two cross-entropies, of the next token and of the order: two scalars."""
    hidden = states(model, inputs, path.shape[1])  # (B, l, C)
    logits, order = model.lm_head(hidden), model.order(hidden)  # (B, l, V) each
    targets = order_targets(path, logits.shape[2])
    next_token = F.cross_entropy(logits.flatten(0, 1), path.flatten())
    return next_token, F.cross_entropy(order.flatten(0, 1), targets.flatten(0, 1))


def learn(model, prefix, path, s, step):
    """Add the gradients of one batch: see train.learn. Returns: the loss, of both heads."""
    inputs, _ = data.layout("next", prefix, path, s.num_nodes)
    loss = sum(losses(model, inputs, path))
    loss.backward()
    return loss.item()


if __name__ == "__main__":
    train.main(idea=sys.modules[__name__])
