"""scan_triton.py: the fused kernels compute what the reference scan does, write every element, and compile for a GPU.

Whether Triton compiles or interprets is settled when it is imported, which PyTorch may do anywhere in a test run. So
the checks of the kernels, the functions below named check_…, run in a process of their own: in Triton's interpreter
on the CPU, and on the GPU where there is one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="the fused scan needs triton (requirements-dev.txt)")

import scan_triton  # noqa: E402
from model_mamba import Mamba, MambaConfig, selective_scan  # noqa: E402
from test_mamba import NAMES, scan_inputs  # noqa: E402

DEVICE = "cpu" if scan_triton.INTERPRETED else "cuda"


def run(functions, interpret, cache):
    """Run the functions of this file that have such names, in a process of their own; return what they print."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache)} | ({"TRITON_INTERPRET": "1"} if interpret else {})
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-s", "-p", "no:cacheprovider"]
    command += ["-o", f"python_functions={functions}"]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parent.parent)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.mark.parametrize("where", ["interpreter", "gpu"])
def test_kernels(where, tmp_path):
    if where == "gpu" and not torch.cuda.is_available():
        pytest.skip("there is no GPU: only Triton's interpreter has run the kernels")
    output = run("check_*", where == "interpreter", tmp_path)
    assert "passed" in output and "skipped" not in output, output


def test_kernels_compile_without_spills(tmp_path):
    output = run("compile_*", False, tmp_path)
    usage = [line for line in output.splitlines() if "registers" in line]
    print(*usage, sep="\n")
    assert len(usage) == 4, output


def test_a_cpu_is_told_to_use_another_scan(monkeypatch):
    monkeypatch.setattr(scan_triton, "INTERPRETED", False)
    with pytest.raises(ValueError, match="^scan 'triton' runs on a GPU, but x is on cpu; choose another, as in --scan"):
        selective_scan(*scan_inputs(2, 3, 4, 5), method="triton")


def test_a_graph_too_large_for_32_bits_is_refused(monkeypatch):
    monkeypatch.setattr(scan_triton, "INTERPRETED", True)  # it is refused before anything runs
    one = torch.zeros(1)
    x, A = one.expand(1, 2**21, 2**10), one.expand(2**10, 16)
    with pytest.raises(ValueError, match="^scan 'triton' takes less than 2.31 numbers a graph, but x is"):
        scan_triton.selective_scan_triton(x, x, A, one, one, one, one)


# ---------------------------------------------------------------------------------------------------------
# The numbers


def in_a_room_of_nan(shape, like):
    """Memory of that shape, NaN throughout and for 64 elements before and behind. Returns: all of it, the middle."""
    count = torch.Size(shape).numel()
    room = torch.full((count + 128,), torch.nan, dtype=like.dtype, device=like.device)
    return room, room[64 : 64 + count].view(shape)


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch):
    """All memory that is asked for without a value holds NaN, and nothing may be written around it."""
    rooms = []

    def poison(name, where, shape_of):
        original = getattr(where, name)

        def empty(like, *shape, **options):
            if options:  # another file's
                return original(like, *shape, **options)
            room, middle = in_a_room_of_nan(shape_of(like, shape), like)
            rooms.append(room)
            return middle

        monkeypatch.setattr(where, name, empty)

    poison("new_empty", torch.Tensor, lambda like, shape: shape[0] if isinstance(shape[0], tuple) else shape)
    poison("empty_like", torch, lambda like, shape: like.shape)
    yield
    for room in rooms:
        assert room[:64].isnan().all() and room[-64:].isnan().all()


def random_inputs(*sizes, dtype=torch.float64, seed):
    """Inputs of the scan, each between NaN, so that reading past an edge shows."""
    inputs = []
    for v in scan_inputs(*sizes, dtype=dtype, seed=seed):
        inputs.append(in_a_room_of_nan(v.shape, v.detach().to(DEVICE))[1].copy_(v.detach()).requires_grad_())
    return inputs


def results(method, inputs, of="both"):
    """y, last state and the seven gradients of a loss with random weights on y, on the last state, or on both."""
    y, state = selective_scan(*inputs, return_state=True, method=method)
    generator = torch.Generator().manual_seed(len(of))
    to_y, to_state = (torch.randn(v.shape, generator=generator).to(v) for v in (y, state))
    losses = {"y": (y * to_y).sum(), "state": (state * to_state).sum()}
    loss = losses["y"] + losses["state"] if of == "both" else losses[of]
    return [y, state, *torch.autograd.grad(loss, inputs, materialize_grads=True)]


def assert_equal(fused, exact, tolerance):
    for name, a, b in zip(("y", "state", *NAMES), fused, exact, strict=True):
        assert a.shape == b.shape and a.isfinite().all(), name
        assert (a.double() - b).abs().max() <= tolerance * max(1, b.abs().max()), name


SIZES = {  # B, T, E, N; the tile
    "one of each": ((1, 1, 1, 1), 256),
    "one step": ((2, 1, 3, 2), 256),
    "a whole chunk, blocks of 2 + 2 + 1 channels": ((2, 8, 5, 3), 8),
    "chunks of 8 + 1 steps": ((1, 9, 3, 5), 16),
    "whole blocks, part of a chunk": ((3, 7, 4, 4), 8),
    "more state than the tile": ((1, 4, 2, 5), 4),
    "three chunks": ((1, 19, 6, 16), 256),
}


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("sizes, tile", SIZES.values(), ids=SIZES)
def check_equals_reference(sizes, tile, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(scan_triton, "TILE", tile)
    inputs = random_inputs(*sizes, dtype=dtype, seed=sum(sizes))
    fused = results("triton", inputs)
    assert all(v.dtype == dtype for v in fused)
    assert_equal(fused, results("reference", [v.detach().double().requires_grad_() for v in inputs]), tolerance)


@pytest.mark.parametrize("of", ["y", "state"])
def check_gradient_through_one_output(of):
    inputs = random_inputs(2, 10, 3, 2, seed=11)
    assert_equal(results("triton", inputs, of), results("reference", inputs, of), 1e-12)


def check_without_gradient_or_initial_state():
    inputs = random_inputs(2, 9, 3, 4, seed=12)[:6]
    with torch.no_grad():
        y = selective_scan(*inputs, method="triton")
    torch.testing.assert_close(y, selective_scan(*inputs, method="reference"), rtol=1e-12, atol=1e-12)


def check_inputs_in_any_order_of_memory():
    inputs = random_inputs(2, 9, 3, 4, seed=13)
    turned = [v.detach().mT.contiguous().mT.requires_grad_() if v.ndim > 1 else v for v in inputs]
    assert not any(v.is_contiguous() for v in turned if v.ndim > 1)
    assert_equal(results("triton", turned), results("reference", inputs), 1e-12)
    y = selective_scan(*turned, method="triton")
    (dx,) = torch.autograd.grad(y.mT.sum(dim=1).sum(), turned[:1])  # the gradient of y is one number, stretched
    (exact,) = torch.autograd.grad(selective_scan(*inputs, method="reference").sum(), inputs[:1])
    torch.testing.assert_close(dx, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dt_dtype", [torch.bfloat16, torch.float32])
def check_bfloat16_inputs_keep_a_float32_state(dt_dtype):
    inputs = [v.detach().to(torch.bfloat16) for v in random_inputs(2, 20, 3, 4, seed=14)]
    for i in (2, 5, 6):  # A, D and the state
        inputs[i] = inputs[i].float()
    inputs[1] = inputs[1].to(dt_dtype)
    inputs = [v.requires_grad_() for v in inputs]
    exact = results("reference", [v.detach().double().requires_grad_() for v in inputs])
    fused = results("triton", inputs)
    assert [v.dtype for v in fused] == [torch.bfloat16, torch.float32, *(v.dtype for v in inputs)]
    assert (fused[1] - exact[1]).abs().max() < 1e-5 * exact[1].abs().max()
    assert_equal(fused, exact, 1e-2)


@pytest.mark.parametrize("dt", [0.0, 1e-30, 30.0, 1e8])
def check_extreme_dt_gives_no_nan(dt):
    inputs = random_inputs(1, 9, 2, 4, dtype=torch.float32, seed=15)
    with torch.no_grad():
        inputs[0].mul_(1e-10 if dt > 1e3 else 1)
        inputs[1].fill_(dt)
    fused, exact = results("triton", inputs), results("reference", inputs)
    assert all(v.isfinite().all() for v in fused)
    for a, b in zip(fused[:2], exact[:2]):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def check_twice_is_the_same_bits(monkeypatch):
    monkeypatch.setattr(scan_triton, "TILE", 8)
    inputs = random_inputs(2, 3, 5, 3, dtype=torch.float32, seed=16)
    assert all(torch.equal(a, b) for a, b in zip(results("triton", inputs), results("triton", inputs)))


def check_the_model_has_the_same_logits_and_gradients():
    tokens, outputs = torch.arange(12, device=DEVICE).view(2, 6) % 7, {}
    for method in ("triton", "fast"):
        torch.manual_seed(1)
        config = MambaConfig(vocab_size=7, n_layer=2, n_embd=6, d_state=3, scan=method)
        model = Mamba(config).double().to(DEVICE)
        logits = model(tokens, num_outputs=3)
        logits.logsumexp(dim=2).sum().backward()
        outputs[method] = [logits, *(p.grad for p in model.parameters())]
    for a, b in zip(outputs["triton"], outputs["fast"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def check_decoding_goes_on_from_the_state():
    inputs = random_inputs(2, 10, 3, 4, seed=17)
    whole, last = selective_scan(*inputs, return_state=True, method="triton")
    x, dt, A, B, C, D, state = inputs
    for t in (slice(0, 3), slice(3, 4), slice(4, 10)):
        args = x[:, t], dt[:, t], A, B[:, t], C[:, t], D, state
        y, state = selective_scan(*args, return_state=True, method="triton")
        torch.testing.assert_close(y, whole[:, t], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------
# The compiler, which needs no GPU


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["forward_kernel", "backward_kernel"])
def compile_for_a_gpu(name, capability, tmp_path):
    """For float32, E = 128, N = 16 and aligned tensors: registers a thread, and the stack that spilling would use."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, (BLOCK_E, BLOCK_N) = getattr(scan_triton, name), scan_triton.block_sizes(E=128, N=16)
    sizes = {"KEEP": True, "CHUNK": scan_triton.CHUNK, "BLOCK_E": BLOCK_E, "BLOCK_N": BLOCK_N}
    sizes = {arg: value for arg, value in sizes.items() if arg in kernel.arg_names}
    signature = {arg: "*fp32" if arg.endswith("_ptr") else "i32" for arg in kernel.arg_names}
    signature |= {arg: "constexpr" for arg in sizes}
    # As at a launch, Triton is told which arguments are multiples of 16: tensors' addresses, E and N, but not T.
    aligned = {(i,): [["tt.divisibility", 16]] for i, arg in enumerate(signature) if arg not in sizes and arg != "T"}
    target, options = GPUTarget("cuda", capability, 32), {"num_warps": scan_triton.WARPS}
    binary = triton.compile(ASTSource(kernel, signature, sizes, aligned), target=target, options=options).asm["cubin"]

    (tmp_path / "kernel.cubin").write_bytes(binary)
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    command = [cuobjdump, "-res-usage", tmp_path / "kernel.cubin"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = dict(pair.split(":") for pair in answer.split() if pair.count(":") == 1 and pair[-1].isdigit())
    registers, stack, local = (int(usage[name]) for name in ("REG", "STACK", "LOCAL"))
    print(f"\n{name} sm_{capability}: {registers} registers a thread, {stack + local} bytes of spills")
    assert stack == local == 0
