"""Next-latent prediction: a small network predicts the next hidden state (Teoh et al. 2025).

    python beyond/next_latent.py [train.py's flags]

NextLat (arXiv 2511.05963, section 3) keeps next-token prediction and asks the last hidden state h_t
for more than the next token: with the token x_{t+1}, it must also give h_{t+1}, and so on. So h_t
has to hold all that the future depends on, a belief state, and the state that sees only the start
must already hold the arm.

    h_t, x_{t+1}  ->  h_{t+1},  x_{t+2}  ->  h_{t+2}  …      the predicted states are rolled out

A network p of three layers predicts the change: ĥ = h + p(norm([h, embedding of x])), where h is
the last block's output, normed but not yet scaled by the last norm's gain, so that it is of size 1.
Roll-outs have l - 2 steps, as reported for path-star graphs. The loss adds, as the mean over the
steps, smooth L1 between ĥ and the true state, which gets no gradient, and the KL divergence between
the next-token distributions that both give, through a head that gets none. (The head is the
embedding here, and as the embedding of x it does get one.) Each has weight 1, and p is dropped at
decoding. In the paper the smooth L1 also runs over the prefix; here the prefix's states see each
other both ways, and none leads to the next. It costs little: p runs on the path alone.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import data  # noqa: E402
import train  # noqa: E402
from evaluate import evaluate  # noqa: E402, F401 (the loop calls it)
from plumbing import flags  # noqa: E402


class Predictor(nn.Module):
    """p: from a hidden state and the next token's embedding to the next hidden state."""

    def __init__(self, n_embd):
        super().__init__()
        self.norm = nn.LayerNorm(2 * n_embd)
        self.mlp = nn.Sequential(
            nn.Linear(2 * n_embd, n_embd),
            nn.GELU(),
            nn.Linear(n_embd, n_embd),
            nn.GELU(),
            nn.Linear(n_embd, n_embd),
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
    """Next-token's cross-entropy, and the means of smooth L1 and KL over the steps rolled out."""
    l, C = path.shape[1], model.config.n_embd
    last = model.h[-1](model.trunk(inputs), l)  # (B, l, C), before each token of the path
    next_token = F.cross_entropy(model.lm_head(model.ln_f(last)).flatten(0, 1), path.flatten())

    h = F.layer_norm(last, (C,))
    gain, bias, head = (p.detach() for p in (*model.ln_f.parameters(), model.lm_head.weight))
    log_p = lambda h: F.linear(h * gain + bias, head).flatten(0, 1).log_softmax(dim=1)
    true, x = h.detach(), model.wte(path)  # x[:, t] is the token that leads from state t to t + 1
    guess, l1, kl = h, 0.0, 0.0
    for ahead in range(1, l - 1):  # l - 2 steps; every state that is left starts a roll-out
        guess = model.predictor(guess[:, : l - ahead], x[:, ahead - 1 : l - 1])
        goal = true[:, ahead:]
        l1 = l1 + F.smooth_l1_loss(guess, goal) / (l - 2)
        gap = F.kl_div(log_p(guess), log_p(goal), log_target=True, reduction="batchmean")
        kl = kl + gap / (l - 2)
    return next_token, l1, kl


def learn(model, prefix, path, s, step):
    """Add the gradients of one batch: see train.learn. Returns: the loss, of all three parts."""
    inputs, _ = data.layout("next", prefix, path, s.num_nodes)
    loss = sum(losses(model, inputs, path))
    loss.backward()
    return loss.item()


if __name__ == "__main__":
    train.main(idea=sys.modules[__name__])
