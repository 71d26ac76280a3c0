"""Masked training: a random share of the path is hidden, and must be found from all the rest.

    python beyond/masked.py [train.py's flags]

MLM-U (Kitouni et al. 2024, arXiv 2406.05183, sections 2.2 and 4) draws for each graph how much of
its answer is hidden, uniformly from 0 to 1, and predicts what is hidden from what is shown before
*and after* it. A GPT, which writes causally, can do so when the answer, with its holes, is a part
of what it reads:

    inputs   … s g =  s  $  $  g   $  $  $  $     each output sees the whole of the path that is
    targets                         .  a  b  .    shown; only what is hidden is trained on (dots:
                                                  no target)

With all of it hidden this is teacherless training, on longer inputs. It is decoded at once, from a
path of holes; the authors write it token by token. They also divide each graph's loss by the number
of its hidden tokens; here every hidden token counts the same. The cost: 2 l tokens, not l - 1.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import data  # noqa: E402
import train  # noqa: E402
from evaluate import GRAPHS_AT_ONCE  # noqa: E402
from plumbing import flags, graph_files  # noqa: E402


def make_model(s):
    """train.py's GPT with room for the path and its holes. Raises: ValueError for another model."""
    flags.check_idea(s)
    return train.make_model(s, more_tokens=s.path_len + 1)


def holes(path, s, step):
    """Which tokens are hidden, (B, l), bool, and the share that was drawn, (B, 1), in (0, 1]."""
    generator = graph_files.generator_for(s.seed, graph_files.HOLES, step)
    share = 1 - torch.rand(len(path), 1, generator=generator)
    hidden = torch.rand(path.shape, generator=generator) < share
    return hidden.to(path.device), share.to(path.device)


def logits_of(model, prefix, path, hidden, num_nodes):
    """The logits of every token of the path, seen with its holes: (B, l, V)."""
    shown = path.masked_fill(hidden, num_nodes + data.DUMMY)
    dummies = torch.full_like(path, num_nodes + data.DUMMY)
    return model(torch.cat([prefix, shown, dummies], dim=1), num_outputs=path.shape[1])


def loss_of(model, prefix, path, hidden, weight, num_nodes):
    """The cross-entropy of the hidden tokens, each with its graph's weight (B, 1): a scalar."""
    logits = logits_of(model, prefix, path, hidden, num_nodes)
    each = F.cross_entropy(logits.transpose(1, 2), path, reduction="none")  # (B, l)
    return (each * hidden * weight).mean()


def learn(model, prefix, path, s, step):
    """Add the gradients of one batch: see train.learn. Returns: the loss, a float."""
    hidden, share = holes(path, s, step)
    loss = loss_of(model, prefix, path, hidden, torch.ones_like(share), s.num_nodes)
    loss.backward()
    return loss.item()


def measure(written, forced, path, wrong_arm=({},)):
    """What evaluate.evaluate reports, of tokens written, forced and true, (B, l) each.

    Arguments: wrong_arm, what evaluate.on_a_wrong_arm returned for each batch, where it was asked.
    """
    cheat = {name: torch.cat([hits[name] for hits in wrong_arm]) for name in wrong_arm[0]}
    return {name: hits.double().mean().item() for name, hits in cheat.items()} | {
        "accuracy": (written == path).all(dim=1).double().mean().item(),
        "position_accuracy": (written == path).double().mean(dim=0).tolist(),
        "forced_accuracy": (forced == path).double().mean(dim=0).tolist(),
        "difficult": (written[:, 1] == path[:, 1]).double().mean().item(),
    }


def forced_tokens(model, prefix, path, num_nodes):
    """What the model says of each token when that one alone is hidden: (B, l), int64."""
    alone = torch.eye(path.shape[1], dtype=torch.bool, device=path.device)  # row i hides token i
    rows = [logits_of(model, prefix, path, h.expand_as(path), num_nodes).argmax(2) for h in alone]
    return torch.stack([row[:, i] for i, row in enumerate(rows)], dim=1)


@torch.no_grad()
def evaluate(model, prefix, path, s):
    """As evaluate.evaluate; all tokens are written at once. forced: see forced_tokens."""
    written, forced = [], []
    for p, q in zip(prefix.split(GRAPHS_AT_ONCE), path.split(GRAPHS_AT_ONCE)):
        everything = torch.ones_like(q, dtype=torch.bool)
        written.append(logits_of(model, p, q, everything, s.num_nodes).argmax(2))
        forced.append(forced_tokens(model, p, q, s.num_nodes))
    return measure(torch.cat(written), torch.cat(forced), path)


if __name__ == "__main__":
    train.main(idea=sys.modules[__name__])
