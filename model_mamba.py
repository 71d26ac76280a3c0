"""A Mamba, whole, in one file: the selective state space model of Gu & Dao 2023 (arXiv 2312.00752).

    tokens (B, T) -> embedding -> Block, Block, … Block -> RMSNorm -> logits over the vocabulary

Where a GPT looks back at every token, a Mamba carries one state of fixed size along the sequence. In the
paper's letters (its Algorithm 2), each of E channels keeps a state h of N numbers:

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t       A < 0 is learned: how fast each number of the state fades
    y_t = C_t · h_t + D x_t                        dt_t, B_t, C_t are computed from the input itself, which
                                                   thereby selects what is written, what kept and what read

Read selective_scan_reference first, then FastScan (the same numbers, made for training), Mixer, Mamba.forward.
Notable choices:

    - Parameter names and initial values are those of state-spaces/mamba, so that its weights can be loaded.
    - The trunk is all blocks but the last. The last block is output head 1, the next-token head; multi-token
      prediction (Gloeckle et al. 2024, section 2) puts further blocks beside it, all reading the same trunk.
    - Logits, and the last block's gate and output, only at the positions that are asked for.
    - Decoding keeps each convolution's last inputs and each state, so that a token costs the same time and memory
      wherever it stands.

Shapes: B graphs, T tokens, C = n_embd channels, E = expand · C inner channels, N = d_state, V tokens to choose from.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

# ---------------------------------------------------------------------------------------------------------
# The selective scan


def selective_scan(x, dt, A, B, C, D, initial_state=None, return_state=False, method="auto"):
    """The state space of equation 2 with the selection of Algorithm 2, three ways to the same numbers.

    Arguments: x, dt (B, T, E), dt after its softplus; A (E, N); B, C (B, T, N); D (E,); initial_state (B, E, N), or
        None for zeros. x, B, C share one dtype; dt has it too, or float32 beside 16 bits. float64 is computed in
        float64, all else in float32. method: "reference", the recurrence as written; "fast", FastScan; "triton",
        one fused GPU kernel; "auto", triton on a GPU that has it, else fast.
    Returns: y (B, T, E) in x's dtype; with return_state also the last state (B, E, N), in float32 or float64.
    Raises: ValueError for a wrong shape, dtype or method; ImportError for "triton" where it is not installed.
    """
    check_scan_inputs(x, dt, A, B, C, D, initial_state)
    if method not in ("auto", "reference", "fast", "triton"):
        raise ValueError(f"scan {method!r} is unknown; choose one of auto, reference, fast, triton")
    scan = selective_scan_reference if method == "reference" else FastScan.apply
    if method == "triton" or (method == "auto" and x.is_cuda):
        try:
            from scan_triton import selective_scan_triton as scan
        except ImportError as fault:
            if method == "triton":
                raise ImportError(f"scan 'triton' needs scan_triton.py and the package triton: {fault}") from None

    A, D = (v.to(torch.promote_types(x.dtype, torch.float32)) for v in (A, D))
    h = A.new_zeros(x.shape[0], *A.shape) if initial_state is None else initial_state.to(A.dtype)
    with torch.autocast(x.device.type, enabled=False):  # in mixed precision too, the state is float32
        y, h = scan(x, dt, A, B, C, D, h)
    return (y, h) if return_state else y


def check_scan_inputs(x, dt, A, B, C, D, initial_state):
    """Raise a ValueError that names the first argument whose shape or dtype does not fit."""
    if x.ndim != 3 or A.ndim != 2 or x.numel() == 0 or A.numel() == 0:
        raise ValueError(f"x must be (B, T, E) and A (E, N), not empty, but are {tuple(x.shape)} and {tuple(A.shape)}")
    (batch, length, channels), N = x.shape, A.shape[1]
    expected = {"x": (x, x.shape), "dt": (dt, x.shape), "A": (A, (channels, N)), "B": (B, (batch, length, N))}
    expected |= {"C": (C, (batch, length, N)), "D": (D, (channels,))}
    if initial_state is not None:
        expected["initial_state"] = (initial_state, (batch, channels, N))
    for name, (value, shape) in expected.items():
        if value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, but must have {tuple(shape)} to go with x and A")
        wide = torch.promote_types(x.dtype, torch.float32) if name == "dt" else x.dtype
        if not value.is_floating_point() or (name in ("dt", "B", "C") and value.dtype not in (x.dtype, wide)):
            raise ValueError(f"{name} has dtype {value.dtype}, which does not go with x, which has {x.dtype}")


def selective_scan_reference(x, dt, A, B, C, D, h):
    """The recurrence as the paper writes it, one step after the other. Shapes as in selective_scan; h (B, E, N)."""
    outputs = []
    for t in range(x.shape[1]):
        x_t, dt_t, B_t, C_t = (v[:, t].to(h.dtype) for v in (x, dt, B, C))  # (B, E), (B, E), (B, N), (B, N)
        h = torch.exp(dt_t[:, :, None] * A) * h + (dt_t * x_t)[:, :, None] * B_t[:, None, :]  # (B, E, N)
        outputs.append((h * C_t[:, None, :]).sum(dim=2) + D * x_t)
    return torch.stack(outputs, dim=1).to(x.dtype), h


class FastScan(torch.autograd.Function):
    """The same recurrence with its own backward pass: little memory, and all work in blocks that stay in the cache.

    Autograd would keep two (B, E, N) tensors for each time step. We keep only the state before every block of
    STEPS steps, and the backward pass computes the states inside a block again (Gu & Dao 2023, section 3.3.2).

    The gradient. Write a_t = exp(dt_t A), u_t = dt_t x_t, and g_t for the gradient of the loss with respect
    to h_t. The state h_t is used twice, in y_t = C_t · h_t + D x_t and in h_{t+1} = a_{t+1} h_t + u_{t+1} B_{t+1}, so

        g_t  = C_t dy_t + a_{t+1} g_{t+1}            a recurrence of the same kind, run from the end to the start

    and from it, with a sum over whatever index the left side lacks:

        dC_t = sum_E dy_t h_t    dB_t = sum_E g_t u_t               du_t = sum_N g_t B_t
        dx_t = du_t dt_t + D dy_t                                   dD = sum_{B,T} dy_t x_t
        e_t = g_t a_t h_{t-1}, the gradient of the exponent dt_t A, since d exp(s) = exp(s) ds
        ddt_t = du_t x_t + sum_N e_t A                              dA = sum_{B,T} e_t dt_t

    Inside, A is (N, E) and the state (B, N, E): with the many channels last, each row of work lies together in
    memory. A block is k steps of b graphs, (b, k, N, E); its tensors live in one scratch that all blocks share.
    Sums over E or N are written as products with a row vector (bmm), which take half the time of (a * b).sum().
    """

    STEPS = 8  # time steps in a block
    BLOCK = {"cpu": 2**19, "gpu": 2**22}  # numbers in a block: three such tensors fit in a CPU's last cache

    @staticmethod
    def blocks(x, A):
        """Cut the work (B, T) into blocks: pairs (graphs, [steps, steps, …]) of slices, and scratch for one block."""
        batch, length, _ = x.shape
        k = min(length, FastScan.STEPS)
        room = FastScan.BLOCK["cpu" if x.device.type == "cpu" else "gpu"]
        b = max(1, min(batch, room // (k * A.numel())))
        steps = [slice(t, t + k) for t in range(0, length, k)]
        return [(slice(i, i + b), steps) for i in range(0, batch, b)], A.new_empty(3, b * k * A.numel())

    @staticmethod
    def states(x, dt, A, B, h, scratch):
        """Run one block from the state h (b, N, E) before it; x, dt (b, k, E), A (N, E), B (b, k, N).

        Returns: decays a and states h, (b, k, N, E) each, and room for a third such tensor; they overwrite `scratch`.
        """
        shape = (*x.shape[:2], *A.shape)
        a, states, room = (s[: math.prod(shape)].view(shape) for s in scratch)
        # exp is the costliest single operation here, and exp2 takes half its time on a CPU.
        torch.mul(dt[:, :, None, :], A * math.log2(math.e), out=a).exp2_()
        torch.mul((dt * x)[:, :, None, :], B[:, :, :, None], out=states)
        for a_t, h_t in zip(a.unbind(1), states.unbind(1)):
            h = h_t.addcmul_(a_t, h)  # h_t holds u_t B_t; add a_t h_{t-1}
        return a, states, room

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, initial_state):
        At = A.t().contiguous()  # (N, E)
        blocks, scratch = FastScan.blocks(x, At)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        h = initial_state.transpose(1, 2).clone(memory_format=torch.contiguous_format)  # (B, N, E), runs along
        borders = h.new_empty(len(blocks[0][1]) if any(ctx.needs_input_grad) else 0, *h.shape)  # h before each block
        for b, steps in blocks:
            for i, t in enumerate(steps):
                if len(borders):
                    borders[i, b] = h[b]
                x_, dt_, B_, C_ = (v[b, t].to(h.dtype) for v in (x, dt, B, C))  # (b, k, …)
                _, states, _ = FastScan.states(x_, dt_, At, B_, h[b], scratch)
                # (b k, 1, N) @ (b k, N, E): each step's C times its state
                Ch = torch.bmm(C_.flatten(0, 1)[:, None], states.flatten(0, 1)).view(x_.shape)
                y[b, t] = Ch.addcmul_(D, x_)
                h[b] = states[:, -1]
        ctx.save_for_backward(x, dt, A, B, C, D, borders)
        return y, h.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dh):
        x, dt, A, B, C, D, borders = ctx.saved_tensors
        At = A.t().contiguous()
        blocks, scratch = FastScan.blocks(x, At)
        dx, ddt, dB, dC = (torch.empty_like(v) for v in (x, dt, B, C))
        dA, dD = torch.zeros_like(At), torch.zeros_like(D)
        dh = dh.transpose(1, 2).clone(memory_format=torch.contiguous_format)  # (B, N, E): a_{t+1} g_{t+1}, runs along
        for b, steps in blocks:
            for i, t in reversed(list(enumerate(steps))):
                x_, dt_, B_, C_, dy_ = (v[b, t].to(dh.dtype) for v in (x, dt, B, C, dy))
                a, states, g = FastScan.states(x_, dt_, At, B_, borders[i, b], scratch)  # (b, k, N, E) each
                torch.mul(C_[:, :, :, None], dy_[:, :, None, :], out=g)
                g[:, -1] += dh[b]
                for s in range(g.shape[1] - 2, -1, -1):
                    g[:, s].addcmul_(a[:, s + 1], g[:, s + 1])

                flat_g, flat_h = g.flatten(0, 1), states.flatten(0, 1)  # (b k, N, E)
                dC[b, t] = torch.bmm(dy_.flatten(0, 1)[:, None], flat_h.transpose(1, 2)).view(C_.shape)
                dB[b, t] = torch.bmm((dt_ * x_).flatten(0, 1)[:, None], flat_g.transpose(1, 2)).view(B_.shape)
                du = torch.bmm(B_.flatten(0, 1)[:, None], flat_g).view(x_.shape)

                ag = a.mul_(g)
                dh[b] = ag[:, 0]
                e = g  # its room is free now
                torch.mul(ag[:, 1:], states[:, :-1], out=e[:, 1:])
                torch.mul(ag[:, 0], borders[i, b], out=e[:, 0])
                ddt[b, t] = torch.mul(e, At, out=a).sum(dim=2).addcmul_(du, x_)
                dA += e.mul_(dt_[:, :, None, :]).sum(dim=(0, 1))
                dx[b, t] = (D * dy_).addcmul_(du, dt_)
                dD += (dy_ * x_).sum(dim=(0, 1))
        return dx, ddt, dA.t(), dB, dC, dD, dh.transpose(1, 2)


# ---------------------------------------------------------------------------------------------------------
# The model


@dataclass
class MambaConfig:
    vocab_size: int
    n_layer: int = 4
    n_embd: int = 64  # d_model in the paper
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    n_future: int = 1  # output heads; head k predicts the token k ahead
    dt_rank: int = None  # None: n_embd / 16, rounded up
    scan: str = "auto"  # auto, reference, fast or triton


class Mixer(nn.Module):
    """The Mamba block of the paper's figure 3: one path goes through convolution and scan, the other gates it."""

    def __init__(self, config):
        super().__init__()
        C, E, N = config.n_embd, config.expand * config.n_embd, config.d_state
        self.dt_rank = config.dt_rank or math.ceil(C / 16)
        self.scan = config.scan
        self.in_proj = nn.Linear(C, 2 * E, bias=False)
        self.conv1d = nn.Conv1d(E, E, config.d_conv, groups=E)  # holds weight (E, 1, d_conv) and bias (E,)
        self.x_proj = nn.Linear(E, self.dt_rank + 2 * N, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, E)
        self.A_log = nn.Parameter(torch.arange(1, N + 1).float().log().repeat(E, 1))  # S4D-real: A_n = -n (section 3.6)
        self.D = nn.Parameter(torch.ones(E))
        self.out_proj = nn.Linear(E, C, bias=False)

        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        dt = torch.exp(torch.empty(E).uniform_(math.log(0.001), math.log(0.1)))  # as in section 3.6
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
            self.out_proj.weight.div_(math.sqrt(config.n_layer))  # scaled down with depth, as in GPT-2

    def forward(self, x, num_outputs, cache=None):
        """x (B, T, C) -> (B, num_outputs, C), for the last positions; `cache` is one of Mamba.new_cache's, or None."""
        start = x.shape[1] - num_outputs
        to_x, to_z = self.in_proj.weight.chunk(2)  # two products, because z is needed for the last positions only
        z = F.linear(x[:, start:], to_z)  # (B, num_outputs, E)
        x = F.silu(self.conv(F.linear(x, to_x), cache))  # (B, T, E)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.A_log.shape[1], self.A_log.shape[1]], dim=2)
        dt = F.softplus(self.dt_proj(dt))  # (B, T, E)
        A = -torch.exp(self.A_log)  # (E, N)
        state = cache.state if cache else None
        y, state = selective_scan(x, dt, A, B, C, self.D, state, return_state=True, method=self.scan)
        if cache:
            cache.state = state.detach()
        return self.out_proj(y[:, start:] * F.silu(z))

    def conv(self, x, cache):
        """Causal convolution of each channel by itself: position t sees inputs t-3 … t. x (B, T, E) -> (B, T, E)."""
        T, width = x.shape[1], self.conv1d.weight.shape[2]
        if cache:
            padded = torch.cat([cache.window.transpose(1, 2), x], dim=1)  # (B, width - 1 + T, E)
            cache.window = padded[:, T:].detach().transpose(1, 2).clone()  # a view would keep all of padded alive
        else:
            padded = F.pad(x, (0, 0, width - 1, 0))
        # As images of height 1: conv2d takes the channels last in memory, where they are; conv1d would move them first.
        images, weight = padded.transpose(1, 2)[:, :, None], self.conv1d.weight[:, :, None]
        return F.conv2d(images, weight, self.conv1d.bias, groups=x.shape[2])[:, :, 0].transpose(1, 2)


class Block(nn.Module):
    """One layer. Mamba has no MLP: its gated mixer is both."""

    def __init__(self, config):
        super().__init__()
        self.norm = nn.RMSNorm(config.n_embd, eps=1e-5)
        self.mixer = Mixer(config)

    def forward(self, x, num_outputs, cache=None):
        """x (B, T, C) -> (B, num_outputs, C), for the last positions."""
        return x[:, x.shape[1] - num_outputs :] + self.mixer(self.norm(x), num_outputs, cache)


class Cache:
    """What one block remembers of the tokens so far: its convolution's last inputs and its state."""

    def __init__(self, batch_size, config, like):
        E = config.expand * config.n_embd
        self.window = like.new_zeros(batch_size, E, config.d_conv - 1)
        self.state = like.new_zeros(batch_size, E, config.d_state)


class Mamba(nn.Module):
    EMBEDDING_STD = 0.02  # as upstream

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        nn.init.normal_(self.embedding.weight, std=self.EMBEDDING_STD)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.future = nn.ModuleList(Block(config) for _ in range(config.n_future - 1))  # heads 2 … n_future
        self.norm_f = nn.RMSNorm(config.n_embd, eps=1e-5)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.embedding.weight

    def trunk(self, tokens, cache=None):
        """All blocks but the last: what the output heads share.

        Arguments: tokens (B, T), int64; cache, from new_cache, holds what came before and takes these tokens in.
        Returns: (B, T, C), float.
        """
        x = self.embedding(tokens)
        for i, block in enumerate(self.layers[:-1]):
            x = block(x, x.shape[1], cache[i] if cache else None)
        return x

    def head(self, x, k=0, num_logits=None, cache=None):
        """Output head k + 1, which predicts the token k + 1 ahead: one block, then the shared unembedding.

        Arguments: x (B, T, C), from trunk; num_logits, how many of the last positions are asked for (None: all);
            cache, from new_cache; each head has its own part in it, and must take in every token or none.
        Returns: logits (B, num_logits, V), float.
        """
        block = self.future[k - 1] if k > 0 else self.layers[-1]
        x = block(x, num_logits or x.shape[1], cache[len(self.layers) - 1 + k] if cache else None)
        return self.lm_head(self.norm_f(x))

    def forward(self, tokens, num_logits=None, cache=None):
        """Next-token logits. tokens (B, T), int64 -> (B, num_logits, V), float, at the last positions (None: all)."""
        return self.head(self.trunk(tokens, cache), 0, num_logits, cache)

    def new_cache(self, batch_size, max_tokens):
        """An empty cache for decoding, one a block. Its size does not depend on `max_tokens`, which the GPT needs."""
        return [Cache(batch_size, self.config, like=self.embedding.weight) for _ in (*self.layers, *self.future)]
