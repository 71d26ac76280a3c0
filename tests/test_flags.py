"""The command line: what holds is run, and what cannot hold gets one sentence."""

import json
import os
import subprocess
import sys

import pytest
import torch

import data
import plot
import train
from helpers import DEFAULTS, HOME, TINY, lines, refusal, run
from plumbing import command_line
from plumbing import flags as plumbing_flags
from plumbing import graph_files
from settings import CHOICES


@pytest.mark.parametrize("flags", [["--reverse"], ["--objective", "reverse"], ["--objective", "next", "--reverse"]])
def test_next_token_prediction_on_reversed_paths_has_one_name(tmp_path, flags):
    run(*flags, "--steps", 1, "--out_dir", tmp_path / "r")
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert (config["objective"], config["reverse"]) == ("reverse", True)


def test_help_names_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.isascii()  # every terminal can show it
    for name, default in DEFAULTS.items():
        assert f"--{name}" in shown
        other = command_line.defaults_for("mamba")[name]
        differs = f"(default: {default} for the GPT, {other} for Mamba)"
        assert not default or f"(default: {default})" in shown or differs in shown


def test_help_does_not_wait_for_torch():
    for flag in ("--help", "-h"):
        command = [sys.executable, "-X", "importtime", HOME / "train.py", flag]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 and "--objective" in done.stdout
        assert "argparse" in done.stderr and "torch" not in done.stderr and "numpy" not in done.stderr


def test_the_objectives_of_the_flag_are_those_of_the_layouts():
    assert CHOICES["objective"] == data.OBJECTIVES == plot.OBJECTIVES


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ("--num_nodes 6", "G(2,4) has 7 nodes, but --num_nodes is 6; give 7 or more"),
        ("--path_len 1", "--path_len is 1"),
        ("--path_len 0", "--path_len is 0, but a path has a start and a goal; give 2 or more"),
        ("--num_nodes 0", "G(2,4) has 7 nodes, but --num_nodes is 0; give 7 or more"),
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
        ("--lr 1e39", "--lr is 1e+39; give a number above 0, at most 1000"),
        ("--threads 2000000", "--threads is 2000000; give less than 2^10"),
        ("--device hpu", "--device hpu is not available here"),
        ("--weight_decay -0.1", "--weight_decay is -0.1; give a number from 0 to 1000"),
        ("--weight_decay nan", "--weight_decay is nan"),
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
        ("--device cuda:77", "--device cuda:77 is not available here; give --device cpu"),
        ("--device meta", "--device meta is not available here"),
        ("--seed 18446744073709551616", "--seed is 18446744073709551616; give less than 2^64"),
        ("--steps 3000000000", "--steps is 3000000000; give less than 2^31"),
        ("--num_nodes 99999999999999999999", "--num_nodes is 99999999999999999999; give less than 2^31"),
        ("--multi --only_difficult", "--only_difficult trains on a single token of the path, and --multi on several"),
        ("--multi --reverse --only_difficult", "--only_difficult trains on a single token"),
        ("--test_file .", "--test_file . is a folder"),
        ("--device toaster", "--device toaster is not available here"),
        ("--model mamba --scan triton", "--scan triton needs a GPU, but --device is cpu; give --scan fast"),
        ("--dtype float16", "argument --dtype: invalid choice: 'float16'"),
        ("--bogus", "unrecognized arguments: --bogus"),
    ],
)
def test_flags_that_cannot_hold_get_one_sentence(tmp_path, monkeypatch, capsys, flags, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal(capsys, *flags.split())
    assert not os.listdir(tmp_path)  # and nothing is left behind


def test_what_cannot_change_on_resume_is_refused_by_name(tmp_path, capsys):
    run("--steps", 1, "--out_dir", tmp_path / "r")
    for name, value in dict(deg=3, seed=2, lr=0.5, batch_size=4, model="mamba", objective="reverse", n_embd=32).items():
        message = refusal(capsys, "--resume", tmp_path / "r", f"--{name}", value, tiny=[])
        assert f"--{name} {value} cannot change on --resume" in message and "--steps, --eval_every" in message


def test_a_run_cannot_be_resumed_to_a_step_behind_it(tmp_path, capsys):
    run("--steps", 4, "--out_dir", tmp_path / "r")
    before = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    message = refusal(capsys, "--resume", tmp_path / "r", "--steps", 3, tiny=[])
    assert "--steps is 3, but the run has come to step 4; give that or more" in message
    assert {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()} == before
    run("--resume", tmp_path / "r", "--steps", 4, tiny=[])
    assert [r["step"] for r in lines(tmp_path / "r")] == [0, 4]


def test_memory_that_does_not_suffice_is_one_sentence(capsys, monkeypatch):
    for fault in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: you")):
        monkeypatch.setattr(graph_files, "test_graphs", lambda *_: (_ for _ in ()).throw(fault))
        assert "there is not enough memory; give a smaller --batch_size" in refusal(capsys, "--steps", 1)
    monkeypatch.setattr(graph_files, "test_graphs", lambda *_: (_ for _ in ()).throw(RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run("--steps", 1)


@pytest.mark.slow
def test_compiling_without_a_compiler_is_one_sentence_and_leaves_no_folder(tmp_path):
    environment = os.environ | {"CXX": str(tmp_path / "no-such-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "c")}
    command = [sys.executable, HOME / "train.py", *TINY, "--steps", "1", "--compile", "--out_dir", tmp_path / "r"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "torch.compile failed" in done.stderr and "leave --compile out" in done.stderr
    assert not (tmp_path / "r").exists()


def test_a_run_begun_with_compile_says_what_it_needs_where_it_goes_on(tmp_path, capsys, monkeypatch):
    run("--steps", 1, "--out_dir", tmp_path / "r")
    path = tmp_path / "r" / "ckpt.pt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["settings"]["compile"] = True
    torch.save(checkpoint, path)

    def without_a_compiler(*_):
        raise torch._inductor.exc.InvalidCxxCompiler()

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    message = refusal(capsys, "--resume", tmp_path / "r", "--steps", 2, tiny=[])
    assert "torch.compile failed" in message and "this run was begun with --compile, which needs a compiler" in message


def test_to_resume_a_reversed_run_reverse_may_be_said_again(tmp_path, capsys):
    run("--steps", 1, "--teacherless", "--reverse", "--out_dir", tmp_path / "both")
    run("--resume", tmp_path / "both", "--reverse", "--steps", 2, tiny=[])
    run("--resume", tmp_path / "both", "--reverse", "--teacherless", "--steps", 3, tiny=[])
    assert lines(tmp_path / "both")[-1]["step"] == 3
    assert "--objective reverse cannot change" in refusal(
        capsys, "--resume", tmp_path / "both", "--reverse", "--objective", "next", tiny=[]
    )
    run("--steps", 1, "--teacherless", "--out_dir", tmp_path / "one")
    assert "--reverse True cannot change" in refusal(capsys, "--resume", tmp_path / "one", "--reverse", tiny=[])


@pytest.mark.parametrize("script", ["beyond/drafts.py", "results/joins.py", "results/orders.py", "results/table.py"])
def test_scripts_that_take_folders_explain_themselves(script):
    done = subprocess.run([sys.executable, HOME / script, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and f"python {script}" in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "cp437"])
def test_a_terminal_that_lacks_a_letter_gets_its_number(tmp_path, encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, HOME / "train.py", *TINY, "--steps", "1", "--out_dir", str(tmp_path / "Übung 学 1")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding=encoding)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "\\u5b66 1" in done.stdout and lines(tmp_path / "Übung 学 1")[-1]["step"] == 1


def test_as_many_heads_as_a_path_has_room_for():
    heads = lambda **given: plumbing_flags.settle(dict(device="cpu", **given))[0].n_future
    assert [heads(multi=True, path_len=path_len) for path_len in (2, 3, 4, 5)] == [2, 3, 4, 4]
    assert heads() == heads(teacherless=True) == 1 and heads(multi=True, model="mamba") == 3


def test_what_only_a_gpt_needs_is_not_asked_of_a_mamba():
    given = dict(device="cpu", model="mamba", n_embd=18, n_head=5)
    s, _, _ = plumbing_flags.settle(given)
    assert s.n_embd == 18


def test_no_output_at_all_is_no_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    run("--steps", 1, "--out_dir", tmp_path / "r")
    assert lines(tmp_path / "r")[-1]["step"] == 1


def test_a_reader_that_stops_reading_is_one_sentence(tmp_path):
    command = [sys.executable, HOME / "train.py", *TINY, "--steps", "3", "--eval_every", "1"]
    process = subprocess.Popen(
        [*command, "--out_dir", tmp_path / "r"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    error = process.stderr.read().decode()
    assert process.wait(60) == 2 and error.count("\n") == 1 and "standard output was closed" in error


def test_a_warm_up_of_two_thousand_million_steps_takes_no_time(capsys, monkeypatch):
    monkeypatch.setattr(train, "train", lambda *_: sys.exit(3))
    with pytest.raises(SystemExit) as end:
        run("--steps", 2 * 10**9, "--warmup", 2 * 10**9)
    assert end.value.code == 3


def test_of_several_processes_one_says_what_is_wrong(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit):
        run("--deg", 0)
    assert capsys.readouterr().err == ""


def test_a_process_that_alone_lacks_memory_says_so(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(graph_files, "test_graphs", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(SystemExit) as end:
        run("--steps", 1)
    message = capsys.readouterr().err
    assert end.value.code == 2 and ", process 1: there is not enough memory; give a smaller" in message and message.count("\n") == 1


def test_no_number_of_test_graphs_is_two_thousand_for_an_evaluation_too(tmp_path, capsys):
    run("--steps", 1, "--out_dir", tmp_path / "r")
    capsys.readouterr()
    run("--resume", tmp_path / "r", "--eval_only", "--n_test", 0, tiny=[])
    assert "on 2,000 graphs G(2,4) that it had not seen" in capsys.readouterr().out
