"""A GPT, whole, in one file: the decoder-only Transformer of GPT-2 (Radford et al. 2019).

    tokens (B, T) -> wte + wpe -> Block, Block, … Block -> LayerNorm -> logits over the vocabulary

Read Attention first, then Block, then GPT.forward. Notable choices:

    - Parameter names are GPT-2's (wte, wpe, h.0.attn.c_attn …); the unembedding is wte itself.
    - The trunk is all blocks but the last. The last block is output head 1, the next-token head; multi-token
      prediction (Gloeckle et al. 2024, section 2) puts further blocks beside it, all reading the same trunk.
    - Logits, and the last block's queries and MLP, only at the positions that are asked for.
    - Decoding keeps keys and values in a cache, so that a token costs one row of attention.
    - The two tokens of an edge are found by each other (the token shift), no label is louder than another (QK-norm),
      what is newest weighs most (carry), and attention starts as the identity: with a GPT-2 as it is, learning to plan
      takes many times longer. Attention, Block and GPT.init_weights say why.

Shapes: B graphs, T tokens, C = n_embd channels, H heads of D = C / H channels, V tokens in the vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import pretrained


@dataclass
class GPTConfig:
    vocab_size: int
    block_size: int  # the longest sequence, in tokens
    n_layer: int = 5
    n_head: int = 4  # an even number, with the token shift
    n_embd: int = 64
    mlp_ratio: int = 1  # width of the MLP, in n_embd; GPT-2 has 4; here 2 cost more and learned no faster
    n_future: int = 1  # output heads; head k predicts the token k ahead
    token_shift: bool = True  # see Attention; GPT-2 has none
    qk_norm: bool = True  # see Attention; GPT-2 has none
    carry: float = 0.4  # see Block; GPT-2 has 1
    bias: bool = False  # in linear layers and norms; GPT-2 has them
    activation: str = "relu"  # of the MLP; GPT-2 has "gelu"


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017, section 3.2), with a token shift and QK-norm.

    The token shift makes one thing of an edge `a b` (as in RWKV, Peng et al. 2023, section 3.1, but by whole heads). One
    half of the heads look back: they have the key of each token with the value of the one before it, so who looks for b
    finds a. The other half look ahead: they have the key of the token before with the value of each, so who looks for a
    finds b. A GPT without it must first learn to look one place back, which takes longer than all the rest; Mamba has the
    same help in its convolution. Nothing in it knows of the goal.

    QK-norm: queries and keys are normalised in each head (Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion
    Parameters", section 2), so that a label's weight in a lookup does not depend on which label it is. Without it, a run may
    end with one goal label out of fifty whose lookup fails: its scores have become hopeless, and get no gradient any more.
    """

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.token_shift = config.token_shift
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, config.bias)  # makes queries, keys and values
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, config.bias)
        norm = lambda: nn.LayerNorm(config.n_embd // config.n_head, bias=False) if config.qk_norm else nn.Identity()
        self.q_norm, self.k_norm = norm(), norm()

    def forward(self, x, num_queries, cache=None):
        """x (B, T, C) -> (B, num_queries, C), for the last positions. Arguments: cache, a Cache or None."""
        B, T, C = x.shape
        to_query, to_key_value = self.c_attn.weight.split([C, 2 * C])
        q_bias, kv_bias = (None, None) if self.c_attn.bias is None else self.c_attn.bias.split([C, 2 * C])
        q = F.linear(x[:, T - num_queries :], to_query, q_bias)  # (B, num_queries, C)
        k, v = F.linear(x, to_key_value, kv_bias).split(C, dim=2)  # (B, T, C) each
        q, k, v = (part.unflatten(2, (self.n_head, -1)) for part in (q, k, v))  # (B, …, H, D)
        q, k, v = (part.transpose(1, 2) for part in (self.q_norm(q), self.k_norm(k), v))  # (B, H, …, D)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, H, S, D), with S tokens so far
        if self.token_shift:
            (q_back, q_ahead), (k_back, k_ahead), (v_back, v_ahead) = (part.chunk(2, dim=1) for part in (q, k, v))
            back, ahead = attend(q_back, k_back, before(v_back)), attend(q_ahead, before(k_ahead), v_ahead)
            y = torch.cat([back, ahead], dim=1)
        else:
            y = attend(q, k, v)
        return self.c_proj(y.transpose(1, 2).reshape(B, num_queries, C))


def before(x):
    """Put at each place what stands before it, and zeros at the first: (B, H, S, D) -> the same shape."""
    return F.pad(x, (0, 0, 1, -1))


def attend(q, k, v):
    """Causal attention of the newest tokens: q (B, H, num_queries, D), k and v (B, H, S, D) -> the shape of q."""
    num_queries, S = q.shape[2], k.shape[2]
    if num_queries == 1:
        return F.scaled_dot_product_attention(q, k, v)  # the newest token sees all
    if num_queries == S:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # Query i stands at position S - num_queries + i, and sees the keys up to there.
    sees = torch.ones(num_queries, S, dtype=torch.bool, device=q.device).tril(S - num_queries)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=sees)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.mlp_ratio * config.n_embd, config.bias)
        self.c_proj = nn.Linear(config.mlp_ratio * config.n_embd, config.n_embd, config.bias)
        self.activation = config.activation

    def forward(self, x):
        x = self.c_fc(x)
        return self.c_proj(F.relu(x) if self.activation == "relu" else F.gelu(x, approximate="tanh"))


class Block(nn.Module):
    """One layer: attention moves information between positions, the MLP works on each position alone.

    What attention finds is added to `carry` times what the position held before (a carry gate, as in Srivastava et al.
    2015, "Highway networks", but a constant). Below 1, the newest find weighs most, so that is what the next layer looks
    for: a walk along edges goes on from where it has come to. At 1, as in GPT-2, layer upon layer looks for all at once.
    """

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)
        self.carry = config.carry

    def forward(self, x, num_queries, cache=None):
        """x (B, T, C) -> (B, num_queries, C), for the last positions."""
        found = self.attn(self.ln_1(x), num_queries, cache)
        y = found.add(x[:, x.shape[1] - num_queries :], alpha=self.carry)
        return y + self.mlp(self.ln_2(y))


class Cache:
    """Keys and values of one attention layer for the tokens so far, in room set aside for all of them."""

    def __init__(self, batch_size, max_tokens, config, like):
        shape = (batch_size, config.n_head, max_tokens, config.n_embd // config.n_head)
        self.k, self.v = like.new_empty(shape), like.new_empty(shape)
        self.length = 0

    def append(self, k, v):
        """Add k, v (B, H, T, D); return all so far, (B, H, S, D) each."""
        end = self.length + k.shape[2]
        self.k[:, :, self.length : end], self.v[:, :, self.length : end] = k, v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]


# GPT-2 was published with these matrices the other way round, (inputs, outputs); see from_pretrained.
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.future = nn.ModuleList(Block(config) for _ in range(config.n_future - 1))  # heads 2 … n_future
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        self.init_weights()

    def init_weights(self):
        """Initial values that make planning learnable in minutes; results/README.md has what each of them is worth.

        Attention starts as the identity: a head looks for tokens like its own and adds what it finds (with the token
        shift, the other end of an edge) as it is, so that the next layer can look for that in turn. The gain of queries
        starts at 2, so that attention is sharp. MLPs start silent. Before any training the goal's place thus knows the
        node before the goal, and nothing of those before that, let alone of the first step (tests/test_gpt.py measures
        it).
        (Trockman & Kolter 2023, "Mimetic initialization", go half that way with random matrices; GPT-2 starts all at
        random, and at 0.02.)

        Token embeddings start orthogonal, as far as there is room, both in the channels of the heads that look back and in
        those of the others, so that no label is mistaken for another. Positions start small beside them, so that what is
        learned at one place holds at the others.
        """
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif "c_attn" in name or "attn.c_proj" in name:
                p.data.copy_(torch.eye(self.config.n_embd).repeat(len(p) // self.config.n_embd, 1))
            elif "q_norm" in name:
                nn.init.constant_(p, 2.0)
            elif "mlp" in name:
                nn.init.normal_(p, std=0.0 if "c_proj" in name else p.shape[1] ** -0.5)
        for half in self.wte.weight.data.chunk(2, dim=1):
            half.copy_(nn.init.orthogonal_(torch.empty_like(half)) * 0.5**0.5)
        nn.init.normal_(self.wpe.weight, std=0.02)

    def trunk(self, tokens, cache=None):
        """All blocks but the last: what the output heads share.

        Arguments: tokens (B, T), int64; cache, from new_cache, holds what came before and takes these tokens in.
        Returns: (B, T, C), float.
        Raises: ValueError when the sequence does not fit into block_size.
        """
        past = cache[0].length if cache else 0
        T = tokens.shape[1]
        if past + T > self.config.block_size:
            raise ValueError(f"the sequence has {past + T} tokens, but block_size is {self.config.block_size}")
        positions = torch.arange(past, past + T, device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)
        for i, block in enumerate(self.h[:-1]):
            x = block(x, T, cache[i] if cache else None)
        return x

    def head(self, x, k=0, num_logits=None, cache=None):
        """Output head k + 1, which predicts the token k + 1 ahead: one block, then the shared unembedding.

        Arguments: x (B, T, C), from trunk; num_logits, how many of the last positions are asked for (None: all);
            cache, from new_cache; each head has its own part in it, and must take in every token or none.
        Returns: logits (B, num_logits, V), float.
        """
        block = self.future[k - 1] if k > 0 else self.h[-1]
        x = block(x, num_logits or x.shape[1], cache[len(self.h) - 1 + k] if cache else None)
        return self.lm_head(self.ln_f(x))

    def forward(self, tokens, num_logits=None, cache=None):
        """Next-token logits. tokens (B, T), int64 -> (B, num_logits, V), float, at the last positions (None: all)."""
        return self.head(self.trunk(tokens, cache), 0, num_logits, cache)

    def new_cache(self, batch_size, max_tokens):
        """An empty cache for decoding: keys and values of every block, for up to `max_tokens` tokens."""
        return [Cache(batch_size, max_tokens, self.config, like=self.wte.weight) for _ in (*self.h, *self.future)]

    @classmethod
    def from_pretrained(cls, name_or_dir):
        """GPT-2 with its published weights, in float32.

        Arguments: "gpt2", "gpt2-medium", "gpt2-large" or "gpt2-xl", or a folder with config.json and the weights.
        Returns: a GPT. Raises: ValueError or ImportError, in one sentence, as in pretrained.py.
        """
        folder = pretrained.find_folder(name_or_dir)
        c = pretrained.read_config(folder)
        pretrained.must_be(c, folder, model_type="gpt2", layer_norm_epsilon=1e-5, scale_attn_weights=True)
        pretrained.must_be(c, folder, scale_attn_by_inverse_layer_idx=False, tie_word_embeddings=True)
        V, T, *sizes = (
            pretrained.first_of(c, folder, n) for n in ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd")
        )
        ratio = (c.get("n_inner") or 4 * sizes[2]) // sizes[2]
        activation = "relu" if c.get("activation_function") == "relu" else "gelu"
        if c.get("activation_function") not in ("relu", "gelu_pytorch_tanh"):  # which is gelu_new by another name
            pretrained.must_be(c, folder, activation_function="gelu_new")
        without = dict(token_shift=False, qk_norm=False, carry=1.0)
        model = cls(GPTConfig(V, T, *sizes, ratio, **without, bias=True, activation=activation))
        tensors = {}
        for name, p in pretrained.read_tensors(folder).items():
            name = name.removeprefix("transformer.")
            if not name.endswith((".attn.bias", ".attn.masked_bias")):  # a mask, that some publishers keep as a tensor
                tensors[name] = p.t() if name.endswith(TRANSPOSED) else p
        tensors.setdefault("lm_head.weight", tensors.get("wte.weight"))
        pretrained.fit(model, tensors, folder)
        return model

    def save_pretrained(self, folder):
        """Write the folder that from_pretrained, and Hugging Face's GPT2LMHeadModel, can read; heads 2 … n stay behind.

        Raises: ValueError for a model with token shift, QK-norm, or a carry other than 1, which GPT-2 lacks; OSError.
        """
        c = self.config
        if c.token_shift or c.qk_norm or c.carry != 1:
            raise ValueError(
                "a GPT with token shift, QK-norm or a carry other than 1 is no GPT-2 and cannot be saved as one; train with"
                " --no_token_shift --no_qk_norm --carry 1"
            )
        sizes = dict(
            vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head
        )
        mlp = dict(n_inner=c.mlp_ratio * c.n_embd, activation_function="relu" if c.activation == "relu" else "gelu_new")
        config = dict(model_type="gpt2", architectures=["GPT2LMHeadModel"], **sizes, **mlp)
        tensors = {}
        for name, p in self.state_dict().items():
            if not name.startswith(("future", "lm_head")):
                tensors[f"transformer.{name}"] = p.t() if name.endswith(TRANSPOSED) else p
        for name, p in list(tensors.items()):  # GPT-2 has a bias with each of them; without one, it is 0
            if not name.endswith(("bias", "wte.weight", "wpe.weight")):
                outputs = p.shape[1] if name.endswith(TRANSPOSED) else len(p)
                tensors.setdefault(name.removesuffix("weight") + "bias", p.new_zeros(outputs))
        pretrained.write_folder(folder, config | dict(bos_token_id=None, eos_token_id=None), tensors)
