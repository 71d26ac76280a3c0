"""Hidden states of later tokens, guessed halfway through the network (FIRP, Wu et al. 2024).

    python beyond/future_states.py [train.py's flags]

FIRP (arXiv 2410.20488) drafts several tokens in one pass. At a middle layer, linear maps make of
the newest token's hidden state h one *pseudo state* for each later token. They stand behind it, as
if those tokens had been read, go through the layers above, and are decoded there. When the model
has read s:

    lower layers    … s g =  s
    upper layers    … s g =  s  h1 h2 h3      where h1 = W1 h, h2 = W2 h, h3 = W3 h
    targets                  a  b  c  g       a is the next token; b, c and g are drafts

A head of --multi has one block of its own; a draft goes through all the upper layers, and sees the
drafts before it. To draft b from s alone, h must hold the plan, or the layers above must find it.
The authors train the maps alone, on a finished model; here all is trained from the start, as an
objective: next-token's cross-entropy, plus that of the pass above, from a place that is drawn for
each step. Decoding is next-token. The cost: one pass more a step.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import data  # noqa: E402
import train  # noqa: E402
from evaluate import GRAPHS_AT_ONCE  # noqa: E402
from evaluate import evaluate as measure_written  # noqa: E402
from plumbing import flags, graph_files  # noqa: E402

DRAFTS = 3  # pseudo states, as many as --multi has heads beside the next token's


def make_model(s):
    """train.py's GPT with the linear maps. Raises: ValueError for another model."""
    flags.check_idea(s)
    model = train.make_model(s)
    model.pseudo = nn.Linear(s.n_embd, DRAFTS * s.n_embd)
    return model


def draft(model, tokens):
    """One pass that names the next token and DRAFTS later ones: tokens (B, T), int64, to logits
    (B, 1 + DRAFTS, V), float.
    """
    T, middle = tokens.shape[1], len(model.h) // 2
    x = model.wte(tokens) + model.wpe.weight[:T]
    for block in model.h[:middle]:
        x = block(x, x.shape[1])
    x = torch.cat([x, model.pseudo(x[:, -1]).unflatten(1, (DRAFTS, -1))], dim=1)
    for block in model.h[middle:-1]:
        x = block(x, x.shape[1])
    return model.lm_head(model.ln_f(model.h[-1](x, 1 + DRAFTS)))


def draft_loss(model, prefix, path, i):
    """The mean cross-entropy of token i of the path (B, l) and the DRAFTS after it: a scalar."""
    logits = draft(model, torch.cat([prefix, path[:, :i]], dim=1))
    targets = F.pad(path, (0, DRAFTS), value=data.IGNORE)[:, i : i + 1 + DRAFTS]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=data.IGNORE)


def learn(model, prefix, path, s, step):
    """Add the gradients of one batch: see train.learn. Returns: the loss, of both kinds."""
    next_token = train.learn(model, prefix, path, s, step)
    generator = graph_files.generator_for(s.seed, graph_files.HOLES, step)
    i = int(torch.randint(s.path_len - 1, (), generator=generator))  # a next token, and a draft
    loss = draft_loss(model, prefix, path, i)
    loss.backward()
    return next_token + loss.item()


@torch.no_grad()
def evaluate(model, prefix, path, s):
    """As evaluate.evaluate, with drafts: how often each token after the start is right, as named
    in one pass from the start alone; the first is the next token, the others are drafts.
    """
    measured = measure_written(model, prefix, path, s)
    tokens = torch.cat([prefix, path[:, :1]], dim=1)
    named = torch.cat([draft(model, part).argmax(2) for part in tokens.split(GRAPHS_AT_ONCE)])
    right = named[:, : s.path_len - 1] == path[:, 1 : 2 + DRAFTS]
    return measured | {"drafts": right.double().mean(dim=0).tolist()}


if __name__ == "__main__":
    train.main(idea=sys.modules[__name__])
