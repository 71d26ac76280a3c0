"""Self-speculative decoding writes what greedy decoding writes, in fewer passes."""

import pytest
import torch

from beyond.drafts import decode_by_drafts, main
from evaluate import decode
from helpers import run
from test_evaluate import N, L, graphs, random_model


@pytest.mark.parametrize("kind", ["gpt", "causal gpt", "mamba", "causal mamba"])
@pytest.mark.parametrize("n_future", [1, 2, 4])
def test_drafts_never_change_what_is_written(kind, n_future):
    kept = 0
    for seed in range(8):
        model, (prefix, _) = random_model(kind, n_future, seed), graphs(3)
        for one in prefix:
            length = 1 + seed % L
            path, passes = decode_by_drafts(model, one[None], length)
            assert torch.equal(path, decode(model, one[None], length, "next", N))
            assert passes <= length
            kept += length - passes
    assert n_future > 1 or kept == 0


@pytest.mark.parametrize("kind", ["gpt", "mamba"])
def test_drafts_that_are_always_right_save_the_most_passes(kind):
    model, (prefix, _) = random_model(kind, n_future=4), graphs(5)
    with torch.no_grad():
        for block in (*model.future, *(model.h if kind == "gpt" else model.layers)):
            for p in block.parameters():
                p.zero_()  # every head now says the same, whatever the position
        model.get_parameter("wpe.weight" if kind == "gpt" else "embedding.weight").fill_(0.0)
        for one in prefix:
            path, passes = decode_by_drafts(model, one[None], L)
            assert torch.equal(path, decode(model, one[None], L, "next", N)) and passes <= 2


def test_the_script_counts_passes_of_a_run(tmp_path, capsys):
    run("--multi", "--steps", 1, "--out_dir", tmp_path / "multi"), run("--steps", 1, "--out_dir", tmp_path / "next")
    capsys.readouterr()
    main([str(tmp_path / "multi")])
    assert "50 paths of 4 tokens: " in capsys.readouterr().out
    for folders, fault in (([str(tmp_path / "next")], "give a run of --multi"), ([], "give the folder of one run")):
        with pytest.raises(SystemExit) as end:
            main(folders)
        assert end.value.code == 2 and fault in capsys.readouterr().err
