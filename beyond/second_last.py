"""Second-to-last prediction: a draft is written, then refined with what stands after each token.

    python beyond/second_last.py [train.py's flags]

Generate and refine (Schneider 2024, arXiv 2411.15661) has two predictors: one names the next token,
the other the token before the last, which is easier with the last one in view. Here one network
does both, told apart by a hole, `$`. For the path s a b g, with a as the token that is hidden:

    inputs    … s g =  s  a  b        the next token, as ever
    targets         s  a  b  g
    inputs    … s g =  s  $  b        the token at the hole, from those before and the one after it
    targets                  a

The loss is the mean of next-token's cross-entropies plus that of one hole, at a place that is drawn
for each step. Decoding writes a draft token by token, then names each token but the last again,
from the right to the left, so that a token is refined with its refined successor; that pass is
ours. (The author has two networks, and the second reweights the likeliest candidates of the first
as it writes.) So the way back from the goal is there, one lookup a token, if the draft ends in the
goal and not at a wrong arm's end. The cost: one more pass a step, and l - 1 at decoding.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import data  # noqa: E402
import train  # noqa: E402
from evaluate import GRAPHS_AT_ONCE, decode  # noqa: E402
from evaluate import evaluate as measure_draft  # noqa: E402
from plumbing import flags, graph_files  # noqa: E402


def make_model(s):
    """train.py's GPT with room for a hole. Raises: ValueError for another model."""
    flags.check_idea(s)
    return train.make_model(s, more_tokens=1)


def fill_hole(model, prefix, path, i, num_nodes):
    """Logits of token i of the path (B, l), from those before it and the one after: (B, V)."""
    hole = torch.full_like(path[:, :1], num_nodes + data.DUMMY)
    seen = torch.cat([prefix, path[:, :i], hole, path[:, i + 1 : i + 2]], dim=1)
    return model(seen, num_outputs=1)[:, 0]


def learn(model, prefix, path, s, step):
    """Add the gradients of one batch: see train.learn. Returns: the loss, of both kinds."""
    next_token = train.learn(model, prefix, path, s, step)
    generator = graph_files.generator_for(s.seed, graph_files.HOLES, step)
    i = int(torch.randint(s.path_len - 1, (), generator=generator))
    loss = F.cross_entropy(fill_hole(model, prefix, path, i, s.num_nodes), path[:, i])
    loss.backward()
    return next_token + loss.item()


def refine(model, prefix, draft, num_nodes):
    """Name each token of the draft (B, l) but the last again, from the right: (B, l), int64."""
    path = draft.clone()
    for i in range(path.shape[1] - 2, -1, -1):
        path[:, i] = fill_hole(model, prefix, path, i, num_nodes).argmax(dim=1)
    return path


@torch.no_grad()
def evaluate(model, prefix, path, s):
    """As evaluate.evaluate, of the draft; but accuracy, position_accuracy and difficult are the
    refined path's. draft_accuracy is the draft's; draft_goal: how often it ends in the goal.
    """
    measured = measure_draft(model, prefix, path, s)
    refined = []
    for p in prefix.split(GRAPHS_AT_ONCE):
        draft = decode(model, p, s.path_len, "next", s.num_nodes)
        refined.append(refine(model, p, draft, s.num_nodes))
    right = (torch.cat(refined) == path).double()
    return measured | {
        "accuracy": right.prod(dim=1).mean().item(),
        "position_accuracy": right.mean(dim=0).tolist(),
        "difficult": right[:, 1].mean().item(),
        "draft_accuracy": measured["accuracy"],
        "draft_goal": measured["position_accuracy"][-1],
    }


if __name__ == "__main__":
    train.main(idea=sys.modules[__name__])
