"""What several test files need: tiny runs of train.py, and a look at what they leave."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from plumbing import command_line, run_folder
from plumbing.graph_files import write_graphs

HOME = Path(train.__file__).parent
DEFAULTS = command_line.defaults_for("gpt")
TINY = (
    "--n_layer 2 --n_head 2 --n_embd 16 --deg 2 --path_len 4 --num_nodes 12 --n_test 50 --batch_size 8"
    " --threads 1 --device cpu"
).split()


def tiny_without(*names):
    """TINY without some of its flags."""
    pairs = [TINY[i : i + 2] for i in range(0, len(TINY), 2)]
    return [word for flag, value in pairs if flag[2:] not in names for word in (flag, value)]


def run(*flags, tiny=TINY):
    """Run train.py's command line in this process."""
    train.main([*tiny, *map(str, flags)])


def settings(**changes):
    """The settings of a tiny run, without the command line."""
    tiny = dict(path_len=4, num_nodes=12, batch_size=8, n_test=50, n_future=1)
    return SimpleNamespace(**DEFAULTS | tiny | {"file_hashes": {}, "idea": "train"} | changes)


def refusal(capsys, *flags, tiny=TINY):
    """Run with flags that cannot hold; return the one sentence on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run(*flags, tiny=tiny)
    out, message = capsys.readouterr()
    assert end.value.code == 2 and message.startswith("train.py: ") and message.count("\n") == 1
    assert "Traceback" not in message
    return message


def lines(folder):
    """The lines of a run's log."""
    text = (Path(folder) / "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def without_times(records):
    return [
        {k: v for k, v in r.items() if k not in ("seconds", "tokens_per_second")} for r in records
    ]


def weights(folder):
    return torch.load(Path(folder) / "ckpt.pt", weights_only=True)["model"]


def files_of(folder):
    """The bytes of every file in a folder, by name."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def break_at_second_save(monkeypatch, start):
    """Call `start`, which trains; break it off, as by a kill, when it has saved its second checkpoint."""
    real, saves = run_folder.save_checkpoint, []

    def save_and_die(*given):
        real(*given)
        saves.append(1)
        if len(saves) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "save_checkpoint", save_and_die)
        with pytest.raises(SystemExit):
            start()


def assert_same_run(a, b):
    assert without_times(lines(a)) == without_times(lines(b))
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def write_file(path, prefix, paths):
    """Write graphs to a text file. Returns: its path."""
    with open(path, "w") as file:
        write_graphs(file, prefix, paths)
    return path
