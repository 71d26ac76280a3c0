"""Self-speculative decoding writes what greedy decoding writes, in fewer passes."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

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


class ByHash:
    """Stands where a multi-token model does: what comes next depends on all tokens so far; drafts are right now and then."""

    V, config = 9, SimpleNamespace(n_future=4)

    def new_cache(self, batch_size, max_tokens):
        return [torch.empty(1, 0, dtype=torch.int64)]

    def trunk(self, tokens, cache):
        cache[0] = torch.cat([cache[0], tokens], dim=1)
        return cache[0]

    def says(self, row, k):
        """What head k + 1 says after the tokens of a row."""
        row = list(row)
        for _ in range(k + 1):
            number = 7
            for token in row:
                number = (number * 31 + token + 1) % 1_000_003
            row.append(number % self.V)
        wrong = k > 0 and (number // 11) % 3 == 0
        return (row[-1] + wrong) % self.V

    def head(self, x, k, num_outputs, cache):
        row = x[0].tolist()
        said = [self.says(row[: len(row) - num_outputs + 1 + i], k) for i in range(num_outputs)]
        return F.one_hot(torch.tensor([said]), self.V).float()


def test_drafts_are_kept_up_to_the_first_wrong_one():
    model, right = ByHash(), 0
    for start in range(60):
        prefix, length = torch.tensor([[start % 9, start // 9, 5]]), 8
        row, expected_passes, written = prefix[0].tolist(), 0, 0
        path = list(row)
        for _ in range(length):
            path.append(model.says(path, 0))
        ahead = 0  # drafts that will be accepted in the next pass
        while written < length:
            expected_passes += 1
            written += 1 + ahead
            so_far = path[: 3 + written - 1]  # what was read when the next drafts were made
            room = length - written - 1
            drafts_made = [model.says(so_far, k) for k in (1, 2, 3)][: max(0, room)]
            ahead = 0
            while ahead < len(drafts_made) and drafts_made[ahead] == path[3 + written + ahead]:
                ahead += 1
            right += ahead
        got, passes = decode_by_drafts(model, prefix, length)
        assert got[0].tolist() == path[3:] and passes == expected_passes, start
    assert right > 30


def test_the_script_counts_passes_of_a_run(tmp_path, capsys):
    run("--multi", "--steps", 1, "--out_dir", tmp_path / "multi"), run("--steps", 1, "--out_dir", tmp_path / "next")
    capsys.readouterr()
    main([str(tmp_path / "multi")])
    assert "50 paths of 4 tokens: " in capsys.readouterr().out
    for folders, fault in (([str(tmp_path / "next")], "give a run of --multi"), ([], "give the folder of one run")):
        with pytest.raises(SystemExit) as end:
            main(folders)
        assert end.value.code == 2 and fault in capsys.readouterr().err
