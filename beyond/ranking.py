"""Ranking into the future: what comes later must outrank what never comes (Frydenlund 2025).

    python beyond/ranking.py [train.py's flags]

"Language Models, Graph Searching, and Supervision Adulteration" (arXiv 2503.10542) changes what the
one output head must say, and nothing else. Of all tokens, those still to come rank first, in the
order in which they come:

    inputs     … s g  =               s           a       b
    ranking           s > a > b > g   a > b > g   b > g   g     … > every other token

The next token is on top, so decoding stays greedy, and the cheat still finds it wherever the path
is revealed. But the place that sees only s must rank b and g as well, several edges ahead, which
nothing reveals. Each pair in which the first must outrank the second costs

    log(1 + exp(score of the second - score of the first))      (RankNet, Burges et al. 2005),

and the loss is the mean over the pairs. It takes the place of the cross-entropy. This follows the
paper's idea, not its code: that pairs have this smooth cost, and that the lower group is the whole
rest of the vocabulary, is our choice. It adds no module, and next to no time.

Until the arm is known, the best ranking at the place that sees only s puts the goal and the second
nodes almost level with the first ones, so that a noisy one names no child of s: worse than chance.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import data  # noqa: E402
import train  # noqa: E402
from evaluate import evaluate  # noqa: E402, F401 (the loop calls it)
from plumbing import flags  # noqa: E402


def make_model(s):
    """train.py's GPT. Raises: ValueError for another model."""
    flags.check_idea(s)
    return train.make_model(s)


def ranking_loss(logits, path):
    """The mean cost of the pairs, over all outputs and graphs: a scalar.

    Arguments: logits (B, l, V), float, where row t must name token t of the path; path (B, l),
        int64, without repeats.
    """
    B, l, V = logits.shape
    place = torch.arange(l, device=path.device)
    ahead = place[None, :] - place[:, None]  # (l, l): from output t to token i
    rank = (l - ahead).masked_fill(ahead < 0, 0)  # the highest is next; 0 is for all that is past
    rank = rank.expand(B, l, l)
    where = path[:, None].expand(B, l, l)
    ranks = rank.new_zeros(B, l, V).scatter(2, where, rank)  # 0 for what is not on the path, too
    scores = logits.gather(2, where)  # (B, l, l): the path's own
    cost = F.softplus(logits[:, :, None, :] - scores[:, :, :, None])  # (B, l, l, V)
    return cost[rank[:, :, :, None] > ranks[:, :, None, :]].mean()


def learn(model, prefix, path, s, step):
    """Add the gradients of one batch: see train.learn. Returns: the loss, a float."""
    inputs, _ = data.layout("next", prefix, path, s.num_nodes)
    loss = ranking_loss(model(inputs, num_outputs=path.shape[1]), path)
    loss.backward()
    return loss.item()


if __name__ == "__main__":
    train.main(idea=sys.modules[__name__])
