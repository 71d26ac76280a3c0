"""The command line, the loop and its files: what a user is promised, on models that train in a blink."""

import contextlib
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import data
import train

HOME = Path(train.__file__).parent
TINY = "--n_layer 2 --n_head 2 --n_embd 16 --path_len 4 --num_nodes 12 --n_test 50 --batch_size 8 --threads 1 --device cpu"
TINY = TINY.split()


def run(*flags, tiny=TINY):
    train.main([*tiny, *map(str, flags)])


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def without_times(records):
    return [{k: v for k, v in r.items() if k not in ("seconds", "tokens_per_second")} for r in records]


def weights(folder):
    return torch.load(Path(folder) / "ckpt.pt", weights_only=True)["model"]


def assert_same_run(a, b):
    assert without_times(lines(a)) == without_times(lines(b))
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------------------------------------------------
# What a run leaves


def test_a_run_leaves_its_log_its_settings_and_its_checkpoint(tmp_path, capsys):
    run("--teacherless", "--steps", 6, "--eval_every", 4, "--out_dir", tmp_path / "r")
    records = lines(tmp_path / "r")
    assert [r["step"] for r in records] == [0, 4, 6] and [r["graphs"] for r in records] == [0, 32, 48]
    keys = "step seconds graphs loss accuracy position_accuracy forced_accuracy difficult chance tokens_per_second"
    assert all(set(keys.split()) <= r.keys() for r in records)
    assert records[-1]["chance"] == 0.5 and len(records[-1]["position_accuracy"]) == 4
    assert records[0]["loss"] is None and math.log(16) / 2 < records[-1]["loss"] < 2 * math.log(16)
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert config["objective"] == "teacherless" and config["seed"] == 1 and "torch" in config["versions"]
    assert sorted(os.listdir(tmp_path / "r")) == ["ckpt.pt", "config.json", "log.jsonl"]  # and no temporary file
    out = capsys.readouterr().out
    assert len(re.findall("^step ", out, re.M)) == 3  # piped: one line an evaluation
    assert "A Transformer of 2 layers saw 48 graphs G(2,4) with the objective 'teacherless'" in out
    assert f"python plot.py {tmp_path / 'r'}" in out


def test_the_same_line_twice_makes_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("--steps", 1), run("--steps", 1), run("--steps", 1, "--reverse")
    name = "gpt_deg_2_path_4_nodes_12_seed_1"
    assert sorted(os.listdir("runs")) == [f"next_{name}", f"next_{name}_2", f"reverse_{name}"]
    assert_same_run(f"runs/next_{name}", f"runs/next_{name}_2")


@pytest.mark.parametrize("flags", [["--reverse"], ["--objective", "reverse"], ["--objective", "next", "--reverse"]])
def test_next_token_prediction_on_reversed_paths_has_one_name(tmp_path, flags):
    run(*flags, "--steps", 1, "--out_dir", tmp_path / "r")
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert (config["objective"], config["reverse"]) == ("reverse", True)


def test_a_run_that_ends_before_its_first_evaluation_leaves_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for fault in (ValueError("published weights do not fit"), KeyboardInterrupt):
        monkeypatch.setattr(train, "evaluate", lambda *_: (_ for _ in ()).throw(fault))
        for flags in ((), ("--out_dir", tmp_path / "r")):
            with pytest.raises(SystemExit):
                run("--steps", 1, *flags)
    assert os.listdir(tmp_path) == ["runs"] and not os.listdir(tmp_path / "runs")


@pytest.mark.parametrize("in_the_way", ["file", "link"])
def test_what_stands_where_a_folder_should_is_named(tmp_path, capsys, monkeypatch, in_the_way):
    monkeypatch.chdir(tmp_path)
    for name in ("runs", "mine"):
        (tmp_path / name).write_text("") if in_the_way == "file" else (tmp_path / name).symlink_to("nowhere")
    for flags, name in ((), "runs"), (("--out_dir", "mine"), "mine"), (("--out_dir", "mine/deeper"), "mine"):
        message = refusal(capsys, "--steps", 1, *flags)
        assert f"the folder {name}" in message and "something that is no folder has this name" in message


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no lock for folders")
def test_a_second_process_on_one_folder_is_told(tmp_path, capsys):
    run("--steps", 2, "--out_dir", tmp_path / "r")
    before = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    waiting = "import checkpoint, sys\nwith checkpoint.hold(sys.argv[1]):\n print('held', flush=True)\n sys.stdin.read()"
    command = [sys.executable, "-c", waiting, str(tmp_path / "r")]
    with subprocess.Popen(command, cwd=HOME, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        message = refusal(capsys, "--resume", tmp_path / "r", "--steps", 4, tiny=[])
        assert "another process is writing to" in message
        assert {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()} == before
        other.kill()  # the lock goes with the process, however it ends
        other.wait()
        run("--resume", tmp_path / "r", "--steps", 4, tiny=[])


def test_commands_that_are_printed_can_be_pasted(tmp_path, capsys):
    run("--steps", 1, "--out_dir", tmp_path / "my run $HOME's")
    command = re.search("to see it: (.*)", capsys.readouterr().out)[1]
    if os.name == "posix":
        assert shlex.split(command) == ["python", "plot.py", str(tmp_path / "my run $HOME's")]


@pytest.mark.parametrize("encoding", ["ascii", "cp437"])
def test_a_terminal_that_lacks_a_letter_gets_its_number(tmp_path, encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, HOME / "train.py", *TINY, "--steps", "1", "--out_dir", str(tmp_path / "Übung 学 1")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding=encoding)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "\\u5b66 1" in done.stdout and lines(tmp_path / "Übung 学 1")[-1]["step"] == 1


def test_a_narrow_terminal_gets_a_line_that_fits(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    record = {"step": 0, "accuracy": 0.0, "difficult": 0.0, "chance": 0.5}
    train.show_progress(record, 3, 1.0, 2.0, train.DEFAULTS)
    shown = capsys.readouterr().out
    assert shown.endswith("\r") and len(shown) == 40


def test_memory_that_does_not_suffice_is_one_sentence(capsys, monkeypatch):
    for fault in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: you")):
        monkeypatch.setattr(train, "prepare_graphs", lambda *_: (_ for _ in ()).throw(fault))
        assert "there is not enough memory on cpu; give a smaller --batch_size" in refusal(capsys, "--steps", 1)
    monkeypatch.setattr(train, "prepare_graphs", lambda *_: (_ for _ in ()).throw(RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run("--steps", 1)


def test_another_seed_is_another_run(tmp_path):
    run("--steps", 2, "--out_dir", tmp_path / "a"), run("--steps", 2, "--seed", 2, "--out_dir", tmp_path / "b")
    assert lines(tmp_path / "a")[-1]["loss"] != lines(tmp_path / "b")[-1]["loss"]


def test_help_names_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.isascii()  # every terminal can show it
    for name, default in train.DEFAULTS.items():
        assert f"--{name}" in shown
        other = train.defaults_for("mamba")[name]
        differs = f"(default: {default} for the GPT, {other} for Mamba)"
        assert not default or f"(default: {default})" in shown or differs in shown


# ---------------------------------------------------------------------------------------------------------
# The graphs


def settings(**changes):
    return train.DEFAULTS | dict(path_len=4, num_nodes=12, batch_size=8, n_test=50) | changes


def test_a_batch_depends_on_seed_and_step_alone():
    test, graphs, forbidden = train.prepare_graphs(settings(), {})
    a, b, c = (train.batch_of(step, settings(), graphs, forbidden)[0] for step in (7, 7, 8))
    d, _ = train.batch_of(7, settings(seed=2), graphs, forbidden)
    assert torch.equal(a, b) and not torch.equal(a, c) and not torch.equal(a, d)


def test_a_fixed_set_is_gone_through_once_an_epoch_in_ever_new_order():
    s = settings(n_train=24)
    _, graphs, forbidden = train.prepare_graphs(s, {})
    epochs = []
    for epoch in range(3):
        rows = [train.batch_of(step, s, graphs, forbidden)[0] for step in range(3 * epoch, 3 * epoch + 3)]
        epochs.append([tuple(row) for row in torch.cat(rows).tolist()])
    assert all(sorted(e) == sorted(map(tuple, graphs[0].tolist())) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("n_train", [0, 400])
def test_no_training_graph_is_a_test_graph(n_train):
    s = settings(path_len=3, num_nodes=5, n_test=30, n_train=n_train)  # 60 graphs in all
    test, graphs, forbidden = train.prepare_graphs(s, {})
    edge_sets = lambda prefix: {frozenset(map(tuple, e)) for e in data.split_prefix(prefix)[0].tolist()}
    seen = set()
    for step in range(50):
        seen |= edge_sets(train.batch_of(step, s, graphs, forbidden)[0])
    assert len(seen) > 15 and not seen & edge_sets(test[0])


def write_file(path, prefix, paths):
    with open(path, "w") as file:
        data.write_graphs(file, prefix, paths)
    return path


def test_files_train_and_test_and_share_no_graph(tmp_path, capsys):
    prefix, path = data.sample_graphs(60, 3, 3, 12, torch.Generator().manual_seed(5))
    train_file = write_file(tmp_path / "train.txt", prefix[:40], path[:40])
    test_file = write_file(tmp_path / "test.txt", prefix[30:], path[30:])
    run(
        "--train_file",
        train_file,
        "--test_file",
        test_file,
        "--steps",
        2,
        "--out_dir",
        tmp_path / "r",
        tiny=TINY[:6] + TINY[8:10] + TINY[12:],
    )
    assert f"{train_file}: 10 of its 40 graphs are test graphs, and left out" in capsys.readouterr().out
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert (config["deg"], config["path_len"], config["n_test"]) == (3, 3, 30)
    assert lines(tmp_path / "r")[-1]["chance"] == pytest.approx(1 / 3)
    run("--resume", tmp_path / "r", "--steps", 3, tiny=[])
    assert lines(tmp_path / "r")[-1]["step"] == 3


# ---------------------------------------------------------------------------------------------------------
# The loss


@pytest.mark.parametrize("model", ["gpt", "mamba"])
@pytest.mark.parametrize("objective, n_future", [("next", 1), ("teacherless", 1), ("multi", 3)])
def test_gradients_head_by_head_are_those_of_the_plain_sum(monkeypatch, model, objective, n_future):
    s = settings(model=model, objective=objective, n_future=n_future, n_layer=2, n_embd=16)
    one, other = train.make_model(s).double(), train.make_model(s).double()
    prefix, path = data.sample_graphs(8, 2, 4, 12, torch.Generator().manual_seed(0))
    inputs, targets = data.layout(objective, prefix, path, 12, n_future=n_future)
    monkeypatch.setattr(train, "CACHED", inputs.numel() * 16 / 3)  # in three parts, of 3, 3 and 2 graphs
    loss = train.add_gradients(one, inputs, targets)
    plain = 0
    for k in range(n_future):
        logits = other.head(other.trunk(inputs), k)[:, -4:]
        plain = plain + F.cross_entropy(logits.flatten(0, 1), targets[:, :, k].flatten())
    plain.backward()
    assert loss == pytest.approx(plain.item())
    for (name, p), q in zip(one.named_parameters(), other.parameters()):
        assert torch.allclose(p.grad, q.grad, atol=1e-12), name


def test_only_difficult_trains_on_the_first_step_alone(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "add_gradients", lambda model, inputs, targets: seen.append(targets) or 1.0)
    run("--only_difficult", "--steps", 1, "--out_dir", tmp_path / "a")
    run("--only_difficult", "--reverse", "--steps", 1, "--out_dir", tmp_path / "b")
    forward, backward = (targets[:, :, 0] != data.IGNORE for targets in seen)
    assert forward.all(0).tolist() == [False, True, False, False] == forward.any(0).tolist()
    assert backward.all(0).tolist() == [False, False, True, False] == backward.any(0).tolist()


def test_the_learning_rate_rises_stays_and_falls_to_nothing():
    shares = [train.schedule(step, dict(steps=100, warmup=10, decay=0.3)) for step in range(100)]
    assert shares[0] == pytest.approx(1 / 11) and shares[9] < 1 == shares[10] == shares[69] and shares[72] < 1
    assert 0 < shares[-1] < 0.05
    assert train.schedule(99, dict(steps=100, warmup=10, decay=0)) == 1  # a rate that stays


def test_a_rate_that_never_reaches_its_height_is_said(tmp_path, capsys):
    run("--steps", 20, "--warmup", 100, "--decay", 0.5, "--eval_every", 20, "--out_dir", tmp_path / "a")
    assert "--warmup 100 is long for --steps 20: the learning rate rises to 19% of --lr" in capsys.readouterr().out
    for s in (dict(steps=20, warmup=100, decay=0.5), dict(steps=300, warmup=10, decay=0.8), dict(steps=9, warmup=0, decay=1)):
        assert train.peak_of_schedule(s) == max(train.schedule(step, s) for step in range(s["steps"]))
    run("--steps", 20, "--warmup", 3, "--eval_every", 20, "--out_dir", tmp_path / "b")
    assert "--warmup" not in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------
# Resuming


@pytest.mark.parametrize(
    "flags",
    [
        ["--teacherless"],
        ["--reverse", "--n_train", 40],
        ["--multi", "--n_future", 2, "--optimizer", "adamw"],
        ["--model", "mamba"],
        ["--model", "mamba", "--multi", "--n_train", 40],
        ["--dtype", "bfloat16"],
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_a_resumed_run_is_the_unbroken_run(tmp_path, monkeypatch, flags):
    common = [*flags, "--steps", 9, "--eval_every", 3]
    run(*common, "--out_dir", tmp_path / "whole")
    real_save, calls = train.save_checkpoint, []

    def save_and_die(*arguments):
        real_save(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "save_checkpoint", save_and_die)
        with pytest.raises(SystemExit):
            run(*common, "--out_dir", tmp_path / "broken")
    with open(tmp_path / "broken" / "log.jsonl", "a") as log:
        log.write('{"step": 6, "loss": 1.0}\n{"step": 9, "lo')  # what a kill in the middle of a line leaves
    run("--resume", tmp_path / "broken", tiny=[])
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


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


@pytest.mark.slow
def test_a_run_killed_at_random_moments_can_always_be_resumed(tmp_path):
    common = ["--steps", "1000", "--eval_every", "2"]
    run(*common, "--out_dir", tmp_path / "whole")
    command, kills = [sys.executable, HOME / "train.py"], 0
    process = subprocess.Popen([*command, *TINY, *common, "--out_dir", tmp_path / "broken"], stdout=subprocess.DEVNULL)
    while not (tmp_path / "broken" / "ckpt.pt").exists():
        time.sleep(0.01)
    for wait in torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist():
        time.sleep(0.1 * wait)
        kills += process.poll() is None
        process.kill()
        process.wait()
        before = torch.load(tmp_path / "broken" / "ckpt.pt", weights_only=True)["step"]
        process = subprocess.Popen([*command, "--resume", tmp_path / "broken"], stdout=subprocess.DEVNULL)
        begun = time.time()
        while time.time() - begun < 60 and process.poll() is None:
            if torch.load(tmp_path / "broken" / "ckpt.pt", weights_only=True)["step"] > before:
                break
            time.sleep(0.01)
    assert process.wait(timeout=120) == 0 and kills > 40
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.slow
def test_memory_stays_flat_over_5000_steps(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("memory in use is read from /proc, which only Linux has")
    held, real = [], train.append_line

    def note(*arguments):
        held.append(int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]))  # kB
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "append_line", note)
        run("--multi", "--n_future", 2, "--steps", 5000, "--eval_every", 500, "--out_dir", tmp_path / "r")
    assert len(held) == 11 and max(held[2:]) - held[1] < 20_000  # what one step holds is more than 4 kB


def test_a_loss_that_is_no_number_stops_the_run_and_saves_nothing(tmp_path, capsys, monkeypatch):
    run("--steps", 2, "--out_dir", tmp_path / "r")
    before = (tmp_path / "r" / "ckpt.pt").read_bytes()
    monkeypatch.setattr(train, "add_gradients", lambda *_: math.nan)
    with pytest.raises(SystemExit) as end:
        run("--resume", tmp_path / "r", "--steps", 5, tiny=[])
    message = capsys.readouterr().err
    assert end.value.code == 2 and f"the loss is nan at step 2, with --lr {train.DEFAULTS['lr']}" in message
    # What was on disk is the run's last good state: the same weights, at the same step.
    assert (tmp_path / "r" / "ckpt.pt").exists() and len(before) > 0
    assert torch.load(tmp_path / "r" / "ckpt.pt", weights_only=True)["step"] == 2


def test_a_run_cannot_be_resumed_to_a_step_behind_it(tmp_path, capsys):
    run("--steps", 4, "--out_dir", tmp_path / "r")
    before = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    message = refusal(capsys, "--resume", tmp_path / "r", "--steps", 3, tiny=[])
    assert "--steps is 3, but the run has come to step 4; give that or more" in message
    assert {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()} == before
    run("--resume", tmp_path / "r", "--steps", 4, tiny=[])
    assert [r["step"] for r in lines(tmp_path / "r")] == [0, 4]


def test_evaluating_a_checkpoint_gives_the_logs_numbers(tmp_path, capsys):
    run("--teacherless", "--steps", 3, "--out_dir", tmp_path / "r")
    capsys.readouterr()
    run("--resume", tmp_path / "r", "--eval_only", tiny=[])
    out, logged = capsys.readouterr().out, lines(tmp_path / "r")[-1]
    assert "The checkpoint of step 3 on 50 graphs G(2,4) that it had not seen (difficult: chance is 50.0%)" in out
    measured = printed(out)
    assert f"margin             {logged['margin']:7.3f} nats" in out
    assert {"accuracy", "position_accuracy", "forced_accuracy", "difficult", "wrong_arm", "no_path"} == measured.keys()
    for name, values in measured.items():
        assert values == pytest.approx(logged[name] if isinstance(logged[name], list) else [logged[name]], abs=6e-5)


def printed(out):
    """The measurements that --eval_only prints, {name: list of shares}."""
    rows = [line.split() for line in out.splitlines() if line.endswith("%")]
    return {name: [float(value.rstrip("%")) / 100 for value in values] for name, *values in rows}


def test_a_checkpoint_is_evaluated_in_the_precision_it_was_trained_in(tmp_path, capsys):
    flags = ["--dtype", "bfloat16", "--teacherless", "--lr", 0.02, "--steps", 30, "--n_test", 400]
    run(*flags, "--out_dir", tmp_path / "r", tiny=TINY[:10] + TINY[12:])
    measured = {}
    for dtype in ((), ("--dtype", "bfloat16"), ("--dtype", "float32")):
        capsys.readouterr()
        run("--resume", tmp_path / "r", "--eval_only", *dtype, tiny=[])
        measured[dtype] = printed(capsys.readouterr().out)
    logged = lines(tmp_path / "r")[-1]
    assert measured[()]["position_accuracy"] == pytest.approx(logged["position_accuracy"], abs=6e-5)
    assert measured[()] == measured["--dtype", "bfloat16"] != measured["--dtype", "float32"]


def test_a_checkpoint_is_evaluated_on_other_graphs_and_its_folder_stays_as_it_is(tmp_path, capsys):
    run("--teacherless", "--steps", 3, "--out_dir", tmp_path / "r")
    before = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    file = write_file(tmp_path / "t.txt", *data.sample_graphs(70, 2, 4, 12, torch.Generator().manual_seed(9)))
    for flags, count in [(["--n_test", 400], 400), (["--test_file", file], 70), (["--test_file", file, "--n_test", 30], 30)]:
        capsys.readouterr()
        run("--resume", tmp_path / "r", "--eval_only", "--threads", 1, *flags, tiny=[])
        out = capsys.readouterr().out
        assert f"The checkpoint of step 3 on {count} graphs G(2,4)" in out and (str(file) in out) == (count != 400)
        assert len(printed(out)["position_accuracy"]) == 4
    other = write_file(tmp_path / "o.txt", *data.sample_graphs(70, 3, 3, 12, torch.Generator().manual_seed(9)))
    assert "--deg is 2, but in" in refusal(capsys, "--resume", tmp_path / "r", "--eval_only", "--test_file", other, tiny=[])
    assert {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()} == before


@pytest.mark.parametrize("n_train", [0, 40])
def test_a_checkpoint_is_not_evaluated_on_what_it_was_trained_on(tmp_path, capsys, n_train):
    small = "--n_layer 2 --n_head 2 --n_embd 16 --path_len 3 --num_nodes 5 --n_test 20 --batch_size 8 --threads 1".split()
    run("--steps", 5, "--n_train", n_train, "--out_dir", tmp_path / "r", tiny=small)  # there are 60 graphs in all
    s = train.DEFAULTS | dict(path_len=3, num_nodes=5, n_test=20, batch_size=8, n_train=n_train)
    _, graphs, forbidden = train.prepare_graphs(s, {})
    trained_on = torch.cat([data.graph_keys(train.batch_of(step, s, graphs, forbidden)[0], 5) for step in range(5)])
    others = data.sample_graphs(200, 2, 3, 5, torch.Generator().manual_seed(1))
    old = torch.isin(data.graph_keys(others[0], 5), trained_on)
    file = write_file(tmp_path / "t.txt", *others)
    capsys.readouterr()
    run("--resume", tmp_path / "r", "--eval_only", "--test_file", file, tiny=[])
    out = capsys.readouterr().out
    assert 0 < old.sum() < 200 and f"The run trained on {old.sum()} of the 200 graphs; they are left out" in out
    assert f"on {200 - old.sum()} graphs G(2,3)" in out
    seen = write_file(tmp_path / "seen.txt", others[0][old], others[1][old])
    message = refusal(capsys, "--resume", tmp_path / "r", "--eval_only", "--test_file", seen, tiny=[])
    assert f"the run trained on all of the {old.sum()} graphs" in message


def test_no_more_test_graphs_are_reported_than_the_file_has(tmp_path, capsys):
    file = write_file(tmp_path / "t.txt", *data.sample_graphs(30, 2, 4, 12, torch.Generator().manual_seed(9)))
    run("--test_file", file, "--steps", 1, "--n_test", 5000, "--out_dir", tmp_path / "r", tiny=TINY[:10] + TINY[12:])
    out = capsys.readouterr().out
    assert "has 30 graphs; all of them are taken" in out and "Of 30 graphs" in out
    assert json.loads((tmp_path / "r" / "config.json").read_text())["n_test"] == 30


def test_a_moved_graph_file_is_taken_and_other_graphs_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    graphs = data.sample_graphs(60, 2, 4, 12, torch.Generator().manual_seed(5))
    write_file(tmp_path / "train.txt", graphs[0][:40], graphs[1][:40])
    write_file(tmp_path / "test.txt", graphs[0][40:], graphs[1][40:])
    free = TINY[:6] + TINY[8:10] + TINY[12:]
    common = ["--train_file", "train.txt", "--test_file", "test.txt", "--eval_every", 2]
    run(*common, "--steps", 4, "--out_dir", "whole", tiny=free)
    run(*common, "--steps", 2, "--out_dir", "broken", "--decay", 0.0, "--warmup", 0, tiny=free)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run("--resume", "../broken", "--steps", 3, tiny=[])  # from another folder
    (tmp_path / "train.txt").rename("moved.txt")
    message = refusal(capsys, "--resume", "../broken", "--steps", 4, tiny=[])
    assert "train.txt does not exist; give the file's place by --train_file" in message
    write_file(tmp_path / "train.txt", graphs[0][1:41], graphs[1][1:41])
    before = Path("../broken/log.jsonl").read_bytes()
    message = refusal(capsys, "--resume", "../broken", "--steps", 4, tiny=[])
    assert "train.txt does not hold the graphs with which the run was begun" in message
    assert Path("../broken/log.jsonl").read_bytes() == before
    run("--resume", "../broken", "--steps", 4, "--train_file", "moved.txt", tiny=[])
    assert lines("../broken")[-1]["step"] == 4
    run("--resume", "../broken", "--eval_only", tiny=[])  # which needs no training graphs
    run(*common[4:], "--steps", 1, "--out_dir", "none")
    message = refusal(capsys, "--resume", "none", "--steps", 2, "--train_file", "moved.txt", tiny=[])
    assert "cannot change on --resume: this run has none" in message


# ---------------------------------------------------------------------------------------------------------
# Bad input


def refusal(capsys, *flags, tiny=TINY):
    """Run with flags that cannot hold; return the one sentence on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run(*flags, tiny=tiny)
    out, message = capsys.readouterr()
    assert (
        end.value.code == 2
        and message.startswith("train.py: ")
        and message.count("\n") == 1
        and "Traceback" not in message
    )
    return message


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ("--num_nodes 6", "G(2,4) has 7 nodes, but --num_nodes is 6; give 7 or more"),
        ("--path_len 1", "--path_len is 1"),
        ("--deg 0", "--deg is 0"),
        ("--n_embd 15", "--n_embd 15 cannot be shared out over --n_head 2 heads"),
        ("--n_train 4", "--batch_size 8 is more than the 4 training graphs"),
        ("--n_train -1", "--n_train is -1; give 0 or more"),
        ("--n_test -1", "--n_test is -1; give 1 or more"),
        ("--steps 0", "--steps is 0; give 1 or more"),
        ("--batch_size 0", "--batch_size is 0"),
        ("--eval_every 0", "--eval_every is 0"),
        ("--n_layer -1", "--n_layer is -1"),
        ("--n_head 0", "--n_head is 0"),
        ("--seed -1", "--seed is -1"),
        ("--warmup -1", "--warmup is -1"),
        ("--threads -1", "--threads is -1"),
        ("--lr 0", "--lr is 0.0"),
        ("--lr nan", "--lr is nan"),
        ("--decay -0.1", "--decay is -0.1; give a share from 0 to 1"),
        ("--decay 1.1", "--decay is 1.1"),
        ("--decay nan", "--decay is nan"),
        ("--lr fast", "argument --lr: invalid float value: 'fast'"),
        ("--steps many", "argument --steps: invalid int value: 'many'"),
        ("--model rnn", "argument --model: invalid choice: 'rnn'"),
        ("--objective magic", "argument --objective: invalid choice: 'magic'"),
        ("--teacherless --multi", "teacherless and multi are two objectives"),
        ("--objective next --teacherless", "teacherless and next are two objectives"),
        ("--n_future 2", "--n_future 2 needs --multi"),
        ("--multi --n_future -1", "--n_future is -1"),
        ("--multi --n_future 5", "--n_future 5 is more than the 4 tokens of a path"),
        ("--eval_only", "--eval_only needs --resume"),
        ("--resume nowhere", "ckpt.pt does not exist"),
        ("--train_file nowhere.txt", "nowhere.txt"),
        ("--device cuda:77", "--device cuda:77 is not to be had here; give --device cpu"),
        ("--device meta", "--device meta is not to be had here"),
        ("--seed 18446744073709551616", "--seed is 18446744073709551616; give less than 2^64"),
        ("--steps 3000000000", "--steps is 3000000000; give less than 2^31"),
        ("--num_nodes 99999999999999999999", "--num_nodes is 99999999999999999999; give less than 2^31"),
        ("--multi --only_difficult", "--only_difficult trains on a single token of the path, and --multi on several"),
        ("--multi --reverse --only_difficult", "--only_difficult trains on a single token"),
        ("--test_file .", "--test_file . is a folder"),
        ("--device toaster", "--device toaster is not to be had here"),
        ("--model mamba --scan triton", "--scan triton needs a GPU, but --device is cpu; give --scan fast"),
        ("--dtype float16", "argument --dtype: invalid choice: 'float16'"),
        ("--bogus", "unrecognized arguments: --bogus"),
    ],
)
def test_flags_that_cannot_hold_get_one_sentence(tmp_path, monkeypatch, capsys, flags, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal(capsys, *flags.split())
    assert not os.listdir(tmp_path)  # and nothing is left behind


def test_files_that_do_not_fit_are_refused(tmp_path, capsys):
    good = write_file(tmp_path / "good.txt", *data.sample_graphs(20, 2, 4, 12, torch.Generator().manual_seed(0)))
    other = write_file(tmp_path / "other.txt", *data.sample_graphs(20, 2, 3, 12, torch.Generator().manual_seed(0)))
    (tmp_path / "bad.txt").write_text("1,2|3\n")
    (tmp_path / "empty.txt").write_text("")
    free = ["--threads", "1", "--num_nodes", "12"]
    assert "bad.txt, line 1: '1,2|3' … is not of the form" in refusal(
        capsys, "--test_file", tmp_path / "bad.txt", tiny=free
    )
    assert "empty.txt holds no graph" in refusal(capsys, "--train_file", tmp_path / "empty.txt", tiny=free)
    assert "--path_len is 4, but in" in refusal(capsys, "--train_file", good, "--test_file", other, tiny=free)
    assert "--deg is 3, but in" in refusal(capsys, "--test_file", good, "--deg", 3, tiny=free)
    assert "0 training graphs" in refusal(
        capsys, "--train_file", good, "--test_file", good, "--batch_size", 8, tiny=free
    )
    assert "label" in refusal(capsys, "--test_file", good, "--num_nodes", 7, tiny=free[:2])
    assert "both say what to train on" in refusal(capsys, "--train_file", good, "--n_train", 20, tiny=free)


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path, capsys):
    run("--steps", 1, "--out_dir", tmp_path / "r")
    before = (tmp_path / "r" / "log.jsonl").read_bytes()
    assert "holds a run already" in refusal(capsys, "--steps", 1, "--out_dir", tmp_path / "r")
    assert (tmp_path / "r" / "log.jsonl").read_bytes() == before


def test_what_cannot_change_on_resume_is_refused_by_name(tmp_path, capsys):
    run("--steps", 1, "--out_dir", tmp_path / "r")
    for name, value in dict(deg=3, seed=2, lr=0.5, batch_size=4, model="mamba", objective="reverse", n_embd=32).items():
        message = refusal(capsys, "--resume", tmp_path / "r", f"--{name}", value, tiny=[])
        assert f"--{name} {value} cannot change on --resume" in message and "--steps, --eval_every" in message


class Bomb:
    """A pickle that, if it were executed, would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "executed"))


def members(archive):
    """The files in a zip archive, or None when it is damaged."""
    with contextlib.suppress(Exception), zipfile.ZipFile(io.BytesIO(archive)) as z:
        return {name: z.read(name) for name in z.namelist()}


def test_a_damaged_or_hostile_checkpoint_is_one_sentence_and_stays_as_it_is(tmp_path, capsys):
    run("--steps", 1, "--out_dir", tmp_path / "r")
    path = tmp_path / "r" / "ckpt.pt"
    good, log = path.read_bytes(), (tmp_path / "r" / "log.jsonl").read_bytes()
    damaged = [good[: int(len(good) * share)] for share in (0, 0.01, 0.3, 0.6, 0.9, 0.999)] + [b"\0" * 1000, b"hello"]
    torch.save({"settings": {}, "bomb": Bomb(tmp_path / "bang")}, path)
    damaged.append(path.read_bytes())
    torch.save({"model": {}}, path)
    damaged.append(path.read_bytes())
    torch.save([1, 2], path)
    damaged.append(path.read_bytes())
    places = range(100, len(good) - 100, len(good) // 40)
    flipped = [good[:i] + bytes([good[i] ^ 16]) + good[i + 1 :] for i in places]
    flipped = [content for content in flipped if members(content) != members(good)]  # some fall into the padding
    for content in damaged + flipped:
        path.write_bytes(content)
        assert "is damaged or of another version" in refusal(capsys, "--resume", tmp_path / "r", tiny=[])
        assert path.read_bytes() == content and (tmp_path / "r" / "log.jsonl").read_bytes() == log
    assert not (tmp_path / "bang").exists()


def test_a_full_disk_is_one_sentence_and_the_old_checkpoint_is_whole(tmp_path, capsys, monkeypatch):
    run("--steps", 2, "--out_dir", tmp_path / "r")

    def full(*_):
        raise RuntimeError("unexpected pos 64 vs 0")  # what torch.save says when it cannot write

    monkeypatch.setattr(torch, "save", full)
    message = refusal(capsys, "--resume", tmp_path / "r", "--steps", 4, tiny=[])
    assert "ckpt.pt could not be written" in message and "what was there before is whole" in message
    assert weights(tmp_path / "r")
    assert not list((tmp_path / "r").glob("*.tmp"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of a file")
def test_a_disk_that_fills_while_a_checkpoint_is_written(tmp_path):
    import resource

    run("--steps", 2, "--out_dir", tmp_path / "r")
    before = (tmp_path / "r" / "ckpt.pt").read_bytes()
    room = len(before) // 2
    done = subprocess.run(
        [sys.executable, HOME / "train.py", "--resume", tmp_path / "r", "--steps", "4"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "could not be written" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "r" / "ckpt.pt").read_bytes() == before
    run("--resume", tmp_path / "r", "--steps", 4, tiny=[])  # with room again, it goes on
    assert lines(tmp_path / "r")[-1]["step"] == 4


def test_a_new_checkpoint_takes_the_old_ones_place_whole(tmp_path):
    """It is moved over it: who has the old file open, or a second name for it, still reads the old one."""
    run("--steps", 2, "--out_dir", tmp_path / "r")
    old = (tmp_path / "r" / "ckpt.pt").read_bytes()
    os.link(tmp_path / "r" / "ckpt.pt", tmp_path / "second name")
    run("--resume", tmp_path / "r", "--steps", 4, tiny=[])
    assert (tmp_path / "second name").read_bytes() == old != (tmp_path / "r" / "ckpt.pt").read_bytes()


def test_a_line_of_a_gigabyte_is_refused_without_being_read(tmp_path, capsys):
    with open(tmp_path / "huge.txt", "w") as file:
        file.truncate(10**9)  # a file with a hole: it takes no room on the disk
    began = time.time()
    assert "huge.txt, line 1: " in refusal(capsys, "--train_file", tmp_path / "huge.txt", tiny=[])
    assert time.time() - began < 30


# ---------------------------------------------------------------------------------------------------------
# GPU paths, as far as a CPU can show them


@pytest.mark.slow
def test_compiling_without_a_compiler_is_one_sentence_and_leaves_no_folder(tmp_path):
    environment = os.environ | {"CXX": str(tmp_path / "no-such-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "c")}
    command = [sys.executable, HOME / "train.py", *TINY, "--steps", "1", "--compile", "--out_dir", tmp_path / "r"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "torch.compile failed" in done.stderr and "leave --compile out" in done.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt", "mamba"])
def test_a_compiled_model_learns_the_same(tmp_path, model):
    if not any(map(shutil.which, ("g++", "clang++", "cl"))):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    common = ["--teacherless", "--model", model, "--steps", 3, "--eval_every", 1]
    run(*common, "--out_dir", tmp_path / "plain"), run(*common, "--compile", "--out_dir", tmp_path / "compiled")
    for a, b in zip(lines(tmp_path / "plain")[1:], lines(tmp_path / "compiled")[1:], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)


# ---------------------------------------------------------------------------------------------------------
# Several processes


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
        monkeypatch.setattr(train, "this_process", lambda: (rank, 2))
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
