"""What a GPU must show: that the kernels are right, how fast they are, and what both models reach.

    bash results/gpu.sh             on a machine with one GPU (PyTorch 2.9 or later; Triton)
    bash results/gpu.sh --quick     the same steps on a CPU, with Triton's interpreter

It leaves one JSON file, a line for each measurement as it comes, and one log. table.py puts the
numbers into results/README.md, with the name of the card. A part that fails leaves a line that says
so, and the next one begins; none begins later than seven minutes after the start. The times of
--quick mean nothing, and table.py refuses them.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
QUICK = "--quick" in sys.argv
if QUICK:
    os.environ["TRITON_INTERPRET"] = "1"  # settled when Triton is imported

import torch  # noqa: E402

from model_mamba import selective_scan  # noqa: E402
from plumbing import flags  # noqa: E402
from plumbing.run_folder import write_whole  # noqa: E402
from results.bench import copy_bandwidth, finish  # noqa: E402

DEVICE = "cpu" if QUICK else "cuda"
SCANS = [(2, 5, 8)] if QUICK else [(128, 36, 256), (16, 512, 1536), (8, 4096, 1536)]  # (B, T, E)
RAGGED = [(3, 7, 5), (1, 1, 3), (2, 17, 33)]  # sizes that fill no tile and no chunk
N = 16
LAST_START = 7 * 60  # seconds
rows = []


def keep(path, part, **numbers):
    """Add a measurement to the file at once, so that nothing is lost when time is over."""
    rows.append({"part": part, **numbers})
    print(json.dumps(rows[-1]), flush=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def milliseconds(call, runs=10):
    """The median time of a call, after two to warm up. The GPU is waited for."""
    times = []
    for _ in range(runs + 2):
        finish(None)
        began = time.perf_counter()
        finish(call())
        times.append(1000 * (time.perf_counter() - began))
    return sorted(times[2:])[runs // 2]


def scan_inputs(batch, T, E, dtype=torch.float32):
    """Random x, dt, A, B, C, D for the scan, with gradients; A and D stay float32, as in a model."""
    generator = torch.Generator().manual_seed(1)
    shapes = (batch, T, E), (batch, T, E), (E, N), (batch, T, N), (batch, T, N), (E,)
    x, dt, A, B, C, D = (torch.rand(shape, generator=generator) for shape in shapes)
    inputs = [x.to(dtype), dt.to(dtype), -A, B.to(dtype), C.to(dtype), D]
    return [v.to(DEVICE).requires_grad_() for v in inputs]


def largest_error(method, inputs):
    """The scan's output and gradients beside those of the reference in float64: largest relative error."""
    def results(method, values):
        y = selective_scan(*values, method=method)
        return [y, *torch.autograd.grad(y.double().sin().sum(), values)]

    exact = [v.detach().double().requires_grad_() for v in inputs]
    pairs = zip(results(method, inputs), results("reference", exact))
    return max(((a.double() - b).norm() / b.norm().clamp(min=1e-12)).item() for a, b in pairs)


def check_tests(path):
    """The tests that concern a GPU, run on it."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    command += ["tests/test_scan_triton.py", "-k", "refused or told" if QUICK else "gpu"]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=120)
    keep(path, "tests", passed=done.returncode == 0, said=done.stdout.strip().splitlines()[-1])
    if done.returncode:
        print(done.stdout[-5000:])


def check_scan(path):
    """The Triton scan beside the reference, in three precisions of its inputs."""
    for dtype in (torch.float32, torch.bfloat16):
        for sizes in RAGGED + SCANS[:1]:
            errors = {m: largest_error(m, scan_inputs(*sizes, dtype)) for m in ("triton", "fast")}
            keep(path, "scan error", dtype=str(dtype)[6:], sizes=sizes, **errors)


def time_scan(path):
    """The time of the scan, forward and backward, and its share of a copy's bandwidth."""
    bandwidth = copy_bandwidth(2**20 if QUICK else 2**28, DEVICE)
    for sizes in SCANS:
        inputs = scan_inputs(*sizes)
        methods = {m: lambda m=m: selective_scan(*inputs, method=m) for m in ("triton", "fast")}
        if importlib.util.find_spec("mamba_ssm"):
            from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

            # It takes (B, E, T) for our (B, T, E), and B and C accordingly.
            turn = lambda v: v if v.ndim < 3 else v.detach().mT.contiguous().requires_grad_()
            turned = [turn(v) for v in inputs]
            methods["mamba_ssm"] = lambda: selective_scan_fn(*turned)
        moved = 16 * sizes[0] * sizes[1] * sizes[2] * 4  # as counted in scan_triton
        for name, scan in methods.items():
            forward = milliseconds(scan)
            both = milliseconds(lambda: scan().sum().backward())
            share = moved / (both / 1000) / bandwidth
            keep(path, "scan time", method=name, sizes=sizes, forward_ms=forward, both_ms=both,
                 bytes=moved, bandwidth=bandwidth, share_of_bandwidth=share)


def train(path, name, *words, limit):
    """A run of train.py in a process of its own: graphs a second, its result and its memory."""
    tiny = "--steps 4 --eval_every 2 --batch_size 8 --n_test 40 --n_layer 2 --n_embd 16 --n_head 2".split()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", "--device", DEVICE, "--out_dir", folder, *words]
        began = time.perf_counter()
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                command + (tiny if QUICK else []), cwd=HOME, capture_output=True, text=True, timeout=limit
            )
            if done.returncode:
                return keep(path, "run", name=name, fault=done.stderr.strip()[-300:])
        if not Path(folder, "log.jsonl").exists():
            return keep(path, "run", name=name, fault=f"no evaluation within {limit} s")
        log = [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]
        config = json.loads(Path(folder, "config.json").read_text())
    if len(log) < 2:
        return keep(path, "run", name=name, fault=f"no second evaluation within {limit} s")
    length = 3 * config["deg"] * (config["path_len"] - 1) + 3 + config["path_len"] - 1
    speed = sorted(record["tokens_per_second"] for record in log[1:])[len(log[1:]) // 2] / length
    keep(path, "run", name=name, graphs_per_second=round(speed), steps=log[-1]["step"],
         accuracy=log[-1]["accuracy"], difficult=log[-1]["difficult"],
         seconds=round(time.perf_counter() - began, 1), batch_size=config["batch_size"])


def default_runs(*words):
    """Both models' default runs with further flags, as parts: functions of the file's path."""
    runs = [("--model", model, "--teacherless", *words) for model in ("gpt", "mamba")]
    limit = 90 if "--compile" in words else 60  # on an H100, compiling took more than 40 s
    return [lambda path, run=run: train(path, " ".join(run), *run, limit=limit) for run in runs]


def memory(path):
    """The most memory that one step of each default model takes on the GPU, in MB."""
    for model in ("gpt", "mamba"):
        program = (
            "import sys, torch, train; from plumbing import flags;"
            f"s = flags.settle(dict(model='{model}', device='{DEVICE}'))[0];"
            "m = train.make_model(s).to(s.device); empty = torch.empty(0, dtype=torch.int64);"
            "p, q = train.batch_of(0, s, None, empty);"
            "x, y = train.data.layout('next', p, q, s.num_nodes);"
            "train.add_gradients(m, x.to(s.device), y.to(s.device));"
            "print(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)"
        )
        done = subprocess.run([sys.executable, "-c", program], cwd=HOME, capture_output=True, text=True)
        if done.returncode:
            keep(path, "memory", model=model, fault=done.stderr.strip()[-300:])
        else:
            keep(path, "memory", model=model, megabytes=int(done.stdout) / 1e6)


def paper_setting(path):
    """The paper's own setting for half a minute, and how long its 500 epochs would take."""
    paper = "--n_layer 12 --n_embd 384 --n_head 6 --batch_size 256 --num_nodes 50 --optimizer adamw"
    paper += " --lr 5e-4 --n_train 200000 --causal --no_canon --no_mimetic --steps 100000"
    train(path, "the paper's setting", *paper.split(), limit=35)
    speed = rows[-1].get("graphs_per_second")
    if speed:
        keep(path, "paper", hours_for_500_epochs=500 * 200_000 / speed / 3600)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=HOME / "results" / "gpu.json", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="on a CPU, with tiny models")
    given = parser.parse_args()
    path = given.out
    if not QUICK and not torch.cuda.is_available():
        raise ValueError("there is no GPU here; --quick goes through the same steps on a CPU")
    if importlib.util.find_spec("triton") is None:
        raise ValueError("Triton is not installed; requirements-dev.txt has its release")
    began = time.perf_counter()
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: --quick"
    import triton

    keep(path, "machine", card=card, torch=torch.__version__, triton=triton.__version__)
    parts = [check_scan, time_scan, memory, *default_runs()]
    if not QUICK:
        parts += default_runs("--compile") + default_runs("--dtype", "bfloat16")
    parts += [paper_setting, check_tests]
    if not QUICK:
        parts += default_runs("--dtype", "bfloat16", "--compile")
    for part in parts:
        if time.perf_counter() - began > LAST_START:
            keep(path, "left out", reason="seven minutes are over")
            break
        try:
            part(path)
        except Exception as fault:
            keep(path, "fault", fault=f"{part.__name__}: {type(fault).__name__}: {fault}"[:300])
    keep(path, "end", seconds=round(time.perf_counter() - began))


if __name__ == "__main__":
    with flags.one_sentence_for_faults(program="gpu.py"):
        main()
