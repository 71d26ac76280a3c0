"""A GPT, whole, in one file: the decoder-only Transformer of GPT-2 (Radford et al. 2019).

    tokens (B, T) -> wte + wpe -> Block, Block, … Block -> LayerNorm -> logits over the vocabulary

Read Attention first, then Block, then GPT.forward. The block is GPT-2's but for three published
changes; a flag takes each back:

    - The mask of a prefix LM (Raffel et al. 2020, section 3.2.1): the tokens of the prefix see each
      other both ways. Edges come in a random order, and a causal mask hides, on average, half of
      the others from each. What is written after the prefix is causal as ever.
    - Canon (Allen-Zhu 2025): before attention, a convolution over the last four tokens. The tokens
      of an edge `a b` stand at two positions; now one position holds both. Mamba has a similar one.
    - Initial weights are mimetic (GPT.init_weights): keys are half a copy of the queries, so that
      identical tokens attend to each other.

Other notable choices:

    - Parameter names are GPT-2's (wte, wpe, h.0.attn.c_attn …); the unembedding is wte itself.
    - The trunk is all blocks but the last. The last block is output head 1, the next-token head;
      multi-token prediction (Gloeckle et al. 2024, section 2) adds further blocks beside it.
    - Logits, and the last block's queries and MLP, only at the positions that are asked for.
    - Decoding keeps keys and values in a cache, so that a new token costs one row of attention.

Shapes: B graphs, T tokens, C = n_embd channels, H heads of D = C / H channels, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class GPTConfig:
    vocab_size: int
    block_size: int  # the longest sequence, in tokens
    n_layer: int = 8
    n_head: int = 2
    n_embd: int = 64
    n_future: int = 1  # output heads; head k predicts the token k ahead
    prefix_len: int = 0  # so many first tokens see each other both ways; GPT-2 has none
    canon: bool = True  # see Canon; GPT-2 has none
    mimetic: bool = True  # keys start as half a copy of the queries; see init_weights


class Canon(nn.Module):
    """A Canon layer (Allen-Zhu 2025, "Physics of Language Models: Part 4.1", arXiv 2512.17351).

    A causal depthwise convolution with a residual connection:
    y_t = x_t + w_0 x_{t-3} + w_1 x_{t-2} + w_2 x_{t-1} + w_3 x_t.
    """

    WIDTH = 4

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.n_embd, self.WIDTH))

    def forward(self, x, cache=None):
        """x (B, T, C) -> (B, T, C). cache: a Cache, which holds the inputs before x, or None."""
        if cache is None:
            padded = F.pad(x, (0, 0, self.WIDTH - 1, 0))  # zeros stand before the first token
        else:
            padded = torch.cat([cache.window, x], dim=1)  # (B, WIDTH - 1 + T, C)
            cache.window = padded[:, x.shape[1] :].clone()  # a view would keep all of padded
        # As an image of height 1: conv2d, unlike conv1d, takes channels last in memory as they are
        image, weight = padded.transpose(1, 2)[:, :, None], self.weight[:, None, None]
        return x + F.conv2d(image, weight, groups=x.shape[2])[:, :, 0].transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config):
        super().__init__()
        self.n_head, self.prefix_len = config.n_head, config.prefix_len
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # makes queries, keys and values
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, num_outputs, cache=None):
        """x (B, T, C) -> (B, num_outputs, C), for the last positions. cache: a Cache or None.

        c_attn makes queries, keys and values, in this order; each head has D channels of each.
        """
        B, T, C = x.shape
        # Apart, because only the last positions need queries
        to_query, to_key_value = self.c_attn.weight.split([C, 2 * C])
        q_bias, kv_bias = self.c_attn.bias.split([C, 2 * C])
        q = F.linear(x[:, T - num_outputs :], to_query, q_bias)  # (B, num_outputs, C)
        k, v = F.linear(x, to_key_value, kv_bias).split(C, dim=2)  # (B, T, C) each
        q, k, v = (part.unflatten(2, (self.n_head, -1)).transpose(1, 2) for part in (q, k, v))
        if cache is not None:
            k, v = cache.append(k, v)  # (B, H, S, D), with S tokens so far
        y = attend(q, k, v, self.prefix_len)
        return self.c_proj(y.transpose(1, 2).reshape(B, num_outputs, C))


def attend(q, k, v, prefix_len):
    """Attention of the last num_outputs of S tokens, causal except inside the prefix (Raffel et
    al. 2020, "Exploring the Limits of Transfer Learning", section 3.2.1 and figure 3).

    q (B, H, num_outputs, D), k and v (B, H, S, D) -> (B, H, num_outputs, D).
    """
    num_outputs, S = q.shape[2], k.shape[2]
    if num_outputs == 1:
        return F.scaled_dot_product_attention(q, k, v)  # the newest token sees all
    # Query i stands at position S - num_outputs + i. It sees the keys up to there, and the prefix.
    sees = torch.ones(num_outputs, S, dtype=torch.bool, device=q.device).tril(S - num_outputs)
    sees[:, :prefix_len] = True
    return F.scaled_dot_product_attention(q, k, v, attn_mask=sees)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """One layer: attention moves information between positions, the MLP works on each alone."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.canon = Canon(config) if config.canon else None
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, num_outputs, cache=None):
        """x (B, T, C) -> (B, num_outputs, C), for the last positions. cache: a Cache or None."""
        h = self.ln_1(x)
        if self.canon is not None:
            h = self.canon(h, cache)
        x = x[:, x.shape[1] - num_outputs :] + self.attn(h, num_outputs, cache)
        return x + self.mlp(self.ln_2(x))


class Cache:
    """What one block keeps of the tokens so far: Canon's last inputs, and keys and values.

    k, v (B, H, max_tokens, D) and window (B, 3, C) have the dtype and device of the tensor `like`.
    """

    def __init__(self, batch_size, max_tokens, config, like):
        shape = (batch_size, config.n_head, max_tokens, config.n_embd // config.n_head)
        self.k, self.v = like.new_empty(shape), like.new_empty(shape)
        self.window = like.new_zeros(batch_size, Canon.WIDTH - 1, config.n_embd)
        self.length = 0

    def append(self, k, v):
        """Add k, v (B, H, T, D); return all so far, (B, H, S, D) each."""
        end = self.length + k.shape[2]
        self.k[:, :, self.length : end], self.v[:, :, self.length : end] = k, v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        # Output heads 2 … n_future
        self.future = nn.ModuleList(Block(config) for _ in range(config.n_future - 1))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        self.init_weights()

    def init_weights(self):
        """Draw the initial weights: normal, as GPT-2's, but not all of standard deviation 0.02.

        - Matrices: 1 / sqrt(fan-in), so that outputs are of the inputs' size (LeCun et al. 1998,
          "Efficient BackProp").
        - wte: 1, as in PyTorch; wpe: 0.02. What a token is weighs more at first than where it
          stands. As wte is also the unembedding, the last norm's gain starts at 1 / sqrt(C), so
          that logits are of size 1.
        - Canon starts as the token plus the one before. Without Canon, attention must find the
          token before by its position: wte and wpe both start at 0.1, the gain at 1.

        Mimetic (Trockman & Kolter 2023, "Mimetic Initialization of Self-Attention Layers", arXiv
        2305.09828): W_q^T W_k starts near a multiple of the identity, as in trained Transformers.
        Here W_k = (W_q + W) / sqrt(2), with a random W, so identical tokens attend to each other;
        and both are of half the size, so that a token that two edges share adds about 1 to their
        score and attention starts broad.
        """
        C = self.config.n_embd
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif name.endswith("canon.weight"):
                nn.init.zeros_(p)
                p.data[:, -2] = 1.0  # y_t = x_t + x_{t-1}
            elif name.startswith(("h.", "future.")) and p.ndim == 2:
                nn.init.normal_(p, std=p.shape[1] ** -0.5)
            if self.config.mimetic and name.endswith("c_attn.weight"):
                query, key, _ = p.data.chunk(3)
                query.mul_(0.5)
                key.mul_(0.5).add_(query).mul_(0.5**0.5)  # the sum of two, as large as one
        token, position = (1.0, 0.02) if self.config.canon else (0.1, 0.1)
        nn.init.normal_(self.wte.weight, std=token)
        nn.init.normal_(self.wpe.weight, std=position)
        if self.config.canon:
            nn.init.constant_(self.ln_f.weight, C**-0.5)

    def trunk(self, tokens, cache=None):
        """All blocks but the last: what the output heads share.

        Arguments: tokens (B, T), int64; cache, from new_cache, which holds what came before.
        Returns: (B, T, C), float.
        Raises: ValueError when the sequence does not fit into block_size.
        """
        past = cache[0].length if cache else 0
        T = tokens.shape[1]
        if past + T > self.config.block_size:
            limit = self.config.block_size
            raise ValueError(f"the sequence has {past + T} tokens, but block_size is {limit}")
        positions = torch.arange(past, past + T, device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)
        for i, block in enumerate(self.h[:-1]):
            x = block(x, T, cache[i] if cache else None)
        return x

    def head(self, x, k=0, num_outputs=None, cache=None):
        """An output head, a block and then the unembedding: the next-token head for k = 0, else one
        that predicts the token k + 1 ahead.

        Arguments: x (B, T, C), from trunk; num_outputs, how many of the last positions are wanted
            (None: all); cache, from new_cache, in which each head has its own part.
        Returns: logits (B, num_outputs, V), float.
        """
        block = self.future[k - 1] if k > 0 else self.h[-1]
        x = block(x, num_outputs or x.shape[1], cache[len(self.h) - 1 + k] if cache else None)
        return self.lm_head(self.ln_f(x))

    def forward(self, tokens, num_outputs=None, cache=None):
        """Next-token logits: tokens (B, T), int64 -> (B, num_outputs, V), at the last positions."""
        return self.head(self.trunk(tokens, cache), 0, num_outputs, cache)

    def new_cache(self, batch_size, max_tokens):
        """An empty cache for decoding, a Cache for each block, with room for max_tokens tokens.

        The prefix must come whole, in one call: its first tokens see its last.
        """
        blocks = (*self.h, *self.future)
        return [Cache(batch_size, max_tokens, self.config, like=self.wte.weight) for _ in blocks]
