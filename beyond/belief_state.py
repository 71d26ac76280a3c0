"""The Belief State Transformer: one encoder reads forward, one backward (Hu et al. 2025).

    python beyond/belief_state.py [train.py's flags]

BST (arXiv 2410.23506, sections 2 and 3) predicts from every prefix *and* every suffix the token
after the prefix and the one before the suffix. For the path s a b g, three of its ten pairs:

    forward reads   … s g =           … s g =             … s g = s
    backward reads  nothing           g                   g b
    targets         s and g           s and b             a and a

The state of `=` must hold enough of the graph to name b when it is told g, and a when it is told b:
a belief state, which holds the way back from the goal. Prefixes end in the path or at `=`, and
suffixes are of the path; an MLP on both states has two heads, and the loss is the mean of both
cross-entropies over all pairs. (The authors' encoders share the token embedding; these do not.)
Decoding is next-token, with the state of an empty suffix. The cost: a second network of the same
size, on few tokens.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import data  # noqa: E402
import train  # noqa: E402
from beyond.masked import measure  # noqa: E402
from evaluate import GRAPHS_AT_ONCE, on_a_wrong_arm  # noqa: E402
from model_gpt import GPT, GPTConfig  # noqa: E402
from plumbing import flags  # noqa: E402


def make_model(s):
    """train.py's GPT, a second one that reads the path backward, and the MLP on both states."""
    flags.check_idea(s)
    model = train.make_model(s)
    c = model.config
    model.backward_encoder = GPT(GPTConfig(**vars(c) | {"block_size": s.path_len, "prefix_len": 0}))
    both, V = 2 * c.n_embd, data.vocab_size(s.num_nodes)
    model.join = nn.Sequential(nn.Linear(both, both), nn.GELU(), nn.Linear(both, 2 * V))
    return model


def states(gpt, tokens, count):
    """The last `count` normed states of a GPT: tokens (B, T) -> (B, count, C)."""
    return gpt.ln_f(gpt.h[-1](gpt.trunk(tokens), count))


def both_tokens(model, forward, backward):
    """Logits of the next and the previous token: states (…, C) each -> (…, 2, V)."""
    return model.join(torch.cat([forward, backward], dim=-1)).unflatten(-1, (2, -1))


def loss_of(model, prefix, path, num_nodes):
    """The mean of both cross-entropies over all pairs of a prefix and a suffix: a scalar."""
    l = path.shape[1]
    nothing = torch.full_like(path[:, :1], num_nodes + data.DUMMY)
    forward = states(model, torch.cat([prefix, path[:, :-1]], dim=1), l)  # i has seen i tokens
    backward = states(model.backward_encoder, torch.cat([nothing, path.flip(1)[:, :-1]], dim=1), l)
    n = torch.arange(l, device=path.device)
    i, j = (n[:, None] + n < l).nonzero().T  # all pairs
    logits = both_tokens(model, forward[:, i], backward[:, j])  # (B, pairs, 2, V)
    targets = torch.stack([path[:, i], path[:, l - 1 - j]], dim=2)  # (B, pairs, 2)
    return F.cross_entropy(logits.flatten(0, 2), targets.flatten())


def learn(model, prefix, path, s, step):
    """Add the gradients of one batch: see train.learn. Returns: the loss, a float."""
    loss = loss_of(model, prefix, path, s.num_nodes)
    loss.backward()
    return loss.item()


def measure_written(next_tokens, prefix, path, s):
    """evaluate.evaluate's measurements but the margin, of a model that writes token by token.

    Arguments: next_tokens, a function from a prefix (B, P) and the path so far (B, k) to the
        tokens that the model names at each place, (B, k + 1); prefix (M, P) and path (M, l), int64.
    """
    written, forced, wrong_arm = [], [], []
    for p, q in zip(prefix.split(GRAPHS_AT_ONCE), path.split(GRAPHS_AT_ONCE)):
        tokens = q[:, :0]
        for _ in range(s.path_len):
            tokens = torch.cat([tokens, next_tokens(p, tokens)[:, -1:]], dim=1)
        written.append(tokens)
        forced.append(next_tokens(p, q[:, :-1]))
        arms = data.trace_arms(p, s.deg, s.num_nodes)
        wrong_arm.append(on_a_wrong_arm(lambda nodes: next_tokens(p, nodes)[:, 1:], arms, q))
    return measure(torch.cat(written), torch.cat(forced), path, wrong_arm)


@torch.no_grad()
def evaluate(model, prefix, path, s):
    """See measure_written. The suffix is empty: nothing of the rest of the path is shown."""

    def next_tokens(prefix, so_far):
        nothing = torch.full_like(prefix[:, :1], s.num_nodes + data.DUMMY)
        forward = states(model, torch.cat([prefix, so_far], dim=1), so_far.shape[1] + 1)
        backward = states(model.backward_encoder, nothing, 1).expand_as(forward)
        return both_tokens(model, forward, backward)[:, :, 0].argmax(dim=2)

    return measure_written(next_tokens, prefix, path, s)


if __name__ == "__main__":
    train.main(idea=sys.modules[__name__])
