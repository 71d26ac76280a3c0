"""Text files of graphs: read exactly, refused in one sentence, and never trained on where they test."""

import json
import os
import random
import time
from pathlib import Path

import pytest
import torch

import data
from helpers import lines, refusal, run, tiny_without, write_file
from plumbing.graph_files import parse_graph, read_graphs, write_graphs
from test_data import PATH, PREFIX, SHAPES, check_graph_slowly, generator

TEXT = "3,5|7,9|5,2|3,7/3,9=3,7,9\n"  # the example of data.py, whose tokens are PREFIX and PATH


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
        tiny=tiny_without("deg", "path_len", "n_test"),
    )
    assert f"{train_file}: 10 of its 40 graphs are test graphs, and left out" in capsys.readouterr().out
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert (config["deg"], config["path_len"], config["n_test"]) == (3, 3, 30)
    assert lines(tmp_path / "r")[-1]["chance"] == pytest.approx(1 / 3)
    run("--resume", tmp_path / "r", "--steps", 3, tiny=[])
    assert lines(tmp_path / "r")[-1]["step"] == 3


def test_no_more_test_graphs_are_reported_than_the_file_has(tmp_path, capsys):
    file = write_file(tmp_path / "t.txt", *data.sample_graphs(30, 2, 4, 12, torch.Generator().manual_seed(9)))
    run("--test_file", file, "--steps", 1, "--n_test", 5000, "--out_dir", tmp_path / "r", tiny=tiny_without("n_test"))
    out = capsys.readouterr().out
    assert "has 30 graphs; all of them are used" in out and "Of 30 graphs" in out
    assert json.loads((tmp_path / "r" / "config.json").read_text())["n_test"] == 30


def test_a_moved_graph_file_is_taken_and_other_graphs_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    graphs = data.sample_graphs(60, 2, 4, 12, torch.Generator().manual_seed(5))
    write_file(tmp_path / "train.txt", graphs[0][:40], graphs[1][:40])
    write_file(tmp_path / "test.txt", graphs[0][40:], graphs[1][40:])
    free = tiny_without("deg", "path_len", "n_test")
    common = ["--train_file", "train.txt", "--test_file", "test.txt", "--eval_every", 2]
    run(*common, "--steps", 4, "--out_dir", "whole", tiny=free)
    run(*common, "--steps", 2, "--out_dir", "broken", "--decay", 0.0, "--warmup", 0, tiny=free)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run("--resume", "../broken", "--steps", 3, tiny=[])  # from another folder
    (tmp_path / "train.txt").rename("moved.txt")
    message = refusal(capsys, "--resume", "../broken", "--steps", 4, tiny=[])
    assert "train.txt does not exist; put it back, or give train.py its place" in message
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
    assert "all graphs of --train_file" in refusal(
        capsys, "--train_file", good, "--test_file", good, "--batch_size", 8, tiny=free
    )
    assert "label" in refusal(capsys, "--test_file", good, "--num_nodes", 7, tiny=free[:2])
    assert "both say what to train on" in refusal(capsys, "--train_file", good, "--n_train", 20, tiny=free)


def test_a_line_of_a_gigabyte_is_refused_without_being_read(tmp_path, capsys):
    with open(tmp_path / "huge.txt", "w") as file:
        file.truncate(10**9)  # a file with a hole: it takes no room on the disk
    began = time.time()
    assert "huge.txt, line 1: " in refusal(capsys, "--train_file", tmp_path / "huge.txt", tiny=[])
    assert time.time() - began < 30


def test_text_by_hand(tmp_path):
    file = tmp_path / "graphs.txt"
    file.write_text(TEXT)
    prefix, path = read_graphs(file, 10)
    assert torch.equal(prefix, PREFIX) and torch.equal(path, PATH)


@pytest.mark.parametrize("deg, path_len, num_nodes", SHAPES)
def test_round_trip_through_text_is_exact(tmp_path, deg, path_len, num_nodes):
    prefix, path = data.sample_graphs(50, deg, path_len, num_nodes, generator())
    with open(tmp_path / "graphs.txt", "w") as file:
        write_graphs(file, prefix, path)
    again_prefix, again_path = read_graphs(tmp_path / "graphs.txt", num_nodes)
    assert torch.equal(prefix, again_prefix) and torch.equal(path, again_path)
    assert again_prefix.dtype == again_path.dtype == torch.int64


@pytest.mark.parametrize(
    "line, fault",
    [
        ("3,5|7,9|5,2|3,7/3,9", "is not of the form"),
        ("3,5|7,9|5,2|3,7/3,9=3,7,9 9", "is not of the form"),
        ("3,5|7, |5,2|3,7/3,9=3,7,9", "is not of the form"),
        ("3,5|7,9|5,2|3,7/3,9=9,7,3", "written from the goal to the start; .* let --reverse turn it round"),
        ("3,5|7,-9|5,2|3,7/3,9=3,7,9", "is not of the form"),
        ("3,5|7,9|5,2|3,7/3,9=3,7,٩", "is not of the form"),
        ("1" * 5000, "is not of the form"),
        ("3,5|7,19|5,2|3,7/3,19=3,7,19", "label 19 is out of range"),
        ("3,5|7,10|5,2|3,7/3,10=3,7,10", "label 10 is out of range"),  # the labels end at 9
        ("3,5|7,9|5,2|4,7/3,9=3,7,9", "no path-star graph"),
        ("3,5|7,9|5,9|3,7/3,9=3,7,9", "no path-star graph"),  # two arms meet
        ("3,5|7,9|7,2|3,7/3,9=3,7,9", "no path-star graph"),  # an arm forks
        ("3,5|7,9|5,7|3,2/3,9=3,5,7,9", "differ in length"),
        ("3,5|7,9|9,7|3,2/3,5=3,5", "lie off them"),  # a circle beside the arms
        ("3,5|7,9|5,2|3,7/5,9=5,2", "no path-star graph"),  # the start has a parent
        ("3,5|7,9|5,2|3,7/3,9=3,5,9", "is no arm"),
        ("3,5|7,9|5,2|3,7/3,9=3,7", "is no arm"),
        ("3,5|7,9|5,2|3,7/3,2=3,7,9", "the path ends at 9, but the goal is 2"),
        ("3,5|3,7/3,7=3,7", r"G\(2,2\), but the first line's is a G\(2,3\)"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_line(tmp_path, line, fault):
    file = tmp_path / "graphs.txt"
    file.write_text(TEXT * 2 + line + "\n" + TEXT, encoding="utf-8")
    with pytest.raises(ValueError, match=fault) as refusal:
        read_graphs(file, 10)
    assert str(refusal.value).startswith(f"{file}, line 3: ")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="holds no graph"):
        read_graphs(tmp_path / "empty.txt", 10)
    (tmp_path / "blank.txt").write_text("\n \n\t\n")
    with pytest.raises(ValueError, match="holds no graph"):
        read_graphs(tmp_path / "blank.txt", 10)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + TEXT.encode(),  # a byte order mark
        TEXT.encode().replace(b"\n", b"\r\n"),
        b"\n\n" + TEXT.encode() + b"\n \t\n",  # empty lines
        b" 3, 5 | 7,9|5 ,2|3,7 /3,\t9 = 3,7,9 \t\n",  # blanks around marks and at the ends of a line
        TEXT.encode().rstrip(),
    ],
)
def test_what_is_harmless_in_a_file_is_accepted(tmp_path, content):
    (tmp_path / "graphs.txt").write_bytes(content)
    prefix, path = read_graphs(tmp_path / "graphs.txt", 10)
    assert torch.equal(prefix, PREFIX) and torch.equal(path, PATH)


def test_a_fault_after_empty_lines_is_named_by_its_line_in_the_file(tmp_path):
    (tmp_path / "graphs.txt").write_text(f"\n{TEXT}\n3,5|7\n")
    with pytest.raises(ValueError, match="line 4: '3,5|7' "):
        read_graphs(tmp_path / "graphs.txt", 10)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(tmp_path, encoding):
    mark = "" if encoding == "utf-16" else "\ufeff"
    (tmp_path / "graphs.txt").write_bytes((mark + TEXT).encode(encoding))
    with pytest.raises(ValueError, match="UTF-16; save it as UTF-8"):
        read_graphs(tmp_path / "graphs.txt", 10)


def test_ten_thousand_mutations_are_each_a_graph_or_refused(tmp_path):
    prefix, path = data.sample_graphs(20, 2, 4, 10, generator())
    with open(tmp_path / "good.txt", "w") as file:
        write_graphs(file, prefix, path)
    good = (tmp_path / "good.txt").read_text().splitlines()
    chance = random.Random(0)
    accepted = 0
    for _ in range(10_000):
        characters = list(chance.choice(good))
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(characters))
            new = chance.choice("0123456789,|/=- x\n\t\0é")
            change = chance.choice(["replace", "insert", "delete", "swap"])
            if change == "replace":
                characters[place] = new
            elif change == "insert":
                characters.insert(place, new)
            elif change == "delete":
                del characters[place]
            else:
                other = chance.randrange(len(characters))
                characters[place], characters[other] = characters[other], characters[place]
        line = "".join(characters)
        try:
            numbers, deg, path_len = parse_graph(line, 10)
        except ValueError:
            continue
        accepted += 1
        ends = 2 * deg * (path_len - 1)
        edges = torch.tensor(numbers[:ends]).view(1, -1, 2)
        prefix = data.write_prefix(
            edges, torch.tensor(numbers[ends : ends + 1]), torch.tensor(numbers[ends + 1 : ends + 2]), 10
        )
        check_graph_slowly(prefix[0].tolist(), numbers[ends + 2 :], deg, path_len, 10)
    assert accepted  # some mutations leave a graph, such as a label replaced by an unused one


def test_an_endless_line_is_refused_without_reading_it_all(tmp_path):
    file = tmp_path / "endless.txt"
    for endless in ("3,5|", "3 ", "3,", "       "):
        file.write_text("3" + endless * 2_000_000)
        with pytest.raises(ValueError, match="line 1"):
            read_graphs(file, 10)


def test_letters_of_another_encoding_are_a_fault_of_their_line(tmp_path):
    (tmp_path / "graphs.txt").write_bytes(TEXT.encode() + "Größe\n".encode("latin-1"))
    with pytest.raises(ValueError, match="graphs.txt, line 2: 'Gr.*' … is not of the form"):
        read_graphs(tmp_path / "graphs.txt", 10)


def test_a_moved_test_file_is_taken_for_evaluation(tmp_path, capsys):
    graphs = data.sample_graphs(60, 2, 4, 12, torch.Generator().manual_seed(5))
    file = write_file(tmp_path / "test.txt", *graphs)
    free = tiny_without("deg", "path_len", "n_test")
    run("--test_file", file, "--steps", 1, "--out_dir", tmp_path / "r", tiny=free)
    file.rename(tmp_path / "moved.txt")
    capsys.readouterr()
    run("--resume", tmp_path / "r", "--eval_only", "--test_file", tmp_path / "moved.txt", tiny=[])
    assert f"on 60 graphs G(2,4) of {tmp_path / 'moved.txt'}" in capsys.readouterr().out
    other = write_file(tmp_path / "other.txt", *data.sample_graphs(9, 2, 4, 12, generator(6)))
    message = refusal(capsys, "--resume", tmp_path / "r", "--eval_only", "--test_file", other, tiny=[])
    assert f"what the run trained on follows from {file}; put back what was there then" in message


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="pipes have no names on Windows")
def test_graphs_may_come_through_a_pipe():
    read_end, write_end = os.pipe()
    os.write(write_end, b"\xef\xbb\xbf" + TEXT.encode())
    os.close(write_end)
    prefix, path = read_graphs(f"/dev/fd/{read_end}", 10)
    os.close(read_end)
    assert torch.equal(prefix, PREFIX) and torch.equal(path, PATH)
