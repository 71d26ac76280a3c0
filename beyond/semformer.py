"""Semformer: planning tokens learn to hold a summary of the whole path (Yin et al. 2024).

    python beyond/semformer.py [train.py's flags]

Semformer (arXiv 2409.11143, section 3) puts a few planning tokens between the prefix and the path.
An autoencoder squeezes the true path into one short vector, a latent, for each planning token, and
their states must predict them, before any token of the path is revealed:

    inputs    … s g =  $  $  $  $  s  a  b      the planning tokens are $, told apart by position
    targets            z1 z2 z3 z4                  the latents, 32 numbers each
    targets                     s  a  b  g          next-token prediction, as ever

The autoencoder's encoder is the model itself, without gradient, reading the path alone (both ways:
it stands where the prefix does); learned queries look into its states by one cross-attention, and a
linear map makes the latents. A small decoder, a GPT of two layers, must write the path again from
them. (They stand before the path as its inputs. In the authors' code they are keys and values in
each of the decoder's six layers, the encoder is causal, and the planning tokens are different.) The
loss is next-token's cross-entropy, plus the decoder's, plus smooth L1 between what the planning
tokens say and the latents, which get no gradient from it; each has weight 1. The autoencoder is
dropped at decoding. The cost: four tokens more, one more pass over the path alone, and the decoder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the lab

import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import data  # noqa: E402
import train  # noqa: E402
from beyond.belief_state import measure_written, states  # noqa: E402
from model_gpt import GPT, GPTConfig  # noqa: E402
from plumbing import flags  # noqa: E402

PLANNING, LATENT = 4, 32  # planning tokens, and the numbers in each one's latent


class Autoencoder(nn.Module):
    """From the states of the path to latents, and from the latents back to the path."""

    def __init__(self, config, path_len):
        super().__init__()
        C = config.n_embd
        self.queries = nn.Parameter(torch.randn(PLANNING, C))
        self.look = nn.MultiheadAttention(C, config.n_head, batch_first=True)
        self.norm = nn.LayerNorm(C)
        self.squeeze, self.unfold = nn.Linear(C, LATENT, bias=False), nn.Linear(LATENT, C)
        sizes = {"n_layer": 2, "block_size": PLANNING + path_len, "prefix_len": 0}
        self.decoder = GPT(GPTConfig(**vars(config) | sizes))

    def encode(self, h):
        """The path's states h (B, l, C) -> latents (B, PLANNING, LATENT)."""
        queries = self.queries.expand(len(h), -1, -1)
        return self.squeeze(self.norm(queries + self.look(queries, h, h, need_weights=False)[0]))

    def decode(self, latents, path):
        """Next-token logits of the path (B, l), from latents that stand before it: (B, l, V)."""
        gpt, l = self.decoder, path.shape[1]
        x = torch.cat([self.unfold(latents), gpt.wte(path[:, :-1])], dim=1)
        x = x + gpt.wpe.weight[: x.shape[1]]
        return gpt.lm_head(gpt.ln_f(gpt.h[1](gpt.h[0](x, x.shape[1]), l)))


def make_model(s):
    """train.py's GPT with room for planning tokens, and the autoencoder. Raises: ValueError."""
    flags.check_idea(s)
    model = train.make_model(s, more_tokens=PLANNING)
    model.say = nn.Linear(s.n_embd, LATENT, bias=False)  # a planning token's state to its latent
    model.autoencoder = Autoencoder(model.config, s.path_len)
    return model


def with_plan(prefix, num_nodes):
    """The prefix (B, P) with planning tokens after it: (B, P + PLANNING)."""
    return F.pad(prefix, (0, PLANNING), value=num_nodes + data.DUMMY)


def losses(model, prefix, path, num_nodes):
    """Next-token's cross-entropy, the decoder's, and the smooth L1: three scalars.

    Arguments: prefix (B, P) and path (B, l), int64.
    """
    l = path.shape[1]
    inputs = torch.cat([with_plan(prefix, num_nodes), path[:, :-1]], dim=1)
    h = states(model, inputs, l + PLANNING - 1)  # the last planning token predicts the start
    next_token = F.cross_entropy(model.lm_head(h[:, -l:]).flatten(0, 1), path.flatten())
    with torch.no_grad():
        of_path = states(model, path, l)
    latents = model.autoencoder.encode(of_path)
    again = model.autoencoder.decode(latents, path)  # (B, l, V)
    written_again = F.cross_entropy(again.flatten(0, 1), path.flatten())
    return next_token, written_again, F.smooth_l1_loss(model.say(h[:, :PLANNING]), latents.detach())


def learn(model, prefix, path, s, step):
    """Add the gradients of one batch: see train.learn. Returns: the loss, a float."""
    loss = sum(losses(model, prefix, path, s.num_nodes))
    loss.backward()
    return loss.item()


@torch.no_grad()
def evaluate(model, prefix, path, s):
    """See belief_state.measure_written. The planning tokens stand after the prefix."""

    def next_tokens(prefix, so_far):
        tokens = torch.cat([with_plan(prefix, s.num_nodes), so_far], dim=1)
        return model(tokens, so_far.shape[1] + 1).argmax(dim=2)

    return measure_written(next_tokens, prefix, path, s)


if __name__ == "__main__":
    train.main(idea=sys.modules[__name__])
