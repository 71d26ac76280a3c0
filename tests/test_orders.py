"""results/orders.py, on models made of rules: one that plans, and one that traces forward arms and eliminates."""

import pytest
import torch

import data
import model_gpt
from helpers import run
from results import orders

DEG, L, N = 3, 5, 20
PREFIX, PATH = data.sample_graphs(3000, DEG, L, N, torch.Generator().manual_seed(5))


def test_an_arm_is_forward_when_its_second_edge_stands_before_its_third():
    arms = data.trace_arms(PREFIX, DEG, N)
    forward = orders.forward_arms(PREFIX, arms)
    for row, its_arms, answers in zip(PREFIX.tolist()[:100], arms.tolist(), forward.tolist()):
        edges = [tuple(row[i : i + 2]) for i in range(0, len(row) - 3, 3)]
        for arm, answer in zip(its_arms, answers):
            assert answer == (edges.index((arm[1], arm[2])) < edges.index((arm[2], arm[3])))
    assert 0.45 < forward.double().mean() < 0.55


def test_a_planner_is_right_in_every_order():
    rows = orders.by_order(PATH[:, 1], PREFIX, PATH, DEG, N)
    assert [row[:2] for row in rows] == [(ahead, k) for ahead in (True, False) for k in range(DEG)]
    assert sum(row[2] for row in rows) == len(PATH) and all(row[3] == 1 for row in rows)


def test_elimination_shows_as_one_over_the_backward_arms():
    arms = data.trace_arms(PREFIX, DEG, N)
    forward = orders.forward_arms(PREFIX, arms)
    first = []
    for goal, its_arms, traced in zip(PATH[:, -1].tolist(), arms.tolist(), forward.tolist()):
        left = [arm[1] for arm, known in zip(its_arms, traced) if not known or arm[-1] == goal]
        known = [arm[1] for arm, known in zip(its_arms, traced) if known and arm[-1] == goal]
        first.append((known or left)[0])
    rows = orders.by_order(torch.tensor(first), PREFIX, PATH, DEG, N)
    for ahead, count, graphs, right in rows:
        assert right == pytest.approx(1 if ahead else 1 / (DEG - count), abs=4 * (0.25 / graphs) ** 0.5)


def test_it_runs_on_a_folder_and_refuses_what_has_no_first_step(tmp_path, capsys):
    run("--teacherless", "--causal", "--steps", 1, "--out_dir", tmp_path / "a")
    orders.main([str(tmp_path / "a")])
    assert "1 of 1 others forward" in capsys.readouterr().out
    widths, attend = set(), model_gpt.attend
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_gpt, "attend", lambda *given: widths.add(given[3]) or attend(*given))
        orders.main(["--both_ways", str(tmp_path / "a")])
    assert "1 of 1 others forward" in capsys.readouterr().out and widths == {data.prefix_length(2, 4)}
    run("--model", "mamba", "--teacherless", "--steps", 1, "--out_dir", tmp_path / "m")
    with pytest.raises(SystemExit) as end:
        orders.main(["--both_ways", str(tmp_path / "m")])
    assert end.value.code == 2 and "opens a causal mask" in capsys.readouterr().err
    run("--reverse", "--steps", 1, "--out_dir", tmp_path / "b")
    with pytest.raises(SystemExit) as end:
        orders.main([str(tmp_path / "b")])
    assert end.value.code == 2 and "not reversed" in capsys.readouterr().err
