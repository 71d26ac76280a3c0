"""A Mamba, whole, in one file: the selective state space model of Gu & Dao 2023 (arXiv 2312.00752).

    tokens (B, T) -> embedding -> Block, Block, … Block -> RMSNorm -> logits over the vocabulary

Where a GPT looks back at every token, a Mamba carries a state of fixed size along the sequence. In
the paper's letters (its Algorithm 2), each of E channels keeps a state h of N numbers:

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t     A < 0 is learned: how fast the state fades
    y_t = C_t · h_t + D x_t                      dt_t, B_t, C_t are computed from the input, which
                                                 thereby selects what is written, kept and read

Read selective_scan_reference first, then Mixer, then Mamba.forward. Notable choices:

    - Parameter names are those of state-spaces/mamba, so that its published weights can be loaded.
    - The trunk is all blocks but the last. The last block is output head 1, the next-token head;
      multi-token prediction (Gloeckle et al. 2024, section 2) puts further blocks beside it, all
      reading the same trunk.
    - Logits, and the last block's gate and output, only at the positions that are asked for.
    - Initial values are mimetic (Mixer.start_as_lookup), and the convolution has a width of 2. With
      upstream's values and a width of 4, lookups came later or not at all in the few runs that we
      made, of other sizes (results/LOG.md).
    - The prefix is read twice (JRT-Prompt of Arora et al. 2024, "Just read twice", arXiv
      2407.05483). The first time, the state that an edge meets holds only the edges that a random
      order puts before it; the second time, all of them. A flag takes this out.
    - Decoding keeps each convolution's last inputs and each state, so that a new token costs the
      same time and memory wherever it stands.

Shapes: B graphs, T tokens, C = n_embd channels, E = expand · C inner channels, N = d_state numbers
of state in each of them, V vocabulary. (In formulas, B_t, C_t and D are the paper's.)
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import scan


def selective_scan_reference(x, dt, A, B, C, D, h):
    """The recurrence, one step after another (Algorithm 2, line 6).

    The input's factor is dt B, as in the authors' code: to first order, the paper's equation 4.

    Arguments: x, dt (B, T, E); A (E, N); B, C (B, T, N); D (E,); h (B, E, N), the state before,
        which stays as it is.
    Returns: y (B, T, E) and the last state (B, E, N).
    """
    outputs = []
    for t in range(x.shape[1]):
        x_t, dt_t, B_t, C_t = (v[:, t].to(h.dtype) for v in (x, dt, B, C))  # (B, E) or (B, N)
        kept = torch.exp(dt_t[:, :, None] * A) * h  # (B, E, N)
        h = kept + (dt_t * x_t)[:, :, None] * B_t[:, None, :]
        outputs.append((h * C_t[:, None, :]).sum(dim=2) + D * x_t)
    return torch.stack(outputs, dim=1).to(x.dtype), h


def selective_scan(x, dt, A, B, C, D, initial_state=None, return_state=False, method="auto"):
    """The recurrence, computed in one of three ways that agree up to rounding.

    Arguments: as selective_scan_reference, dt after its softplus; initial_state (B, E, N), or None
        for zeros. x, B, C share one dtype; dt has it too, or float32 beside 16 bits. float64 is
        computed in float64, all else in float32. method: "reference", as written; "fast",
        scan.FastScan; "triton", scan_triton.py; "auto", triton on a GPU that has it, else fast.
    Returns: y (B, T, E) in x's dtype; with return_state also the last state (B, E, N).
    Raises: ValueError for a wrong shape, dtype or method; ImportError for "triton" where it is not
        installed.
    """
    scan.check_inputs(x, dt, A, B, C, D, initial_state)
    if method == "auto":
        method = "triton" if x.is_cuda and scan.has_triton() else "fast"
    methods = {"reference": selective_scan_reference, "fast": scan.FastScan.apply,
               "triton": scan.triton_scan}
    if method not in methods:
        raise ValueError(f"scan {method!r} is unknown; choose one of auto, {', '.join(methods)}")
    if not torch.is_grad_enabled():  # then the scan need keep nothing for a backward pass
        x, dt, A, B, C, D = (v.detach() for v in (x, dt, A, B, C, D))
    A, D = (v.to(torch.promote_types(x.dtype, torch.float32)) for v in (A, D))
    h = A.new_zeros(x.shape[0], *A.shape) if initial_state is None else initial_state.to(A.dtype)
    with torch.autocast(x.device.type, enabled=False):  # in mixed precision too, states are float32
        y, h = methods[method](x, dt, A, B, C, D, h)
    return (y, h) if return_state else y


@dataclass
class MambaConfig:
    vocab_size: int
    n_layer: int = 6
    n_embd: int = 128  # d_model in the paper
    d_state: int = 32  # numbers of state in each channel; 16 upstream
    d_conv: int = 2  # inputs that the convolution sees, 2 or more if mimetic; 4 upstream
    expand: int = 2
    n_future: int = 1  # output heads; head k predicts the token k ahead
    prefix_len: int = 0  # so many first tokens are read twice; upstream has none
    dt_rank: int = None  # None: n_embd / 16, rounded up
    mimetic: bool = True  # initial values, see Mixer.start_as_lookup; upstream's are random
    scan: str = "auto"  # auto, reference, fast or triton


class Mixer(nn.Module):
    """The Mamba block (figure 3): one path goes through convolution and scan, one gates it."""

    def __init__(self, config):
        super().__init__()
        C, E, N = config.n_embd, config.expand * config.n_embd, config.d_state
        self.dt_rank = config.dt_rank or math.ceil(C / 16)
        self.scan = config.scan
        self.in_proj = nn.Linear(C, 2 * E, bias=False)
        self.conv1d = nn.Conv1d(E, E, config.d_conv, groups=E)  # weight (E, 1, d_conv), bias (E,)
        self.x_proj = nn.Linear(E, self.dt_rank + 2 * N, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, E)
        # S4D-real: A_n = -n (section 3.6)
        self.A_log = nn.Parameter(torch.arange(1, N + 1).float().log().repeat(E, 1))
        self.D = nn.Parameter(torch.ones(E))
        self.out_proj = nn.Linear(E, C, bias=False)

        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        self.start_dt_between(0.001, 0.1)  # as in section 3.6
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(config.n_layer))  # smaller with depth, as in GPT-2
        if config.mimetic:
            self.start_as_lookup()

    @torch.no_grad()
    def start_dt_between(self, low, high):
        """Start dt_proj's bias so that the channels' dt are log-uniform between two numbers."""
        dt = torch.exp(torch.empty_like(self.dt_proj.bias).uniform_(math.log(low), math.log(high)))
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus

    @torch.no_grad()
    def start_as_lookup(self):
        """Mimetic initial values (Trockman et al. 2024, arXiv 2410.11135): near linear attention.

        The state hardly fades (A = -0.03, dt from 0.1 to 1). C starts as a copy of B, so that what
        was written under a label is read under it. The convolution starts as the newest token in
        one half of the channels and the one before in the other. out_proj starts as a multiple of
        in_proj transposed, so that what is read comes back in the basis of what was written
        (Trockman & Kolter 2023, arXiv 2305.09828, do so for attention). But for these ties, the
        matrices are random. What is read under a label is what stood before it, so these values
        prefer the step from a node to its parent to the step from a parent to its child.
        """
        (E, N), R, half = self.A_log.shape, self.dt_rank, len(self.A_log) // 2
        self.A_log.fill_(math.log(0.03))
        self.start_dt_between(0.1, 1.0)
        self.conv1d.weight.zero_()
        self.conv1d.bias.zero_()
        self.conv1d.weight[:half, 0, -1] = 1  # the newest token
        self.conv1d.weight[half:, 0, -2] = 1  # the one before
        for part in (slice(half), slice(half, E)):
            nn.init.orthogonal_(self.in_proj.weight[part])
        self.out_proj.weight.copy_(0.15 * self.in_proj.weight[:E].T)
        keys = nn.init.orthogonal_(torch.empty(N, half))
        self.x_proj.weight[R:] = 0
        self.x_proj.weight[R : R + N, :half] = keys  # B
        self.x_proj.weight[R + N :, :half] = keys  # C

    def forward(self, x, num_outputs, cache=None):
        """x (B, T, C) -> (B, num_outputs, C), for the last positions. cache: a Cache or None."""
        start = x.shape[1] - num_outputs
        to_x, to_z = self.in_proj.weight.chunk(2)  # apart, because only the last positions need z
        z = F.linear(x[:, start:], to_z)  # (B, num_outputs, E)
        x = F.silu(self.conv(F.linear(x, to_x), cache))  # (B, T, E)
        N = self.A_log.shape[1]
        dt, B, C = self.x_proj(x).split([self.dt_rank, N, N], dim=2)
        dt = F.softplus(self.dt_proj(dt))  # (B, T, E)
        A = -torch.exp(self.A_log)  # (E, N)
        state = cache.state if cache else None
        y, state = selective_scan(x, dt, A, B, C, self.D, state, True, self.scan)
        if cache:
            cache.state, cache.is_new = state.detach(), False
        return self.out_proj(y[:, start:] * F.silu(z))

    def conv(self, x, cache):
        """Causal convolution, each channel by itself: position t sees d_conv inputs up to t.

        x (B, T, E) -> (B, T, E). cache: a Cache, which holds the inputs before x, or None.
        """
        T, width = x.shape[1], self.conv1d.weight.shape[2]
        if cache:
            padded = torch.cat([cache.window, x], dim=1)  # (B, width - 1 + T, E)
            cache.window = padded[:, T:].detach().clone()  # a view would keep all of padded
        else:
            padded = F.pad(x, (0, 0, width - 1, 0))
        # As an image of height 1: conv2d, unlike conv1d, takes channels last in memory as they are
        image, weight = padded.transpose(1, 2)[:, :, None], self.conv1d.weight[:, :, None]
        y = F.conv2d(image, weight, self.conv1d.bias, groups=x.shape[2])
        return y[:, :, 0].transpose(1, 2)


class Block(nn.Module):
    """One layer. Mamba has no MLP: its gated mixer does the work of attention and MLP."""

    def __init__(self, config):
        super().__init__()
        self.norm = nn.RMSNorm(config.n_embd, eps=1e-5)
        self.mixer = Mixer(config)

    def forward(self, x, num_outputs, cache=None):
        """x (B, T, C) -> (B, num_outputs, C), for the last positions."""
        return x[:, x.shape[1] - num_outputs :] + self.mixer(self.norm(x), num_outputs, cache)


class Cache:
    """What one block keeps of the tokens so far: its convolution's last inputs and its state.

    window (B, d_conv - 1, E) and state (B, E, N) have the dtype and device of the tensor `like`.
    """

    def __init__(self, batch_size, config, like):
        E = config.expand * config.n_embd
        self.is_new = True  # nothing has been read
        self.window = like.new_zeros(batch_size, config.d_conv - 1, E)
        self.state = like.new_zeros(batch_size, E, config.d_state)


class Mamba(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        nn.init.normal_(self.embedding.weight, std=0.02)  # as upstream
        if config.mimetic:
            nn.init.orthogonal_(self.embedding.weight)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        # Output heads 2 … n_future
        self.future = nn.ModuleList(Block(config) for _ in range(config.n_future - 1))
        self.norm_f = nn.RMSNorm(config.n_embd, eps=1e-5)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.embedding.weight

    def trunk(self, tokens, cache=None):
        """All blocks but the last: what the output heads share.

        Arguments: tokens (B, T), int64; cache, from new_cache, which holds what came before. The
            whole prefix must be among the first tokens that a new cache is given.
        Returns: (B, T, C), float; (B, prefix_len + T, C) when tokens begin with the prefix.
        """
        if cache is None or cache[0].is_new:  # the first tokens of all
            tokens = torch.cat([tokens[:, : self.config.prefix_len], tokens], dim=1)
        x = self.embedding(tokens)
        for i, block in enumerate(self.layers[:-1]):
            x = block(x, x.shape[1], cache[i] if cache else None)
        return x

    def head(self, x, k=0, num_outputs=None, cache=None):
        """An output head, a block and then the unembedding: the next-token head for k = 0, else one
        that predicts the token k + 1 ahead.

        Arguments: x, from trunk; num_outputs, how many of the last positions are wanted (None: all
            of x, with the first reading of the prefix); cache, from new_cache, in which each head
            has its own part.
        Returns: logits (B, num_outputs, V), float.
        """
        block = self.future[k - 1] if k > 0 else self.layers[-1]
        x = block(x, num_outputs or x.shape[1], cache[len(self.layers) - 1 + k] if cache else None)
        return self.lm_head(self.norm_f(x))

    def forward(self, tokens, num_outputs=None, cache=None):
        """Next-token logits: tokens (B, T), int64 -> (B, num_outputs, V), at the last positions."""
        return self.head(self.trunk(tokens, cache), 0, num_outputs or tokens.shape[1], cache)

    def new_cache(self, batch_size, max_tokens):
        """An empty cache for decoding, a Cache for each block. Only a GPT's needs max_tokens."""
        blocks = (*self.layers, *self.future)
        return [Cache(batch_size, self.config, like=self.embedding.weight) for _ in blocks]
