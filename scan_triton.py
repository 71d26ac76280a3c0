"""The selective scan as two fused GPU kernels, forward and backward, in Triton. Optional: all else runs without it.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t        y_t = C_t · h_t + D x_t        (model_mamba.py has the letters)

What it shows: the scan does little arithmetic on many numbers, so on a GPU its time is that of moving them. Written in
PyTorch, exp(dt A) and the states are tensors (B, T, E, N), N times larger than the input, that go to memory and come
back for each operation. Here one program takes one graph and a block of channels, holds their states in registers and
walks along time; exp, product and sum happen on the way, and only x, dt, B, C come in and y goes out. That is the
"hardware-aware" scan of Gu & Dao 2023 (arXiv 2312.00752, section 3.3.2), but for its parallel scan over time: the
graphs here are short and many, so batch and channels alone fill a GPU.

The backward pass needs the states again, last one first. Kept would be only what it cannot compute: the state before
every CHUNK steps. It takes a chunk at a time, last one first, runs it forward once more, with the CHUNK states in
registers, and then backward. (Two other ways: a scratch in memory would be as large as the states themselves, since
all programs together fill it; and solving the step for h_{t-1}, a division by exp(dt A), blows rounding errors up.)

dt comes after its softplus, which the model applies: in here it would save one reading and writing of dt only.

Nothing below has been run on a GPU yet. Measured are: the numbers, in Triton's interpreter; registers and spills, by
compiling for sm_80 and sm_90 (tests/test_scan_triton.py does both). Speed is not measured.

Shapes: B graphs, T tokens, E channels, N numbers of state a channel. Read selective_scan_triton last.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

CHUNK = 8  # time steps in a chunk. More: fewer states are kept in memory, but more must fit in registers
TILE = 256  # numbers of state in a program. Its 32 threads hold 8 each, and 8 × CHUNK of them in the backward pass
WARPS = 1  # 32 threads a program: sums over E and N then pass between threads directly, not through shared memory


def block_sizes(E, N):
    """(BLOCK_E, BLOCK_N): the channels and numbers of state in a program's tile. Triton wants powers of two."""
    BLOCK_N = triton.next_power_of_2(N)
    return max(1, min(triton.next_power_of_2(E), TILE // BLOCK_N)), BLOCK_N


# ---------------------------------------------------------------------------------------------------------
# The kernels. Each is the program for graph b = program_id(0) and the BLOCK_E channels of block program_id(1).
#
# All tensors are contiguous. A tile holds the channels e down and the state's numbers n across. What lies past the
# edge of a tensor (E and N need not fill the tile, nor T the last chunk) is read as 0 and never written; zeros are
# harmless, as dt = 0 makes a step that does nothing: exp(0) h + 0. Rows are counted in 64 bits, for a tensor may hold
# more than 2^31 numbers.


@triton.jit
def load(ptr, row, width, i, inside, dtype: tl.constexpr):
    """Elements i of a row of a matrix with rows of this width; 0 past its end and where not inside."""
    return tl.load(ptr + row * width + i, mask=(i < width) & inside, other=0.0).to(dtype)


@triton.jit
def forward_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, initial_ptr,  # read
    y_ptr, last_ptr, borders_ptr,  # written
    T, E, N, KEEP: tl.constexpr, CHUNK: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    tile = e[:, None] * N + n[None, :]  # where the tile lies in a matrix (E, N)
    in_tile = (e < E)[:, None] & (n < N)[None, :]

    A = tl.load(A_ptr + tile, mask=in_tile, other=0.0)  # in the dtype of the state, float32 or float64
    D = tl.load(D_ptr + e, mask=e < E, other=0.0)
    h = tl.load(initial_ptr + b * E * N + tile, mask=in_tile, other=0.0)
    for t in range(T):
        if KEEP:
            if t % CHUNK == 0:
                border = b * tl.cdiv(T, CHUNK) + t // CHUNK
                tl.store(borders_ptr + border * E * N + tile, h, mask=in_tile)
        row = b * T + t
        x = load(x_ptr, row, E, e, t < T, A.dtype)
        dt = load(dt_ptr, row, E, e, t < T, A.dtype)
        B = load(B_ptr, row, N, n, t < T, A.dtype)
        C = load(C_ptr, row, N, n, t < T, A.dtype)
        h = tl.exp(dt[:, None] * A) * h + (dt * x)[:, None] * B[None, :]
        tl.store(y_ptr + row * E + e, tl.sum(h * C[None, :], axis=1) + D * x, mask=e < E)
    tl.store(last_ptr + b * E * N + tile, h, mask=in_tile)


@triton.jit
def backward_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, borders_ptr, dy_ptr, dlast_ptr,  # read
    dx_ptr, ddt_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, dinitial_ptr,  # written
    T, E, N, CHUNK: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    tile = e[:, None] * N + n[None, :]
    in_tile = (e < E)[:, None] & (n < N)[None, :]
    graphs_before = tl.program_id(1) * tl.num_programs(0)  # dB and dC have a part from each block of channels

    A = tl.load(A_ptr + tile, mask=in_tile, other=0.0)
    D = tl.load(D_ptr + e, mask=e < E, other=0.0)
    g = tl.load(dlast_ptr + b * E * N + tile, mask=in_tile, other=0.0)
    dA = tl.zeros([BLOCK_E, BLOCK_N], A.dtype)
    dD = tl.zeros([BLOCK_E], A.dtype)
    chunks = tl.cdiv(T, CHUNK)
    for done in range(chunks):
        chunk = chunks - 1 - done

        # Forward once more: before[s] is the state before step s of the chunk. static_range is unrolled by the
        # compiler, so that s is a number known to it and each state has registers of its own.
        h = tl.load(borders_ptr + (b * chunks + chunk) * E * N + tile, mask=in_tile, other=0.0)
        before = (h,)
        for s in tl.static_range(CHUNK - 1):
            t = chunk * CHUNK + s
            x = load(x_ptr, b * T + t, E, e, t < T, A.dtype)
            dt = load(dt_ptr, b * T + t, E, e, t < T, A.dtype)
            B = load(B_ptr, b * T + t, N, n, t < T, A.dtype)
            h = tl.exp(dt[:, None] * A) * h + (dt * x)[:, None] * B[None, :]
            before = before + (h,)

        # Backward. The loss sees h_t through y_t = C_t · h_t + D x_t and through h_{t+1} = a_{t+1} h_t + …, with
        # a_t = exp(dt_t A). So its gradient g_t with respect to h_t obeys a recurrence that runs from the end:
        #
        #     g_t = C_t dy_t + a_{t+1} g_{t+1}            after the last step: the gradient of the last state
        #
        # and with u_t = dt_t x_t the step is h_t = exp(dt_t A) h_{t-1} + u_t B_t, which gives all the others:
        #
        #     dC_t = sum_E dy_t h_t      dB_t = sum_E g_t u_t      du_t = sum_N g_t B_t      dD = sum_{B,T} dy_t x_t
        #     e_t = g_t a_t h_{t-1}, the gradient of the exponent dt_t A, as exp is its own derivative
        #     dx_t = du_t dt_t + D dy_t      ddt_t = du_t x_t + sum_N e_t A      dA = sum_{B,T} e_t dt_t
        #
        # Steps past T have dt = dy = 0: they hand g on as it is, and add nothing.
        for back in tl.static_range(CHUNK):
            t = chunk * CHUNK + CHUNK - 1 - back
            row = b * T + t
            x = load(x_ptr, row, E, e, t < T, A.dtype)
            dt = load(dt_ptr, row, E, e, t < T, A.dtype)
            dy = load(dy_ptr, row, E, e, t < T, A.dtype)
            B = load(B_ptr, row, N, n, t < T, A.dtype)
            C = load(C_ptr, row, N, n, t < T, A.dtype)
            a = tl.exp(dt[:, None] * A)
            ah = a * before[CHUNK - 1 - back]
            h = ah + (dt * x)[:, None] * B[None, :]
            g = g + dy[:, None] * C[None, :]
            exponent = g * ah  # e_t
            du = tl.sum(g * B[None, :], axis=1)
            ddt = du * x + tl.sum(exponent * A, axis=1)
            tl.store(dx_ptr + row * E + e, du * dt + D * dy, mask=(e < E) & (t < T))
            tl.store(ddt_ptr + row * E + e, ddt, mask=(e < E) & (t < T))
            dB = tl.sum(g * (dt * x)[:, None], axis=0)
            dC = tl.sum(h * dy[:, None], axis=0)
            part = (graphs_before * T + row) * N + n  # in (blocks of channels, B, T, N)
            tl.store(dB_ptr + part, dB, mask=(n < N) & (t < T))
            tl.store(dC_ptr + part, dC, mask=(n < N) & (t < T))
            dA += exponent * dt[:, None]
            dD += dy * x
            g = a * g  # what the step before receives
    tl.store(dA_ptr + b * E * N + tile, dA, mask=in_tile)  # in (B, E, N)
    tl.store(dD_ptr + b * E + e, dD, mask=e < E)
    tl.store(dinitial_ptr + b * E * N + tile, g, mask=in_tile)
