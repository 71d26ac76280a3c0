"""results/joins.py, on states made by rules: what is held is read, what is not is guessed."""

import pytest
import torch
import torch.nn.functional as F

import data
from helpers import run
from results import joins

DEG, L, N = 2, 5, 20
PREFIX, _ = data.sample_graphs(joins.FIT + joins.TEST, DEG, L, N, torch.Generator().manual_seed(5))
ARMS = data.trace_arms(PREFIX, DEG, N)
PAIRS = joins.neighbours(PREFIX, ARMS)


def test_neighbours_are_found_in_the_prefix():
    for b, row in enumerate(PREFIX.tolist()[:100]):
        edges = [tuple(row[i : i + 2]) for i in range(0, len(row) - 3, 3)]
        for a, arm in enumerate(ARMS[b].tolist()):
            for i in range(L - 3):
                u, v, w = arm[i + 1 : i + 4]
                first, second = edges.index((u, v)), edges.index((v, w))
                ahead, back = ([part[b, a, i].item() for part in PAIRS[name]] for name in ("ahead", "back"))
                assert ahead == [first, w, second < first] and back == [second, u, first < second]


@pytest.mark.parametrize("held", ["ahead", "back"])
@pytest.mark.parametrize("token", [1, 2])
def test_a_probe_reads_what_an_edge_holds_and_no_more(held, token):
    torch.manual_seed(6)
    noise, state = torch.randn(*PREFIX.shape, 24), 0.1 * torch.randn(*PREFIX.shape, 24)
    code = torch.linalg.qr(torch.randn(24, 24))[0][:N]  # a direction for each label
    places, far, sees = PAIRS[held]
    graphs = torch.arange(len(PREFIX))[:, None, None].expand_as(places)
    state[graphs[sees], 3 * places[sees] + token] += F.one_hot(far[sees], N).float() @ code
    for name, pairs in PAIRS.items():
        seen, unseen = joins.share_read([noise, state], *pairs, N)
        assert unseen < 0.12
        assert seen > 0.99 if name == held else seen < 0.12


@pytest.mark.parametrize("model", ["gpt", "mamba"])
def test_it_runs_on_a_folder_and_refuses_short_paths(tmp_path, capsys, monkeypatch, model):
    monkeypatch.setattr(joins, "FIT", 200)
    run("--teacherless", "--model", model, "--steps", 1, "--path_len", 4, "--out_dir", tmp_path / "a")
    joins.main([str(tmp_path / "a")])
    assert capsys.readouterr().out.count("if the neighbour comes before") == 2
    run("--path_len", 3, "--steps", 1, "--out_dir", tmp_path / "b")
    with pytest.raises(SystemExit) as end:
        joins.main([str(tmp_path / "b")])
    assert end.value.code == 2 and "--path_len 4" in capsys.readouterr().err
