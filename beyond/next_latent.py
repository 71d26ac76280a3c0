"""Next-latent prediction: a small network predicts the next hidden state (Teoh et al. 2025).

    python beyond/next_latent.py [train.py's flags]

NextLat (arXiv 2511.05963, section 3) keeps next-token prediction and asks the last hidden state h_t
for more than the next token: with the token x_{t+1}, it must also give h_{t+1}, and so on. So h_t
has to hold all that the future depends on, a belief state, and the state that sees only the start
must already hold the arm.

    h_t, x_{t+1}  ->  h_{t+1},  x_{t+2}  ->  h_{t+2}  …      the predicted states are rolled out

A network p of three layers predicts the change: ĥ = h + p(norm([h, embedding of x])), where h is
what the unembedding reads. Roll-outs have l - 2 steps, as reported for path-star graphs. The loss
adds, for each step rolled out, smooth L1 between ĥ and the true state, which gets no gradient, and
the KL divergence between the next-token distributions that both give, through a head that gets
none. Each has weight 1, and p is dropped at decoding. It costs little: p runs on the path alone.
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
from evaluate import evaluate  # noqa: E402, F401
from plumbing import flags  # noqa: E402


class Predictor(nn.Module):
    """p: from a hidden state and the next token's embedding to the next hidden state."""

    def __init__(self, n_embd):
        super().__init__()
        wide = 2 * n_embd
        self.norm = nn.LayerNorm(wide)
        self.mlp = nn.Sequential(
            nn.Linear(wide, wide),
            nn.GELU(),
            nn.Linear(wide, wide),
            nn.GELU(),
            nn.Linear(wide, n_embd),
        )

    def forward(self, h, x):
        """h and x (B, t, C) -> (B, t, C)."""
        return h + self.mlp(self.norm(torch.cat([h, x], dim=2)))


def make_model(s):
    """train.py's GPT with the predictor. Raises: ValueError for another model."""
    flags.check_idea(s)
    model = train.make_model(s)
    model.predictor = Predictor(s.n_embd)
    return model


def losses(model, inputs, path):
    """Next-token's cross-entropy, and the means of smooth L1 and KL over the states rolled out."""
    l = path.shape[1]
    h = states(model, inputs, l)  # (B, l, C), before each token of the path
    next_token = F.cross_entropy(model.lm_head(h).flatten(0, 1), path.flatten())

    frozen = lambda h: F.linear(h, model.lm_head.weight.detach())
    true, x = h.detach(), model.wte(path)  # x[:, t] is the token that leads from state t to t + 1
    guess, l1, kl, count = h, 0.0, 0.0, 0
    for ahead in range(1, l - 1):  # l - 2 steps; every state that is left starts a roll-out
        guess = model.predictor(guess[:, : l - ahead], x[:, ahead - 1 : l - 1])
        goal = true[:, ahead:]
        l1 = l1 + F.smooth_l1_loss(guess, goal, reduction="sum") / guess.shape[2]
        p, q = frozen(goal).log_softmax(dim=2), frozen(guess).log_softmax(dim=2)
        kl = kl + F.kl_div(q, p, log_target=True, reduction="sum")
        count += guess.shape[0] * guess.shape[1]
    return next_token, l1 / max(1, count), kl / max(1, count)


def learn(model, prefix, path, s, step):
    """Add the gradients of one batch: see train.learn. Returns: the loss, of all three parts."""
    inputs, _ = data.layout("next", prefix, path, s.num_nodes)
    loss = sum(losses(model, inputs, path))
    loss.backward()
    return loss.item()


if __name__ == "__main__":
    train.main(idea=sys.modules[__name__])
