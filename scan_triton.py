"""The selective scan as two fused GPU kernels, forward and backward, in Triton. Optional: all else runs without it.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t        y_t = C_t · h_t + D x_t        (model_mamba.py has the letters)

What it shows: the scan does little arithmetic on many numbers, so on a GPU its time is that of moving them. Written in
PyTorch, exp(dt A) and the states are tensors (B, T, E, N), N times larger than the input, which go to memory and come
back for each operation. Here one program takes one graph and a block of channels, holds their states in registers and
walks along time. Only x, dt, B, C come in and y goes out; exp, products and sums happen on the way. That is the
"hardware-aware" scan of Gu & Dao 2023 (arXiv 2312.00752, section 3.3.2), without its parallel scan over time: the
graphs here are short and many, so that batch and channels alone give a GPU enough to do.

The backward pass needs every state once more, the last one first. Memory holds one in CHUNK of them, the state before
each chunk of steps. The kernel takes the last chunk first, runs it forward again, keeps its CHUNK states in registers
(the steps of a chunk are unrolled for that) and walks back. Two other ways are worse: with scratch memory for a chunk's
states, all states would go through memory after all; and solving the step for h_{t-1} divides by exp(dt A), which blows
rounding errors up.

dt comes after its softplus: the model applies it, as for the other two scans.

These kernels have not run on a GPU yet. Checked are their numbers, in Triton's interpreter on a CPU, and that they
compile for sm_80 and sm_90 without spilling registers (tests/test_scan_triton.py). Their speed is not measured.

Shapes: B graphs, T tokens, E channels, N numbers of state a channel.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

# Each thread holds TILE / (32 WARPS) = 4 numbers of state, and in the backward pass 4 · CHUNK: 192 of its 255 registers
# are used (float32, N = 16). Chunks of 16 do not fit and spill registers to memory; one warp for two does, on sm_90.
CHUNK = 8  # steps in a chunk. Larger: fewer states in memory, but more in registers
TILE = 256  # numbers of state in a program. Larger: fewer parts of dB and dC to write and add up
WARPS = 2  # a program's threads, in units of 32


def block_sizes(E, N):
    """(BLOCK_E, BLOCK_N), the tile of a program: channels times numbers of state, as powers of two. N is never cut."""
    BLOCK_N = triton.next_power_of_2(N)
    return max(1, min(TILE // BLOCK_N, triton.next_power_of_2(E))), BLOCK_N


# ---------------------------------------------------------------------------------------------------------
# The kernels. A program works on graph b = program_id(0) and on the BLOCK_E channels of block program_id(1).
#
# Tensors are contiguous. First each pointer moves on to graph b, counted in 64 bits, because a batch may hold more than
# 2^31 numbers; inside one graph 32 bits do, and take fewer registers.
#
# E and N need not fill the tile, nor T the last chunk. What lies past an edge is read as 0 and not written. Zeros do no
# harm: they add nothing to a sum, and a step with dt = 0 is h_t = exp(0) h_{t-1} + 0.
#
# No program reads from memory what it, or another, has written there, so that no thread needs to wait for another's.


@triton.jit
def load(ptr, row, width, i, inside, dtype: tl.constexpr):
    """Elements i of one row of a matrix with rows of that width, 0 where they are not inside."""
    return tl.load(ptr + row * width + i, mask=inside & (i < width), other=0.0).to(dtype)


@triton.jit
def forward_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, initial_ptr,  # read
    y_ptr, last_ptr, borders_ptr,  # written
    T, E, N, KEEP: tl.constexpr, CHUNK: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    x_ptr, dt_ptr, y_ptr = x_ptr + b * T * E, dt_ptr + b * T * E, y_ptr + b * T * E
    B_ptr, C_ptr = B_ptr + b * T * N, C_ptr + b * T * N
    borders_ptr += b * tl.cdiv(T, CHUNK) * E * N

    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    tile = e[:, None] * N + n[None, :]  # where the tile lies in a matrix (E, N)
    in_tile = (e < E)[:, None] & (n < N)[None, :]
    A = tl.load(A_ptr + tile, mask=in_tile, other=0.0)  # its dtype is that of the state: float32, or float64
    D = tl.load(D_ptr + e, mask=e < E, other=0.0)
    h = tl.load(initial_ptr + b * E * N + tile, mask=in_tile, other=0.0)
    for t in range(T):
        if KEEP:
            if t % CHUNK == 0:
                tl.store(borders_ptr + tile, h, mask=in_tile)
                borders_ptr += E * N
        x = load(x_ptr, t, E, e, True, A.dtype)
        dt = load(dt_ptr, t, E, e, True, A.dtype)
        B = load(B_ptr, t, N, n, True, A.dtype)
        C = load(C_ptr, t, N, n, True, A.dtype)
        h = tl.exp(dt[:, None] * A) * h + (dt * x)[:, None] * B[None, :]
        tl.store(y_ptr + t * E + e, tl.sum(h * C[None, :], axis=1) + D * x, mask=e < E)
    tl.store(last_ptr + b * E * N + tile, h, mask=in_tile)


# The gradient. Write a_t = exp(dt_t A), u_t = dt_t x_t, and g_t for the gradient of the loss with respect to h_t. The
# loss sees h_t twice, through y_t = C_t · h_t + D x_t and through h_{t+1} = a_{t+1} h_t + u_{t+1} B_{t+1}. Therefore
#
#     g_t  = C_t dy_t + a_{t+1} g_{t+1}         and behind the last step, the gradient of the last state
#
# which is a recurrence from the end to the start. All else follows from it, by the chain rule in the step that made
# h_t, with a sum over each index that the left side lacks:
#
#     dC_t = sum_E dy_t h_t    dB_t = sum_E g_t u_t               du_t = sum_N g_t B_t
#     dx_t = du_t dt_t + D dy_t                                   dD = sum_{B,T} dy_t x_t
#     s_t = g_t a_t h_{t-1}, the gradient of the exponent dt_t A, since d exp(s) = exp(s) ds
#     ddt_t = du_t x_t + sum_N s_t A                              dA = sum_{B,T} s_t dt_t
#
# Sums over N and T stay inside a program. Those over E and B do not: each program writes its part to a place of its
# own, and PyTorch adds the parts up. Atomic additions would save that memory, but add in another order in each run.


@triton.jit
def backward_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, borders_ptr, dy_ptr, dlast_ptr,  # read
    dx_ptr, ddt_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, dinitial_ptr,  # written; dA … dD are parts
    T, E, N, CHUNK: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1) * tl.num_programs(0) + b  # dB and dC are (blocks of channels, B, T, N), dA and dD (B, …)
    x_ptr, dt_ptr, dy_ptr = x_ptr + b * T * E, dt_ptr + b * T * E, dy_ptr + b * T * E
    dx_ptr, ddt_ptr = dx_ptr + b * T * E, ddt_ptr + b * T * E
    B_ptr, C_ptr = B_ptr + b * T * N, C_ptr + b * T * N
    dB_ptr, dC_ptr = dB_ptr + part * T * N, dC_ptr + part * T * N

    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    tile = e[:, None] * N + n[None, :]
    in_tile = (e < E)[:, None] & (n < N)[None, :]
    A = tl.load(A_ptr + tile, mask=in_tile, other=0.0)
    D = tl.load(D_ptr + e, mask=e < E, other=0.0)
    g = tl.load(dlast_ptr + b * E * N + tile, mask=in_tile, other=0.0)
    dA = tl.zeros([BLOCK_E, BLOCK_N], A.dtype)
    dD = tl.zeros([BLOCK_E], A.dtype)
    chunks = tl.cdiv(T, CHUNK)
    for done in range(chunks):
        chunk = chunks - 1 - done
        h = tl.load(borders_ptr + (b * chunks + chunk) * E * N + tile, mask=in_tile, other=0.0)
        before = (h,)  # before[i] is the state before step i of the chunk
        for i in tl.static_range(CHUNK - 1):
            t = chunk * CHUNK + i
            x = load(x_ptr, t, E, e, t < T, A.dtype)
            dt = load(dt_ptr, t, E, e, t < T, A.dtype)
            B = load(B_ptr, t, N, n, t < T, A.dtype)
            h = tl.exp(dt[:, None] * A) * h + (dt * x)[:, None] * B[None, :]
            before = before + (h,)

        for i in tl.static_range(CHUNK - 1, -1, -1):
            t = chunk * CHUNK + i
            x = load(x_ptr, t, E, e, t < T, A.dtype)
            dt = load(dt_ptr, t, E, e, t < T, A.dtype)
            B = load(B_ptr, t, N, n, t < T, A.dtype)
            C = load(C_ptr, t, N, n, t < T, A.dtype)
            dy = load(dy_ptr, t, E, e, t < T, A.dtype)
            a = tl.exp(dt[:, None] * A)
            ah = a * before[i]
            h = ah + (dt * x)[:, None] * B[None, :]

            g += dy[:, None] * C[None, :]  # g was a_{t+1} g_{t+1}, and is g_t now
            s = g * ah
            du = tl.sum(g * B[None, :], axis=1)
            ddt = du * x + tl.sum(s * A, axis=1)
            dB = tl.sum(g * (dt * x)[:, None], axis=0)
            dC = tl.sum(h * dy[:, None], axis=0)
            tl.store(dx_ptr + t * E + e, du * dt + D * dy, mask=(t < T) & (e < E))
            tl.store(ddt_ptr + t * E + e, ddt, mask=(t < T) & (e < E))
            tl.store(dB_ptr + t * N + n, dB, mask=(t < T) & (n < N))
            tl.store(dC_ptr + t * N + n, dC, mask=(t < T) & (n < N))
            dA += s * dt[:, None]
            dD += dy * x
            g = a * g
    tl.store(dA_ptr + b * E * N + tile, dA, mask=in_tile)
    tl.store(dD_ptr + b * E + e, dD, mask=e < E)
    tl.store(dinitial_ptr + b * E * N + tile, g, mask=in_tile)


# ---------------------------------------------------------------------------------------------------------
# The two kernels as one operation with a gradient

INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)  # TRITON_INTERPRET=1 was set before the import


def selective_scan_triton(x, dt, A, B, C, D, initial_state):
    """The selective scan of Gu & Dao 2023 (equation 2 and Algorithm 2), with a gradient, in one kernel each way.

    Arguments: x, dt (B, T, E), dt after its softplus; A (E, N); B, C (B, T, N); D (E,); initial_state (B, E, N). A, D
        and initial_state have the state's dtype, float32 or float64; x, dt, B, C that or a narrower one. All on one
        GPU, or on the CPU in Triton's interpreter.
    Returns: y (B, T, E) in x's dtype, the last state (B, E, N) in A's dtype.
    Raises: ValueError for a device that cannot run it, or if one graph's x has 2^31 numbers or more.

    What must move, in numbers, as multiples of B·T·E (a prediction from the code, not measured; at N = 16):
        forward: x, dt in; y and the state before each chunk out          3 + N / CHUNK                    =  5
        backward: x, dt, dy and those states in; dx, ddt out; the parts
            of dB and dC out, and in again to be added up                 5 + N / CHUNK + 4 N / BLOCK_E    = 11
    One tensor (B, T, E, N) alone is 16. B and C are few, and each block of channels reads them again, from the cache
    it is hoped. States and parts have the state's 4 bytes a number, also where x has 2.
    """
    if not (x.is_cuda or INTERPRETED):
        raise ValueError(f"scan 'triton' runs on a GPU, but x is on {x.device}; choose another, as in --scan fast")
    if x.shape[1] * max(A.shape) >= 2**31:
        raise ValueError(f"scan 'triton' takes less than 2^31 numbers a graph, but x is {tuple(x.shape)}")
    return TritonScan.apply(x, dt, A, B, C, D, initial_state)


class TritonScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, initial_state):
        x, dt, A, B, C, D, initial_state = (v.contiguous() for v in (x, dt, A, B, C, D, initial_state))
        (batch, T, E), N, keep = x.shape, A.shape[1], any(ctx.needs_input_grad)
        BLOCK_E, BLOCK_N = block_sizes(E, N)
        y, last_state = torch.empty_like(x), torch.empty_like(initial_state)
        borders = A.new_empty(batch, triton.cdiv(T, CHUNK) if keep else 0, E, N)  # the state before each chunk
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
        dx, ddt, dinitial = torch.empty_like(x), torch.empty_like(dt), torch.empty_like(dlast.contiguous())
        dA, dD = A.new_empty(batch, E, N), A.new_empty(batch, E)
        dB, dC = A.new_empty(blocks, batch, T, N), A.new_empty(blocks, batch, T, N)
        with torch.cuda.device_of(x):
            backward_kernel[batch, blocks](
                x, dt, A, B, C, D, borders, dy.contiguous(), dlast.contiguous(),
                dx, ddt, dA, dB, dC, dD, dinitial,
                T, E, N, CHUNK, BLOCK_E, BLOCK_N, num_warps=WARPS,
            )  # fmt: skip
        return dx, ddt, dA.sum(0), dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype), dD.sum(0), dinitial
