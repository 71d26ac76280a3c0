"""What a run leaves on disk and prints, whatever stops it."""

import contextlib
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

import train
from helpers import HOME, TINY, assert_same_run, files_of, lines, refusal, run, settings, weights
from plumbing import run_folder
from plumbing.run_folder import Run


def test_a_run_leaves_its_log_its_settings_and_its_checkpoint(tmp_path, capsys):
    run("--teacherless", "--steps", 6, "--eval_every", 4, "--out_dir", tmp_path / "r")
    records = lines(tmp_path / "r")
    assert [r["step"] for r in records] == [0, 4, 6] and [r["graphs"] for r in records] == [0, 32, 48]
    keys = "step seconds graphs loss accuracy position_accuracy forced_accuracy difficult chance tokens_per_second"
    assert all(set(keys.split()) <= r.keys() for r in records)
    assert records[-1]["chance"] == 0.5 and len(records[-1]["position_accuracy"]) == 4
    assert records[0]["loss"] is None and math.log(16) / 2 < records[-1]["loss"] < 4 * math.log(16)
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


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path, capsys):
    run("--steps", 1, "--out_dir", tmp_path / "r")
    before = (tmp_path / "r" / "log.jsonl").read_bytes()
    assert "holds a run already" in refusal(capsys, "--steps", 1, "--out_dir", tmp_path / "r")
    assert (tmp_path / "r" / "log.jsonl").read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no lock for folders")
def test_a_second_process_on_one_folder_is_told(tmp_path, capsys):
    run("--steps", 2, "--out_dir", tmp_path / "r")
    before = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    waiting = "import sys, pathlib\nfrom plumbing.run_folder import hold\nwith hold(pathlib.Path(sys.argv[1])):\n print('held', flush=True)\n sys.stdin.read()"
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


def test_a_narrow_terminal_gets_a_line_that_fits(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    record = {"step": 0, "accuracy": 0.0, "difficult": 0.0, "chance": 0.5}
    progress = Run(None, settings())
    progress.record = record
    progress.show(3, 1.0)
    shown = capsys.readouterr().out
    assert shown.endswith("\r") and len(shown) == 40


@pytest.mark.slow
def test_a_run_killed_at_random_moments_can_always_be_resumed(tmp_path):
    common = ["--steps", "500", "--eval_every", "2"]
    run(*common, "--out_dir", tmp_path / "whole")
    command, kills = [sys.executable, HOME / "train.py"], 0
    process = subprocess.Popen([*command, *TINY, *common, "--out_dir", tmp_path / "broken"], stdout=subprocess.DEVNULL)
    while not (tmp_path / "broken" / "ckpt.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    for wait in torch.rand(20, generator=torch.Generator().manual_seed(0)).tolist():
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
    assert process.wait(timeout=120) == 0 and kills > 15
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


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


def test_the_time_that_is_left_is_that_of_the_steps_to_come(capsys):
    record = {"step": 3, "accuracy": 0.0, "difficult": 0.0, "chance": 0.5}
    progress = Run(None, settings(steps=12, batch_size=100), seconds=60.0)
    progress.record = record
    progress.show(3, 1.0)
    assert "    5 graphs/s   3:00 left\n" in capsys.readouterr().out


def edit_checkpoint(folder, edit):
    checkpoint = torch.load(folder / "ckpt.pt", weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, folder / "ckpt.pt")


def test_a_resumed_runs_clock_goes_on(tmp_path):
    run("--steps", 2, "--out_dir", tmp_path / "r")
    edit_checkpoint(tmp_path / "r", lambda checkpoint: checkpoint.update(seconds=1000.0))
    run("--resume", tmp_path / "r", "--steps", 3, tiny=[])
    assert 1000 <= lines(tmp_path / "r")[-1]["seconds"] < 1100


def test_a_run_that_goes_on_keeps_the_evaluation_at_its_old_end(tmp_path):
    run("--steps", 4, "--eval_every", 3, "--out_dir", tmp_path / "r")
    run("--resume", tmp_path / "r", "--steps", 7, tiny=[])
    assert [line["step"] for line in lines(tmp_path / "r")] == [0, 3, 4, 6, 7]


def test_a_run_whose_log_is_lost_can_be_resumed(tmp_path):
    run("--steps", 2, "--out_dir", tmp_path / "r")
    (tmp_path / "r" / "log.jsonl").unlink()
    run("--resume", tmp_path / "r", "--steps", 3, tiny=[])
    assert [r["step"] for r in lines(tmp_path / "r")] == [3]


@pytest.mark.parametrize("edit", [lambda s: s.pop("decay"), lambda s: s.update(dropout=0.1)], ids=["less", "more"])
def test_a_checkpoint_with_other_settings_is_of_another_version(tmp_path, capsys, edit):
    run("--steps", 1, "--out_dir", tmp_path / "r")
    edit_checkpoint(tmp_path / "r", lambda checkpoint: edit(checkpoint["settings"]))
    assert "is damaged or of another version" in refusal(capsys, "--resume", tmp_path / "r", tiny=[])


@pytest.mark.parametrize("name", ["ckpt.pt", "config.json", "log.jsonl"])
def test_no_file_in_an_out_dir_is_overwritten(tmp_path, capsys, name):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / name).write_text("mine")
    message = refusal(capsys, "--steps", 1, "--out_dir", tmp_path / "r")
    assert "holds a" in message and ("--resume" in message) == (name == "ckpt.pt")
    assert files_of(tmp_path / "r") == {name: b"mine"}


def test_a_file_that_cannot_be_written_nor_removed_is_one_sentence(tmp_path, capsys, monkeypatch):
    run("--steps", 1, "--out_dir", tmp_path / "r")

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only), monkeypatch.setattr(os, "replace", read_only)
    message = refusal(capsys, "--resume", tmp_path / "r", "--steps", 2, tiny=[])
    assert "could not be written" in message and "Read-only file system" in message


def test_a_log_of_other_letters_does_not_keep_a_run_from_being_resumed(tmp_path):
    run("--steps", 2, "--eval_every", 1, "--out_dir", tmp_path / "r")
    with open(tmp_path / "r" / "log.jsonl", "ab") as log:
        log.write(b"\xff\xfe\n" + b"[" * 100_000 + b"\n")
    run("--resume", tmp_path / "r", "--steps", 3, tiny=[])
    assert [r["step"] for r in lines(tmp_path / "r")] == [0, 1, 2, 3]


def test_a_run_that_went_on_elsewhere_meanwhile_is_not_overwritten(tmp_path, capsys, monkeypatch):
    run("--steps", 2, "--out_dir", tmp_path / "r")
    real_hold = run_folder.hold

    def hold_late(folder):  # another process saves between this one's reading and holding
        os.utime(folder / "ckpt.pt", (1, 1))
        return real_hold(folder)

    monkeypatch.setattr(run_folder, "hold", hold_late)
    before = files_of(tmp_path / "r")
    message = refusal(capsys, "--resume", tmp_path / "r", "--steps", 3, tiny=[])
    assert "another process has just written" in message and files_of(tmp_path / "r") == before


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c.pop("step"),
        lambda c: c.update(step="1"),
        lambda c: c.update(seconds=None),
        lambda c: c["settings"].update(lr="0.1"),
        lambda c: c["settings"].update(steps=1.5),
    ],
    ids=["no step", "step", "seconds", "lr", "steps"],
)
def test_a_checkpoint_with_values_of_another_kind_is_refused(tmp_path, capsys, edit):
    run("--steps", 1, "--out_dir", tmp_path / "r")
    edit_checkpoint(tmp_path / "r", edit)
    assert "is damaged or of another version" in refusal(capsys, "--resume", tmp_path / "r", tiny=[])


def test_a_shorter_progress_line_covers_a_longer_one(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "150")
    progress = Run(None, settings(steps=12), seconds=100_000.0)
    progress.record = {"step": 0, "accuracy": 0.0, "difficult": 0.0, "chance": 0.5}
    progress.show(1, 1.0), progress.show(12, 1.0)
    first, last = capsys.readouterr().out.split("\r")
    assert len(first) == 149 == len(last.rstrip("\n"))


def test_a_folder_that_looks_like_a_flag_is_printed_as_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("--steps", 1, "--out_dir=-x")
    assert "python plot.py ./-x" in capsys.readouterr().out
