"""Ctrl-C, and several processes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from helpers import HOME, TINY, assert_same_run, lines, refusal, run
from plumbing import processes


def test_ctrl_c_leaves_a_checkpoint_between_evaluations_and_the_run_goes_on_from_it(tmp_path):
    common = ["--steps", "300", "--eval_every", "100"]
    run(*common, "--out_dir", tmp_path / "whole")
    process = subprocess.Popen(
        [sys.executable, HOME / "train.py", *TINY, *common, "--out_dir", tmp_path / "broken"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "broken" / "ckpt.pt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Go on with: python train.py --resume" in errors and "Traceback" not in errors
    step = torch.load(tmp_path / "broken" / "ckpt.pt", weights_only=True)["step"]
    assert 0 < step < 300
    run("--resume", tmp_path / "broken", tiny=[])
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_last_checkpoint(tmp_path, capsys, monkeypatch):
    def press(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train, "add_gradients", press)
    with pytest.raises(SystemExit) as end:
        run("--steps", 2, "--out_dir", tmp_path / "r")
    assert "stopped at once" in str(end.value.code)  # sys.exit prints this sentence, and the exit status is 1
    assert torch.load(tmp_path / "r" / "ckpt.pt", weights_only=True)["step"] == 0


def start_two(*flags):
    """Start train.py in two processes, as one would in a shell."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", HOME / "train.py"]
    return subprocess.Popen(list(map(str, [sys.executable, *words, *flags])), stderr=subprocess.PIPE, text=True)


def test_two_processes_take_the_steps_of_one(tmp_path):
    common = [*TINY, "--multi", "--n_future", 2, "--steps", 20, "--eval_every", 1]
    run(*common, "--out_dir", tmp_path / "one", tiny=[])
    two = start_two(*common, "--out_dir", tmp_path / "two")
    errors = two.communicate(timeout=120)[1]
    assert two.returncode == 0, errors
    assert sorted(os.listdir(tmp_path / "two")) == ["ckpt.pt", "config.json", "log.jsonl"]
    for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert a["graphs"] == b["graphs"] and (a["step"] == 0 or a["loss"] == pytest.approx(b["loss"], abs=1e-5))
        assert a["position_accuracy"] == pytest.approx(b["position_accuracy"], abs=0.021)  # one graph of 50


def test_each_process_has_graphs_of_its_own(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(train, "add_gradients", lambda model, inputs, targets: seen.append(inputs) or 1.0)
    run("--steps", 1, "--out_dir", tmp_path / "whole")
    for rank in range(2):
        monkeypatch.setattr(processes, "this_process", lambda: (rank, 2))
        with contextlib.suppress(SystemExit):
            run("--steps", 1, "--out_dir", tmp_path / str(rank))
    whole, *parts = ({tuple(row) for row in inputs.tolist()} for inputs in seen)
    assert parts[0] | parts[1] == whole and not parts[0] & parts[1] and len(parts[0]) == len(parts[1]) == 4


def test_what_cannot_be_shared_out_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "--batch_size 8 and --n_test 50 cannot be shared out over 3 processes" in refusal(capsys)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "MASTER_ADDR" in refusal(capsys) or "RANK" in refusal(capsys)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="a process's children are listed in /proc, on Linux")
def test_a_process_that_dies_ends_the_run_and_ctrl_c_leaves_a_checkpoint(tmp_path):
    common = [*TINY, "--steps", 100_000, "--eval_every", 100_000]
    for end in ("kill", "ctrl-c"):
        two = start_two(*common, "--out_dir", tmp_path / end)
        while not (tmp_path / end / "ckpt.pt").exists():
            assert two.poll() is None, two.stderr.read()
            time.sleep(0.05)
        time.sleep(1)
        children = Path(f"/proc/{two.pid}/task/{two.pid}/children").read_text().split()
        assert len(children) == 2
        os.kill(*((int(children[1]), signal.SIGKILL) if end == "kill" else (two.pid, signal.SIGINT)))
        assert two.wait(timeout=90) != 0
        assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert torch.load(tmp_path / "kill" / "ckpt.pt", weights_only=True)["step"] == 0
    assert torch.load(tmp_path / "ctrl-c" / "ckpt.pt", weights_only=True)["step"] > 0
    run("--resume", tmp_path / "ctrl-c", "--eval_only", tiny=[])  # one process may go on with what two began
