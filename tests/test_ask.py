"""ask.py: what a model writes for a graph, and how sure it is."""

import io

import pytest
import torch

import ask
import data
from helpers import run, settings
from plumbing import graph_files


def made_model(answer, objective, s):
    """A made model: `answer` maps prefix (B, P) to its path (B, l), which it writes with probability 0.9."""

    class Made(torch.nn.Module):
        def new_cache(self, batch_size, max_tokens):
            return {}

        def forward(self, tokens, num_outputs=None, cache=None):
            if cache is not None:
                tokens = cache["tokens"] = torch.cat([cache.get("tokens", tokens[:, :0]), tokens], dim=1)
            P = data.prefix_length(s.deg, s.path_len)
            path = answer(tokens[:, :P])
            path = path.flip(1) if s.reverse else path
            V = data.vocab_size(s.num_nodes)
            rest = 0.1 / (V - 1)
            p = torch.full((*path.shape, V), rest).scatter(2, path[:, :, None], 0.9)
            if objective != "teacherless":  # the outputs of the tokens that have been read
                p = p[:, : tokens.shape[1] - P + 1]
            return p[:, p.shape[1] - num_outputs :].log()

    return Made()


def test_a_path_written_backwards_is_judged_from_its_start(capsys, monkeypatch):
    s = settings(objective="reverse", reverse=True)
    prefix, path = data.sample_graphs(3, 2, 4, 12, torch.Generator().manual_seed(1))
    monkeypatch.setattr(ask, "ask", lambda *_: (path.flip(1), torch.ones(3, 4)))
    ask.show(None, prefix, path, s)
    assert capsys.readouterr().out.count("   right\n") == 3


@pytest.mark.parametrize("objective", ["next", "reverse", "teacherless", "multi"])
def test_it_shows_what_is_written_and_the_probability_of_each_token(objective):
    s = settings(objective=objective, reverse=objective == "reverse")
    prefix, path = data.sample_graphs(20, 2, 4, 12, torch.Generator().manual_seed(1))
    where = {tuple(p): q for p, q in zip(prefix.tolist(), path)}
    model = made_model(lambda asked: torch.stack([where[tuple(p)] for p in asked.tolist()]), objective, s)
    written, sure = ask.ask(model, prefix, s)
    assert torch.equal(written.flip(1) if s.reverse else written, path)
    assert torch.allclose(sure, torch.tensor(0.9))


def test_the_verdict_tells_a_wrong_arm_from_one_with_the_goal_at_its_end():
    arms = [[1, 2, 3, 4], [1, 5, 6, 7]]
    say = lambda written: ask.verdict(written, arms[0], arms)
    assert say([1, 2, 3, 4]) == "right"
    assert say([1, 5, 6, 7]) == "a wrong arm"
    assert say([1, 5, 6, 4]) == "a wrong arm, and the goal at its end"
    assert say([1, 5, 3, 4]) == say([2, 2, 3, 4]) == "no arm of the graph"


def test_a_graph_without_its_path_is_read_as_with_it():
    s = settings(deg=2, path_len=4, num_nodes=12)
    prefix, path = data.sample_graphs(30, 2, 4, 12, torch.Generator().manual_seed(2))
    for i in range(30):
        file = io.StringIO()
        graph_files.write_graphs(file, prefix[i : i + 1], path[i : i + 1])
        line = file.getvalue().strip()
        for text in (line, line.split("=")[0] + "=", line.split("=")[0].replace(",", " , ") + " = "):
            got = graph_files.read_question(text, s)
            assert torch.equal(got[0], prefix[i : i + 1]) and torch.equal(got[1], path[i : i + 1])


def test_the_command_line_answers_or_says_in_one_sentence_why_not(tmp_path, capsys):
    folder = str(tmp_path / "run")
    run("--teacherless", "--steps", 2, "--out_dir", folder)
    capsys.readouterr()
    ask.main([folder])
    shown = capsys.readouterr().out
    assert shown.count("writes") == shown.count("sure") == 10
    ask.main([folder, "1,2|2,3|3,4|1,5|5,6|6,7/1,7="])
    assert "1,2|2,3|3,4|1,5|5,6|6,7/1,7=1,5,6,7\n  writes" in capsys.readouterr().out
    for text, sentence in [
        ("1,2|2,3|1,5|5,6/1,6=", "the graph is a G(2,3), but the model was trained on G(2,4)"),
        ("1,2|2,3|3,4|1,5|5,6|6,7/1,3=", "no arm of the graph ends at the goal 3"),
        ("1,2|2,3|3,4|1,5|5,6|6,70/1,70=", "the model knows the labels 0 to 11, but not 70"),
        ("1,2|2,3|3,4|1,5|5,6|6,7/1,7", "is not of the form"),
        ("", "is not of the form"),
    ]:
        with pytest.raises(SystemExit) as end:
            ask.main([folder, text])
        assert end.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith("ask.py: ") and err.count("\n") == 1 and sentence in err
    with pytest.raises(SystemExit) as end:
        ask.main([])
    assert end.value.code == 2 and "give the folder of a run" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        ask.main(["--help"])
    assert not end.value.code and "python ask.py runs/NAME" in capsys.readouterr().out


def test_a_question_needs_no_file_of_graphs(tmp_path, capsys):
    file = tmp_path / "test.txt"
    with open(file, "w") as out:
        graph_files.write_graphs(out, *data.sample_graphs(9, 2, 4, 12, torch.Generator().manual_seed(5)))
    run("--steps", 1, "--test_file", file, "--out_dir", tmp_path / "run")
    file.unlink()
    capsys.readouterr()
    ask.main([str(tmp_path / "run"), "1,2|2,3|3,4|1,5|5,6|6,7/1,7="])
    assert "writes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        ask.main([str(tmp_path / "run")])
    assert "does not exist; put it back" in capsys.readouterr().err


def test_a_line_of_a_training_file_still_needs_its_path(tmp_path):
    file = tmp_path / "graphs.txt"
    file.write_text("1,2|2,3|1,5|5,6/1,6=\n")
    with pytest.raises(ValueError, match="is not of the form"):
        graph_files.read_graphs(file, 12)
