"""Mamba's scan, made for training: the recurrence of model_mamba.py with its own backward pass.

Autograd would keep two (B, E, N) tensors for every time step. FastScan keeps only the state before
each block of steps, and computes the states inside a block again on the way back (Gu & Dao 2023,
section 3.3.2). scan_triton.py does the same in fused GPU kernels.

The gradient, derived once for both files. Write a_t = exp(dt_t A) and u_t = dt_t x_t:

    h_t = a_t h_{t-1} + u_t B_t          y_t = C_t · h_t + D x_t

Let g_t be the gradient of the loss with respect to h_t. h_t acts on both y_t and h_{t+1}, so

    g_t  = C_t dy_t + a_{t+1} g_{t+1}    a recurrence of the same kind, from the end to the start

(for the last t, the second term is the gradient of the last state, which comes from outside), and
the rest follows by the chain rule, with a sum over each index that the left side lacks:

    dC_t = sum_E dy_t h_t      dB_t = sum_E g_t u_t      du_t = sum_N g_t B_t
    e_t  = g_t a_t h_{t-1}     (the gradient of the exponent dt_t A, since d exp(r) = exp(r) dr)
    dx_t = du_t dt_t + D dy_t      ddt_t = du_t x_t + sum_N e_t A
    dA   = sum e_t dt_t and dD = sum dy_t x_t, over graphs and time; dh_0 = a_1 g_1

Shapes: B graphs, T time steps, E channels, N numbers of state in each. (In formulas, B_t, C_t and
D are the paper's.)
"""

import importlib.util
import math

import torch
from torch.autograd.function import once_differentiable


class FastScan(torch.autograd.Function):
    """The recurrence in blocks that stay in the cache, with little memory, and its gradient.

    Inside, A is (N, E) and the state (B, N, E): with the many channels last, each row of work is
    contiguous. A block is k steps of b graphs, (b, k, N, E); all blocks share one scratch memory.
    Most sums over E or N are products with a row vector (bmm), which is faster than (a * b).sum().
    """

    CHUNK = 8  # time steps in a block
    BLOCK = {"cpu": 2**19, "gpu": 2**22}  # numbers in a block; a CPU's cache holds three of these

    @staticmethod
    def blocks(x, A):
        """Cut (B, T) into blocks: lists of slices, of graphs and of steps; and the scratch."""
        batch, length, _ = x.shape
        k = min(length, FastScan.CHUNK)
        room = FastScan.BLOCK["cpu" if x.device.type == "cpu" else "gpu"]
        b = max(1, min(batch, room // (k * A.numel())))
        steps = [slice(t, t + k) for t in range(0, length, k)]
        scratch = A.new_empty(3, b * k * A.numel())
        return [slice(i, i + b) for i in range(0, batch, b)], steps, scratch

    @staticmethod
    def states(x, dt, A, B, h, scratch):
        """Run one block from the state h (b, N, E); x, dt (b, k, E), A (N, E), B (b, k, N).

        Returns: a and h of each step, (b, k, N, E), and room for a third such tensor: the scratch.
        """
        shape = (*x.shape[:2], *A.shape)
        a, states, room = (s[: math.prod(shape)].view(shape) for s in scratch)
        # exp is the costliest operation here, and exp2 takes a third of its time on a CPU.
        torch.mul(dt[:, :, None, :], A * math.log2(math.e), out=a).exp2_()
        torch.mul((dt * x)[:, :, None, :], B[:, :, :, None], out=states)
        for a_t, h_t in zip(a.unbind(1), states.unbind(1)):
            h = h_t.addcmul_(a_t, h)  # h_t holds u_t B_t; add a_t h_{t-1}
        return a, states, room

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, initial_state):
        At = A.t().contiguous()  # (N, E)
        graphs, steps, scratch = FastScan.blocks(x, At)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        # (B, N, E), the running state; and a copy of it before each block, for the way back
        h = initial_state.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        borders = h.new_empty(len(steps) if any(ctx.needs_input_grad) else 0, *h.shape)
        for b in graphs:
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
        """The gradients of forward's seven inputs, each of its input's shape, in their order.

        Arguments: dy (B, T, E) and dh (B, E, N), the gradients of y and of the last state, not to
            be written to. Of what forward kept, A is (E, N), and borders (chunks, B, N, E) holds
            the states before each chunk of CHUNK steps, the initial one first.
        """
        x, dt, A, B, C, D, borders = ctx.saved_tensors
        At = A.t().contiguous()
        graphs, steps, scratch = FastScan.blocks(x, At)
        dx, ddt, dB, dC = (torch.empty_like(v) for v in (x, dt, B, C))
        dA, dD = torch.zeros_like(At), torch.zeros_like(D)
        # (B, N, E): a_{t+1} g_{t+1}, running from the end to the start
        dh = dh.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        for b in graphs:
            for i, t in reversed(list(enumerate(steps))):
                x_, dt_, B_, C_, dy_ = (v[b, t].to(dh.dtype) for v in (x, dt, B, C, dy))
                a, states, g = FastScan.states(x_, dt_, At, B_, borders[i, b], scratch)
                torch.mul(C_[:, :, :, None], dy_[:, :, None, :], out=g)
                g[:, -1] += dh[b]
                for s in range(g.shape[1] - 2, -1, -1):
                    g[:, s].addcmul_(a[:, s + 1], g[:, s + 1])

                flat_g, flat_h = g.flatten(0, 1), states.flatten(0, 1)  # (b k, N, E)
                row = lambda v: v.flatten(0, 1)[:, None]  # (b k, 1, …)
                dC[b, t] = torch.bmm(row(dy_), flat_h.transpose(1, 2)).view(C_.shape)
                dB[b, t] = torch.bmm(row(dt_ * x_), flat_g.transpose(1, 2)).view(B_.shape)
                du = torch.bmm(row(B_), flat_g).view(x_.shape)

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


def has_triton():
    """Is the package triton installed?"""
    return importlib.util.find_spec("triton") is not None


def triton_scan(*arguments):
    """The recurrence by scan_triton.py. Raises: ImportError where Triton is not installed."""
    try:
        from scan_triton import selective_scan_triton
    except ImportError as fault:
        raise ImportError(f"scan 'triton' needs the package triton: {fault}") from None
    return selective_scan_triton(*arguments)


def check_inputs(x, dt, A, B, C, D, initial_state):
    """Raise a ValueError that names the first argument whose shape or dtype does not fit."""
    if x.ndim != 3 or A.ndim != 2 or x.numel() == 0 or A.numel() == 0:
        shapes = f"{tuple(x.shape)} and {tuple(A.shape)}"
        raise ValueError(f"x must be (B, T, E) and A (E, N), not empty, but are {shapes}")
    (batch, length, E), N = x.shape, A.shape[1]
    expected = {"x": (x, x.shape), "dt": (dt, x.shape), "A": (A, (E, N)), "D": (D, (E,))}
    expected |= {"B": (B, (batch, length, N)), "C": (C, (batch, length, N))}
    if initial_state is not None:
        expected["initial_state"] = (initial_state, (batch, E, N))
    for name, (value, shape) in expected.items():
        if value.shape != shape:
            has, must = tuple(value.shape), tuple(shape)
            raise ValueError(f"{name} has shape {has}, but must have {must} to go with x and A")
        wide = torch.promote_types(x.dtype, torch.float32) if name == "dt" else x.dtype
        fits = name not in ("dt", "B", "C") or value.dtype in (x.dtype, wide)
        if not value.is_floating_point() or not fits:
            raise ValueError(
                f"{name} has dtype {value.dtype}, which does not go with x, which has {x.dtype}"
            )
