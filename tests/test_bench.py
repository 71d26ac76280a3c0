"""bench.py: every row runs on tiny sizes, the peers do the same work as ours, and the ratios add up."""

import json
import sys

import pytest
import torch

import data
import evaluate
import train
from helpers import HOME, settings
from model_gpt import GPT, GPTConfig

sys.path.insert(0, str(HOME / "results"))
import bench  # noqa: E402

TINY_RUN = ("--n_layer 2 --n_head 2 --n_embd 16 --path_len 4 --num_nodes 12 --n_test 60 --batch_size 8 --threads 1"
            " --device cpu --steps 1").split()


def plain_and_ours():
    torch.manual_seed(1)
    ours = GPT(GPTConfig(vocab_size=16, block_size=24, n_layer=2, n_head=2, n_embd=8, canon=False)).double()
    plain = bench.PlainGPT(ours.config).double()
    plain.load_state_dict(ours.state_dict())
    return plain, ours


def some_graphs():
    return data.sample_graphs(6, 2, 4, 12, torch.Generator().manual_seed(2))


# ---------------------------------------------------------------------------------------------------------
# The protocol


def test_compare_takes_turns_and_divides_pair_by_pair(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])

    def worker(name, *durations):
        durations = iter(durations)

        def work():
            calls.append(name)
            clock[0] += next(durations)

        return work

    # The machine is four times slower for the second pair, in which both sides suffer.
    measured = bench.compare(worker("ours", 9, 1, 4, 1), worker("peer", 9, 2, 8, 3), runs=3)
    assert measured == {"ours_seconds": 1, "peer_seconds": 3, "ratio": 2, "runs": 3}
    assert calls == ["ours", "peer"] * 4
    assert bench.compare(worker("ours", 9, 1, 1), worker("peer", 41, 30, 40), runs=5)["runs"] == 2
    once = bench.compare(worker("ours", 10), worker("peer", 120), runs=5)
    assert once == {"ours_seconds": 10, "peer_seconds": 120, "ratio": 12, "runs": 1}


def test_every_size_that_is_measured_is_one_that_the_models_can_have(monkeypatch):
    from types import SimpleNamespace

    measured = dict(ours_seconds=8.0, peer_seconds=1.0, ratio=1 / 8, runs=5)
    monkeypatch.setattr(bench, "compare", lambda *_: measured)
    rows = list(bench.bench_size(SimpleNamespace(quick=False, runs=5)))
    assert len(rows) == 8 and all(0.99 < row["exponent"] < 1.6 for row in rows)  # 8 times the time, 4 to 8 times the size


def test_megabytes_counts_what_a_fresh_process_takes(monkeypatch):
    if bench.sys.platform != "linux":
        pytest.skip("peak memory is read from /proc, which only Linux has")
    assert 75 < bench.megabytes("torch.ones(80 * 2**18)") < 100


# ---------------------------------------------------------------------------------------------------------
# The peers do the same work


def test_plain_gpt_has_the_logits_and_gradients_of_ours():
    plain, ours = plain_and_ours()
    inputs, targets = data.layout("next", *some_graphs(), 12)
    torch.testing.assert_close(plain(inputs), ours(inputs), rtol=1e-10, atol=1e-10)
    assert bench.plain_gradients(plain, inputs, targets) == pytest.approx(train.add_gradients(ours, inputs, targets))
    gradients = [{name: p.grad for name, p in model.named_parameters()} for model in (plain, ours)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_decoding_without_a_cache_writes_the_same():
    plain, ours = plain_and_ours()
    prefix, _ = some_graphs()
    assert torch.equal(bench.decode_without_cache(plain, prefix, 4), evaluate.decode(ours, prefix, 4, "next", 12))


def test_pytorch_optimizers_share_the_parameters_out_as_ours():
    _, model = plain_and_ours()
    s = settings(optimizer="muon", lr=1e-3)
    for ours, theirs in zip(train.make_optimizers(model, s), bench.pytorch_optimizers(model, s), strict=True):
        ids = [{id(p) for group in o.param_groups for p in group["params"]} for o in (ours, theirs)]
        assert ids[0] == ids[1] and ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]


def test_what_memory_is_measured_of_runs():
    bench.gradients_of_heads(2, 2, 9)
    bench.gradients_of_heads(2, 2, 9, naive=True)
    bench.gradients_of_scan("fast", 2, 5, 6, 3)


@pytest.mark.parametrize("package", ["transformers", "mambapy"])
def test_installed_peers_give_logits(package):
    pytest.importorskip(package, reason=f"the comparison needs {package}")
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    for name in ("transformers",) if package == "transformers" else ("mambapy pscan", "mambapy loop"):
        _, logits_of = bench.mamba_named(name, V=7, C=16, layers=1, N=4)
        assert logits_of(tokens).shape == (2, 5, 7)
    if package == "transformers":
        assert bench.hugging_face_gpt(plain_and_ours()[1].config)(tokens).logits.shape == (2, 5, 16)


# ---------------------------------------------------------------------------------------------------------
# The rows and their file


def test_every_part_gives_its_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "python", lambda *words: "1024")  # processes are slow to start; the test above has one
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(bench.torch.cuda, "is_available", lambda: False)
    bench.main(["--quick", "--threads", "1", "--out", str(tmp_path / "new" / "rows.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "new" / "rows.jsonl").read_text().splitlines()]
    count = {name: sum(r["name"] == name for r in rows) for name in bench.PARTS}
    mamba, multi = (3, 3) if bench.sys.platform == "linux" else (2, 1)  # memory is measured on Linux alone
    assert count == dict(data=1, gpt=3, mamba=mamba, multi=multi, decode=5, muon=1, size=8, start=2)
    for r in rows:
        kind = "megabytes" if "ours_megabytes" in r else "seconds"
        assert r["ratio"] > 0 and r[f"ours_{kind}"] > 0 and r[f"peer_{kind}"] > 0
        if r["runs"] == 1:  # one pair, so that the medians are its own numbers
            assert r["ratio"] == pytest.approx(r[f"peer_{kind}"] / r[f"ours_{kind}"])
        assert r["threads"] == 1 and r["setting"] and r["peer"]
    shown = capsys.readouterr().out
    assert all(r["setting"] in shown and f"{r['ratio']:.2f}x" in shown for r in rows)
    assert "transformers is not installed" in shown and "mambapy is not installed" in shown


def test_a_part_replaces_its_own_rows_only(tmp_path):
    out = tmp_path / "rows.jsonl"
    for part in ("data", "muon", "data"):
        bench.main([part, "--quick", "--threads", "1", "--out", str(out)])
    assert [json.loads(line)["name"] for line in out.read_text().splitlines()] == ["muon", "data"]


def test_drafts_of_a_trained_model(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "python", lambda *words: "1024")
    run, out = tmp_path / "run", tmp_path / "rows.jsonl"
    train.main([*TINY_RUN, "--multi", "--out_dir", str(run)])
    bench.main(["multi", "--quick", "--threads", "1", "--run", str(run), "--out", str(out)])
    last = json.loads(out.read_text().splitlines()[-1])
    assert "trained" in last["setting"] and 0.8 <= last["tokens_a_pass"] <= 2


def test_bad_input_is_one_sentence(tmp_path, capsys):
    train.main([*TINY_RUN, "--out_dir", str(tmp_path / "next")])
    capsys.readouterr()
    for flags, words in (
        (["gtp"], "invalid choice: 'gtp'"),
        (["--threads", "0"], "--threads is 0; give 1 to 1024"),
        (["--threads", "two"], "invalid int value: 'two'"),
        (["multi", "--run", str(tmp_path)], "does not exist"),
        (["multi", "--run", str(tmp_path / "next")], "has the objective next"),
        (["data", "--quick", "--out", str(tmp_path)], "is no file; give the name of one"),
    ):
        with pytest.raises(SystemExit) as end:
            bench.main(flags)
        message = capsys.readouterr().err
        assert end.value.code == 2 and words in message and message.count("\n") == 1
