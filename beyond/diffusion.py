"""Masked discrete diffusion: the path's holes are filled one by one, the surest first.

    python beyond/diffusion.py [train.py's flags]

Training is that of masked.py, with the weight 1 / t, where t is the probability with which each
token of a graph was hidden. It makes the loss a bound on the likelihood (Sahoo et al. 2024, arXiv
2406.07524; Nie et al. 2025, arXiv 2502.09992); here it is at most 20, and the bound not exact.
What differs is decoding: from a path of holes, in each pass the token of which the model is surest
is written, until none is left. Nobody tells the model in which order, and the order shows what it
knows:

    $ $ $ $     $ $ $ g     $ $ b g     $ a b g     s a b g         (one order of many)

On star graphs, models of this kind were seen to decode from the goal back (arXiv 2602.19980).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import torch  # noqa: E402

import train  # noqa: E402
from beyond.masked import (  # noqa: E402, F401
    forced_tokens,
    holes,
    logits_of,
    loss_of,
    make_model,
    measure,
)
from evaluate import GRAPHS_AT_ONCE  # noqa: E402


def learn(model, prefix, path, s, step):
    """Add the gradients of one batch: see train.learn. Returns: the loss, a float."""
    hidden, share = holes(path, s, step)
    loss = loss_of(model, prefix, path, hidden, 1 / share.clamp(min=0.05), s.num_nodes)
    loss.backward()
    return loss.item()


def decode(model, prefix, length, num_nodes):
    """Fill the holes, the surest first.

    Returns: the path (B, l), int64, and the pass in which each token was written, 1 … l, (B, l).
    """
    path = prefix[:, :1].expand(-1, length).clone()  # no token of it is shown while it is hidden
    hidden = torch.ones_like(path, dtype=torch.bool)
    order = torch.zeros_like(path)
    for turn in range(1, length + 1):
        p, token = logits_of(model, prefix, path, hidden, num_nodes).softmax(dim=2).max(dim=2)
        surest = p.masked_fill(~hidden, -1).argmax(dim=1, keepdim=True)  # (B, 1)
        path.scatter_(1, surest, token.gather(1, surest))
        hidden.scatter_(1, surest, False)
        order.scatter_(1, surest, turn)
    return path, order


@torch.no_grad()
def evaluate(model, prefix, path, s):
    """As masked.evaluate, with this decoding. decoding_order: each token's mean pass, from 1 on."""
    parts = []
    for p, q in zip(prefix.split(GRAPHS_AT_ONCE), path.split(GRAPHS_AT_ONCE)):
        forced = forced_tokens(model, p, q, s.num_nodes)
        parts.append((*decode(model, p, s.path_len, s.num_nodes), forced))
    written, order, forced = (torch.cat(part) for part in zip(*parts))
    mean_order = order.double().mean(dim=0).tolist()
    return measure(written, forced, path) | {"decoding_order": mean_order}


if __name__ == "__main__":
    train.main(idea=sys.modules[__name__])
