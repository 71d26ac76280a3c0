"""The selective scan as two fused GPU kernels in Triton, forward and backward. It is optional.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t        y_t = C_t · h_t + D x_t

The scan does little arithmetic on many numbers. In PyTorch, exp(dt A) and the states are tensors
(B, T, E, N), N times larger than the input, which every operation reads from memory and writes
back. Here one program takes one graph and a block of channels, holds their states in registers and
walks along time: of what grows with T it reads only x, dt, B and C, and writes only y and, for
training, one state a chunk of steps. This is the "hardware-aware" scan of Gu & Dao 2023 (arXiv
2312.00752, section 3.3.2), but it does not parallelise over time: steps wait for one another, so
it reaches a tenth to a fifth of the memory's bandwidth (selective_scan_triton has the times).

The backward pass needs every state again, the last one first. Memory holds only the state before
each chunk of steps; from it the kernel recomputes the chunk's states, keeps them in registers (for
which its loops over a chunk are unrolled) and walks back. Scratch memory for them would bring the
traffic back; solving a step for h_{t-1} divides by exp(dt A), which amplifies rounding errors.

tests/test_scan_triton.py runs them on a GPU, or in Triton's interpreter on a CPU.

Shapes: B graphs, T time steps, E channels, N numbers of state a channel.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

# Each thread holds TILE / (32 WARPS) = 4 numbers of state, in the backward pass 4 CHUNK, and then
# uses 192 of its 255 registers (float32, N = 16). CHUNK = 16, or WARPS = 1 on sm_90, would spill.
CHUNK = 8  # steps in a chunk; more would store fewer states in memory, but need more registers
TILE = 256  # numbers of state in a program; more would leave fewer parts of dB and dC to add up
WARPS = 2  # a program's threads, in units of 32


def block_sizes(E, N):
    """The tile of a program, (BLOCK_E, BLOCK_N): powers of two. N is never split."""
    BLOCK_N = triton.next_power_of_2(N)
    return max(1, min(TILE // BLOCK_N, triton.next_power_of_2(E))), BLOCK_N


# ------------------------------------------------------------------------------------------------
# The kernels. A program works on graph program_id(0) and on block program_id(1) of the channels.
# Tensors are contiguous. Each pointer first moves to its graph, by a 64-bit offset, because a batch
# may hold more than 2^31 numbers. Inside a graph 32 bits suffice, and take fewer registers.
# E and N need not fill the tile, nor T the last chunk. What lies outside is read as 0 and not
# written. Zeros are harmless: they add nothing to a sum, and a step with dt = 0 leaves h as it is.
# No program reads what it, or another, has written to memory, so no thread waits for a store.


@triton.jit
def load(ptr, t, T, width, i, dtype: tl.constexpr):
    """Elements i of row t of a matrix (T, width), 0 outside it."""
    return tl.load(ptr + t * width + i, mask=(t < T) & (i < width), other=0.0).to(dtype)


@triton.jit
def forward_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, initial_ptr,  # read
    y_ptr, last_ptr, borders_ptr,  # written
    T, E, N,
    KEEP: tl.constexpr, CHUNK: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    x_ptr, dt_ptr, y_ptr = x_ptr + b * T * E, dt_ptr + b * T * E, y_ptr + b * T * E
    B_ptr, C_ptr = B_ptr + b * T * N, C_ptr + b * T * N
    borders_ptr += b * tl.cdiv(T, CHUNK) * E * N

    channel = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    tile = channel[:, None] * N + n[None, :]  # offsets of the tile in a matrix (E, N)
    in_tile = (channel < E)[:, None] & (n < N)[None, :]
    A = tl.load(A_ptr + tile, mask=in_tile, other=0.0)  # float32 or float64, as is the state
    D = tl.load(D_ptr + channel, mask=channel < E, other=0.0)
    h = tl.load(initial_ptr + b * E * N + tile, mask=in_tile, other=0.0)
    for first in range(0, T, CHUNK):
        if KEEP:
            tl.store(borders_ptr + tile, h, mask=in_tile)
            borders_ptr += E * N
        steps = ()
        for i in tl.static_range(CHUNK):  # all loads at once: faster on long graphs
            t = first + i
            x = load(x_ptr, t, T, E, channel, A.dtype)
            dt = load(dt_ptr, t, T, E, channel, A.dtype)
            B = load(B_ptr, t, T, N, n, A.dtype)
            C = load(C_ptr, t, T, N, n, A.dtype)
            steps = steps + ((x, dt, B, C),)
        for i in tl.static_range(CHUNK):
            t = first + i
            x, dt, B, C = steps[i]
            h = tl.exp(dt[:, None] * A) * h + (dt * x)[:, None] * B[None, :]
            y = tl.sum(h * C[None, :], axis=1) + D * x
            tl.store(y_ptr + t * E + channel, y, mask=(t < T) & (channel < E))
    tl.store(last_ptr + b * E * N + tile, h, mask=in_tile)


# scan.py derives the gradients, under the names used here. Sums over N and T stay inside a program.
# For sums over E and B each program writes its part, and PyTorch adds the parts. Atomic additions
# would save that memory, but would add in a different order in each run.


@triton.jit
def backward_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, borders_ptr, dy_ptr, dlast_ptr,  # read
    dx_ptr, ddt_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, dinitial_ptr,  # written; dA … dD in parts
    T, E, N, CHUNK: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1) * tl.num_programs(0) + b  # of dB and dC; dA and dD have one a graph
    x_ptr, dt_ptr, dy_ptr = x_ptr + b * T * E, dt_ptr + b * T * E, dy_ptr + b * T * E
    dx_ptr, ddt_ptr = dx_ptr + b * T * E, ddt_ptr + b * T * E
    B_ptr, C_ptr = B_ptr + b * T * N, C_ptr + b * T * N
    dB_ptr, dC_ptr = dB_ptr + part * T * N, dC_ptr + part * T * N

    channel = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    tile = channel[:, None] * N + n[None, :]
    in_tile = (channel < E)[:, None] & (n < N)[None, :]
    A = tl.load(A_ptr + tile, mask=in_tile, other=0.0)
    D = tl.load(D_ptr + channel, mask=channel < E, other=0.0)
    g = tl.load(dlast_ptr + b * E * N + tile, mask=in_tile, other=0.0)
    dA, dD = tl.zeros([BLOCK_E, BLOCK_N], A.dtype), tl.zeros([BLOCK_E], A.dtype)
    chunks = tl.cdiv(T, CHUNK)
    for done in range(chunks):
        chunk = chunks - 1 - done
        h = tl.load(borders_ptr + (b * chunks + chunk) * E * N + tile, mask=in_tile, other=0.0)
        before = (h,)  # before[i] is the state before step i of the chunk
        for i in tl.static_range(CHUNK - 1):
            t = chunk * CHUNK + i
            x = load(x_ptr, t, T, E, channel, A.dtype)
            dt = load(dt_ptr, t, T, E, channel, A.dtype)
            B = load(B_ptr, t, T, N, n, A.dtype)
            h = tl.exp(dt[:, None] * A) * h + (dt * x)[:, None] * B[None, :]
            before = before + (h,)

        for i in tl.static_range(CHUNK - 1, -1, -1):
            t = chunk * CHUNK + i
            x = load(x_ptr, t, T, E, channel, A.dtype)
            dt = load(dt_ptr, t, T, E, channel, A.dtype)
            B = load(B_ptr, t, T, N, n, A.dtype)
            C = load(C_ptr, t, T, N, n, A.dtype)
            dy = load(dy_ptr, t, T, E, channel, A.dtype)
            a = tl.exp(dt[:, None] * A)
            ah = a * before[i]
            h = ah + (dt * x)[:, None] * B[None, :]

            g += dy[:, None] * C[None, :]  # g was a_{t+1} g_{t+1}, and is g_t now
            e = g * ah
            du = tl.sum(g * B[None, :], axis=1)
            ddt = du * x + tl.sum(e * A, axis=1)
            dB = tl.sum(g * (dt * x)[:, None], axis=0)
            dC = tl.sum(h * dy[:, None], axis=0)
            tl.store(dx_ptr + t * E + channel, du * dt + D * dy, mask=(t < T) & (channel < E))
            tl.store(ddt_ptr + t * E + channel, ddt, mask=(t < T) & (channel < E))
            tl.store(dB_ptr + t * N + n, dB, mask=(t < T) & (n < N))
            tl.store(dC_ptr + t * N + n, dC, mask=(t < T) & (n < N))
            dA += e * dt[:, None]
            dD += dy * x
            g = a * g
    tl.store(dA_ptr + b * E * N + tile, dA, mask=in_tile)
    tl.store(dD_ptr + b * E + channel, dD, mask=channel < E)
    tl.store(dinitial_ptr + b * E * N + tile, g, mask=in_tile)


# ------------------------------------------------------------------------------------------------
# The two kernels as one operation with a gradient

INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)  # by TRITON_INTERPRET=1


def selective_scan_triton(x, dt, A, B, C, D, initial_state):
    """The selective scan of Gu & Dao 2023 (equation 2, Algorithm 2), in one kernel each way.

    Arguments: x, dt (B, T, E), dt after its softplus; A (E, N); B, C (B, T, N); D (E,);
        initial_state (B, E, N). A, D and initial_state have the state's dtype, float32 or float64,
        the others that or a narrower one. All on one GPU, or on the CPU in Triton's interpreter.
    Returns: y (B, T, E) in x's dtype; the last state (B, E, N) in A's dtype.
    Raises: ValueError for a device that cannot run it, or if T · max(E, N) is 2^31 or more.

    The numbers it moves, in units of B·T·E, for N = 16, counted in the code; and the milliseconds
    of an H100 for (B, T, E) = (8, 4096, 1536), and in brackets of a copy of as many bytes:
        forward   3 + N / CHUNK = 5: x, dt in; y and the state before each chunk out. 1.6 (0.34)
        backward  5 + N / CHUNK + 4 N / BLOCK_E = 11: x, dt, dy and those states in; dx, ddt out;
                  the parts of dB and dC out, and in again to be added up. 7.2 (0.75)
    A tensor (B, T, E, N) alone is 16. B and C are small; each block of channels reads them again.
    States and parts take 4 bytes a number (float32) even where x takes 2.
    """
    if not (x.is_cuda or INTERPRETED):
        raise ValueError(f"scan 'triton' runs on a GPU, but x is on {x.device};"
                         " choose another, as in --scan fast")
    if x.shape[1] * max(A.shape) >= 2**31:
        shape = tuple(x.shape)
        raise ValueError(f"scan 'triton' takes less than 2^31 numbers a graph, but x is {shape}")
    return TritonScan.apply(x, dt, A, B, C, D, initial_state)


class TritonScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        x, dt, A, B, C, D, initial_state = (v.contiguous() for v in inputs)
        (batch, T, E), N, keep = x.shape, A.shape[1], any(ctx.needs_input_grad)
        BLOCK_E, BLOCK_N = block_sizes(E, N)
        y, last_state = torch.empty_like(x), torch.empty_like(initial_state)
        borders = A.new_empty(batch, triton.cdiv(T, CHUNK) if keep else 0, E, N)  # a state a chunk
        with torch.cuda.device_of(x):  # Triton launches on the current GPU, which need not be x's
            forward_kernel[batch, triton.cdiv(E, BLOCK_E)](
                x, dt, A, B, C, D, initial_state, y, last_state, borders,
                T, E, N, keep, CHUNK, BLOCK_E, BLOCK_N, num_warps=WARPS,
            )  # fmt: skip
        ctx.save_for_backward(x, dt, A, B, C, D, borders)
        return y, last_state

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        x, dt, A, B, C, D, borders = ctx.saved_tensors
        (batch, T, E), N = x.shape, A.shape[1]
        BLOCK_E, BLOCK_N = block_sizes(E, N)
        blocks = triton.cdiv(E, BLOCK_E)
        dy, dlast = dy.contiguous(), dlast.contiguous()
        dx, ddt, dinitial = (torch.empty_like(v) for v in (x, dt, dlast))
        dA, dD = A.new_empty(batch, E, N), A.new_empty(batch, E)
        dB, dC = A.new_empty(blocks, batch, T, N), A.new_empty(blocks, batch, T, N)
        with torch.cuda.device_of(x):
            backward_kernel[batch, blocks](
                x, dt, A, B, C, D, borders, dy, dlast, dx, ddt, dA, dB, dC, dD, dinitial,
                T, E, N, CHUNK, BLOCK_E, BLOCK_N, num_warps=WARPS,
            )  # fmt: skip
        return dx, ddt, dA.sum(0), dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype), dD.sum(0), dinitial
