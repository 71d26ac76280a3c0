"""Joint multi-token prediction: later tokens, with a teacher, from one state (Ahn et al. 2025).

    python beyond/joint_tokens.py [train.py's flags]

JTP (arXiv 2503.21801) keeps next-token prediction and adds a small module that predicts the tokens
after the next. As under teacher forcing, it is shown the true tokens before the one that it must
name, but of all that came earlier it sees a single hidden state h. From the state that has seen
only the start:

    reads      h(… s g = s)   a   b       the teacher reveals a, and then b
    targets          .        b   g       h itself predicts a, by the next-token head

The module cannot look up in the prefix which edge leads on from a, so h must already hold what
follows: a signal about the arms that next-token prediction does not give. Here the module is the
GPT's output head 2, one block, on sequences of its own, with h as a token before those revealed (in
the paper, h is added to each of them), and it predicts to the end of the path. The loss is
next-token's cross-entropy plus the mean of the module's, with weight 1; the module is dropped at
decoding. The cost: one block, on l - 1 sequences of l tokens a graph.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import data  # noqa: E402
import train  # noqa: E402
from beyond.belief_state import states  # noqa: E402
from evaluate import evaluate  # noqa: E402, F401 (the loop calls it)
from plumbing import flags  # noqa: E402


def make_model(s):
    """train.py's GPT with the module as output head 2. Raises: ValueError for another model."""
    flags.check_idea(s)
    model = train.make_model(SimpleNamespace(**vars(s) | {"n_future": 2}))
    model.future[0].attn.prefix_len = 0  # what the module reads has no prefix
    return model


def windows(h, x, path):
    """For each state before a token of the path: what the module reads, and what it must name.

    Arguments: h (B, l, C), float, the states; x (B, l, C), float, the tokens' embeddings; path
        (B, l), int64.
    Returns: inputs (B (l - 1), l, C), where row t of a graph is h_t, x_t, x_{t+1} … and is filled
        up with the last token; targets (B (l - 1), l), int64, data.IGNORE for the token that h_t
        itself predicts and past the end. (From the last state, nothing is left to name.)
    """
    l = path.shape[1]
    t, i = torch.arange(l - 1, device=path.device)[:, None], torch.arange(l, device=path.device)
    revealed = x[:, (t + i[:-1]).clamp(max=l - 1)]  # (B, l - 1, l - 1, C)
    inputs = torch.cat([h[:, :-1, None], revealed], dim=2)
    targets = path[:, (t + i).clamp(max=l - 1)].masked_fill((i == 0) | (t + i >= l), data.IGNORE)
    return inputs.flatten(0, 1), targets.flatten(0, 1)


def losses(model, inputs, path):
    """The cross-entropies of the next token and of those after it: two scalars.

    Arguments: inputs (B, P + l - 1), laid out for "next", and path (B, l), int64.
    """
    h = states(model, inputs, path.shape[1])
    next_token = F.cross_entropy(model.lm_head(h).flatten(0, 1), path.flatten())
    told, targets = windows(h, model.wte(path), path)
    logits = model.head(told, k=1)  # (B (l - 1), l, V)
    later = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=data.IGNORE)
    return next_token, later


def learn(model, prefix, path, s, step):
    """Add the gradients of one batch: see train.learn. Returns: the loss, a float."""
    inputs, _ = data.layout("next", prefix, path, s.num_nodes)
    loss = sum(losses(model, inputs, path))
    loss.backward()
    return loss.item()


if __name__ == "__main__":
    train.main(idea=sys.modules[__name__])
