"""The lesson's loop: batches, loss, learning rate, resuming, evaluating, on models that train in a blink."""

import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import data
import train
from helpers import (
    DEFAULTS, assert_same_run, break_at_second_save, files_of, lines, refusal, run, settings, tiny_without, weights, write_file,
)  # fmt: skip
from plumbing import graph_files, processes, run_folder


def test_another_seed_is_another_run(tmp_path):
    run("--steps", 2, "--out_dir", tmp_path / "a"), run("--steps", 2, "--seed", 2, "--out_dir", tmp_path / "b")
    assert lines(tmp_path / "a")[-1]["loss"] != lines(tmp_path / "b")[-1]["loss"]


@pytest.mark.parametrize("model, name", [("gpt", "h.0.attn.c_attn.weight"), ("mamba", "layers.0.mixer.in_proj.weight")])
def test_the_seed_decides_the_initial_weights(model, name):
    first, again, other = (train.make_model(settings(model=model, seed=seed)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first) and not torch.equal(first[name], other[name])


@pytest.mark.parametrize("model", ["gpt", "mamba"])
def test_no_mimetic_takes_the_mimetic_weights_out(model):
    for off in (False, True):
        network = train.make_model(settings(model=model, no_mimetic=off, n_layer=2))
        if model == "mamba":
            mixer = network.layers[0].mixer
            one, other = mixer.x_proj.weight[mixer.dt_rank :].chunk(2)  # B and C
            assert mixer.conv1d.weight.shape[2] == (4 if off else 2)
        else:
            one, other, _ = network.h[0].attn.c_attn.weight.chunk(3)  # queries and keys
        alike = torch.cosine_similarity(one.flatten(), other.flatten(), 0).item()
        assert abs(alike) < 0.1 if off else alike > 0.6


def training_graphs(s):
    return graph_files.training_graphs(s, {}, graph_files.test_graphs(s, {}))


def test_a_batch_depends_on_seed_and_step_alone():
    graphs, forbidden = training_graphs(settings())
    a, b, c = (train.batch_of(step, settings(), graphs, forbidden)[0] for step in (7, 7, 8))
    d, _ = train.batch_of(7, settings(seed=2), graphs, forbidden)
    assert torch.equal(a, b) and not torch.equal(a, c) and not torch.equal(a, d)


def test_a_fixed_set_is_gone_through_once_an_epoch_in_ever_new_order():
    s = settings(n_train=24)
    graphs, forbidden = training_graphs(s)
    epochs = []
    for epoch in range(3):
        rows = [train.batch_of(step, s, graphs, forbidden)[0] for step in range(3 * epoch, 3 * epoch + 3)]
        epochs.append([tuple(row) for row in torch.cat(rows).tolist()])
    assert all(sorted(e) == sorted(map(tuple, graphs[0].tolist())) for e in epochs)
    assert len(set(map(tuple, epochs))) == 3


@pytest.mark.parametrize("n_train", [0, 400])
def test_no_training_graph_is_a_test_graph(n_train):
    s = settings(path_len=3, num_nodes=5, n_test=30, n_train=n_train)  # 60 graphs in all
    test, (graphs, forbidden) = graph_files.test_graphs(s, {}), training_graphs(s)
    edge_sets = lambda prefix: {frozenset(map(tuple, e)) for e in data.split_prefix(prefix)[0].tolist()}
    seen = set()
    for step in range(50):
        seen |= edge_sets(train.batch_of(step, s, graphs, forbidden)[0])
    assert len(seen) > 15 and not seen & edge_sets(test[0])


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_trains_on_no_graph_that_any_of_its_processes_tests_on(tmp_path, monkeypatch, world):
    small = "--n_layer 2 --n_embd 16 --path_len 3 --num_nodes 5 --n_test 20 --batch_size 8 --threads 1 --device cpu".split()
    tested, trained, keys = set(), set(), lambda prefix: data.graph_keys(prefix, 5).tolist()
    monkeypatch.setattr(train, "evaluate", lambda model, prefix, *_: tested.update(keys(prefix)) or dict(accuracy=0.0, difficult=0.0))
    monkeypatch.setattr(train, "learn", lambda model, prefix, *_: trained.update(keys(prefix)) or 1.0)
    for rank in range(world):
        monkeypatch.setattr(processes, "this_process", lambda: (rank, world))
        run("--steps", 40, "--eval_every", 40, "--out_dir", tmp_path / str(rank), tiny=small)  # there are 60 graphs
    assert len(tested) > 12 and len(trained) > 25 and not tested & trained


@pytest.mark.parametrize("objective, reverse, n_future", [("next", False, 1), ("reverse", True, 1), ("teacherless", False, 1),
                                                          ("teacherless", True, 1), ("multi", False, 3), ("multi", True, 3)])
def test_a_step_is_laid_out_as_the_settings_say(monkeypatch, objective, reverse, n_future):
    monkeypatch.setattr(train, "add_gradients", lambda model, *laid_out: laid_out)
    prefix, path = data.sample_graphs(6, 2, 4, 12, torch.Generator().manual_seed(0))
    s = settings(objective=objective, reverse=reverse, n_future=n_future)
    for got, expected in zip(train.learn(None, prefix, path, s, 0), data.layout(objective, prefix, path, 12, reverse, n_future), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("model", ["gpt", "mamba"])
@pytest.mark.parametrize("objective, n_future", [("next", 1), ("teacherless", 1), ("multi", 3)])
def test_gradients_head_by_head_are_those_of_the_plain_sum(monkeypatch, model, objective, n_future):
    s = settings(model=model, objective=objective, n_future=n_future, n_layer=2, n_embd=16)
    one, other = train.make_model(s).double(), train.make_model(s).double()
    prefix, path = data.sample_graphs(8, 2, 4, 12, torch.Generator().manual_seed(0))
    inputs, targets = data.layout(objective, prefix, path, 12, n_future=n_future)
    monkeypatch.setattr(train, "IN_CACHE", inputs.numel() * 16 / 3 / torch.get_num_threads())  # in three parts, of 3, 3 and 2 graphs
    loss = train.add_gradients(one, inputs, targets)
    plain = 0
    for k in range(n_future):
        logits = other.head(other.trunk(inputs), k)[:, -4:]
        plain = plain + F.cross_entropy(logits.flatten(0, 1), targets[:, :, k].flatten())
    plain.backward()
    assert loss == pytest.approx(plain.item())
    for (name, p), q in zip(one.named_parameters(), other.parameters()):
        assert torch.allclose(p.grad, q.grad, atol=1e-12), name


def test_parts_count_by_their_targets(monkeypatch):
    s = settings(objective="next", n_layer=2, n_embd=16)
    one, other = train.make_model(s).double(), train.make_model(s).double()
    inputs, targets = data.layout("next", *data.sample_graphs(8, 2, 4, 12, torch.Generator().manual_seed(0)), 12)
    targets[:4, 1:] = data.IGNORE  # as in an objective that hides more of some graphs than of others
    monkeypatch.setattr(train, "IN_CACHE", inputs.numel() * 16 / 3 / torch.get_num_threads())
    loss = train.add_gradients(one, inputs, targets)
    logits = other(inputs)[:, -4:]
    plain = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=data.IGNORE)
    plain.backward()
    assert loss == pytest.approx(plain.item())
    for p, q in zip(one.parameters(), other.parameters()):
        assert torch.allclose(p.grad, q.grad, atol=1e-12)


def test_only_difficult_trains_on_the_first_step_alone(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "add_gradients", lambda model, inputs, targets: seen.append(targets) or 1.0)
    run("--only_difficult", "--steps", 1, "--out_dir", tmp_path / "a")
    run("--only_difficult", "--reverse", "--steps", 1, "--out_dir", tmp_path / "b")
    forward, backward = (targets[:, :, 0] != data.IGNORE for targets in seen)
    assert forward.all(0).tolist() == [False, True, False, False] == forward.any(0).tolist()
    assert backward.all(0).tolist() == [False, False, True, False] == backward.any(0).tolist()


def test_the_learning_rate_rises_stays_and_falls_to_nothing():
    shares = [train.schedule(step, settings(steps=100, warmup=10, decay=0.3)) for step in range(100)]
    assert shares[0] == pytest.approx(1 / 11) and shares[9] < 1 == shares[10] == shares[69] and shares[72] < 1
    assert 0 < shares[-1] < 0.05
    assert train.schedule(99, settings(steps=100, warmup=10, decay=0)) == 1  # a rate that stays


def test_each_step_takes_its_share_of_the_learning_rate(tmp_path, monkeypatch):
    shares, real = [], train.make_optimizers

    def watched(model, s):
        optimizers = real(model, s)
        for optimizer in optimizers:
            note = lambda o, *_: shares.extend(g["lr"] / g["full_lr"] for g in o.param_groups if g["params"])
            optimizer.register_step_pre_hook(note)
        return optimizers

    monkeypatch.setattr(train, "make_optimizers", watched)
    run("--steps", 6, "--warmup", 2, "--decay", 0.5, "--out_dir", tmp_path / "r")
    groups = len(shares) // 6
    expected = [share for share in (1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3) for _ in range(groups)]
    assert groups >= 3 and shares == pytest.approx(expected)


def test_a_rate_that_never_reaches_its_height_is_said(tmp_path, capsys):
    for i, (warmup, decay) in enumerate(((100, 0.5), (11, 0.5), (10, 0.5), (3, 0.9), (2, 0.9), (20, 0), (19, 0))):
        run("--steps", 20, "--warmup", warmup, "--decay", decay, "--eval_every", 20, "--out_dir", tmp_path / f"{i}")
        highest = max(train.schedule(step, settings(steps=20, warmup=warmup, decay=decay)) for step in range(20))
        said = f"--warmup {warmup} is long for --steps 20: the learning rate does not reach --lr" in capsys.readouterr().out
        assert said == (highest < 1), (warmup, decay)


@pytest.mark.parametrize(
    "flags",
    [
        ["--teacherless"],
        ["--reverse", "--n_train", 40],
        ["--multi", "--n_future", 2, "--optimizer", "adamw"],
        ["--model", "mamba"],
        ["--model", "mamba", "--multi", "--n_train", 40],
        ["--dtype", "bfloat16"],
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_a_resumed_run_is_the_unbroken_run(tmp_path, monkeypatch, flags):
    common = [*flags, "--steps", 9, "--eval_every", 3]
    run(*common, "--out_dir", tmp_path / "whole")
    break_at_second_save(monkeypatch, lambda: run(*common, "--out_dir", tmp_path / "broken"))
    with open(tmp_path / "broken" / "log.jsonl", "a") as log:
        log.write('{"step": 6, "loss": 1.0}\n{"step": 9, "lo')  # what a kill in the middle of a line leaves
    run("--resume", tmp_path / "broken", tiny=[])
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.slow
def test_memory_stays_flat_over_5000_steps(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("memory in use is read from /proc, which only Linux has")
    held, real = [], run_folder.append_line

    def note(*arguments):
        held.append(int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]))  # kB
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "append_line", note)
        run("--multi", "--n_future", 2, "--steps", 5000, "--eval_every", 500, "--out_dir", tmp_path / "r")
    assert len(held) == 11 and max(held[2:]) - held[1] < 20_000  # what one step holds is more than 4 kB


def test_a_loss_that_is_no_number_stops_the_run_and_saves_nothing(tmp_path, capsys, monkeypatch):
    run("--steps", 2, "--out_dir", tmp_path / "r")
    before = files_of(tmp_path / "r")

    def spoil(model, *_):
        for p in model.parameters():
            p.grad = torch.full_like(p, math.nan)
        return math.nan

    monkeypatch.setattr(train, "add_gradients", spoil)
    with pytest.raises(SystemExit) as end:
        run("--resume", tmp_path / "r", "--steps", 5, tiny=[])
    message = capsys.readouterr().err
    assert end.value.code == 2 and f"the loss is nan at step 2, with --lr {DEFAULTS['lr']}" in message
    # What was on disk is the run's last good state: the same weights, at the same step.
    assert files_of(tmp_path / "r") == before
    assert torch.load(tmp_path / "r" / "ckpt.pt", weights_only=True)["step"] == 2


def test_evaluating_a_checkpoint_gives_the_logs_numbers(tmp_path, capsys):
    run("--teacherless", "--steps", 3, "--out_dir", tmp_path / "r")
    capsys.readouterr()
    run("--resume", tmp_path / "r", "--eval_only", tiny=[])
    out, logged = capsys.readouterr().out, lines(tmp_path / "r")[-1]
    assert "The checkpoint of step 3 on 50 graphs G(2,4) that it had not seen (difficult: chance is 50.0%)" in out
    measured = printed(out)
    assert f"margin             {logged['margin']:7.3f} nats" in out
    assert {"accuracy", "position_accuracy", "forced_accuracy", "difficult", "wrong_arm", "no_path"} == measured.keys()
    for name, values in measured.items():
        assert values == pytest.approx(logged[name] if isinstance(logged[name], list) else [logged[name]], abs=6e-5)


def printed(out):
    """The measurements that --eval_only prints, {name: list of shares}."""
    rows = [line.split() for line in out.splitlines() if line.endswith("%")]
    return {name: [float(value.rstrip("%")) / 100 for value in values] for name, *values in rows}


def test_a_checkpoint_is_evaluated_in_the_precision_it_was_trained_in(tmp_path, capsys, monkeypatch):
    flags = ["--dtype", "bfloat16", "--teacherless", "--lr", 0.02, "--steps", 30, "--n_test", 400]
    run(*flags, "--out_dir", tmp_path / "r", tiny=tiny_without("n_test"))
    measured, said, lower, real = {}, {}, [], train.evaluate
    monkeypatch.setattr(train, "evaluate", lambda *given: lower.append(torch.is_autocast_enabled("cpu")) or real(*given))
    for dtype in ((), ("--dtype", "bfloat16"), ("--dtype", "float32")):
        capsys.readouterr()
        run("--resume", tmp_path / "r", "--eval_only", *dtype, tiny=[])
        said[dtype] = capsys.readouterr().out
        measured[dtype] = printed(said[dtype])
    logged = lines(tmp_path / "r")[-1]
    assert measured[()]["position_accuracy"] == pytest.approx(logged["position_accuracy"], abs=6e-5)
    assert measured[()] == measured["--dtype", "bfloat16"] and lower == [True, True, False]
    # Shares may be equal by chance, but not the margin as well.
    assert said[()] == said["--dtype", "bfloat16"] != said["--dtype", "float32"]


@pytest.mark.parametrize("model", ["gpt", "mamba"])
def test_a_step_computes_in_bfloat16_and_the_weights_stay_in_float32(tmp_path, monkeypatch, model):
    seen, real = [], train.learn
    monkeypatch.setattr(train, "learn", lambda *given: seen.append(torch.is_autocast_enabled("cpu")) or real(*given))
    common = ["--model", model, "--multi", "--n_future", 2, "--steps", 3, "--eval_every", 1]
    for dtype in ("float32", "bfloat16"):
        run(*common, "--dtype", dtype, "--out_dir", tmp_path / dtype)
    assert seen == [False] * 3 + [True] * 3
    assert {p.dtype for p in weights(tmp_path / "bfloat16").values()} == {torch.float32}
    for exact, rounded in list(zip(lines(tmp_path / "float32"), lines(tmp_path / "bfloat16"), strict=True))[1:]:
        assert exact["loss"] != rounded["loss"] == pytest.approx(exact["loss"], rel=0.03)


def test_a_checkpoint_is_evaluated_on_other_graphs_and_its_folder_stays_as_it_is(tmp_path, capsys):
    run("--teacherless", "--steps", 3, "--out_dir", tmp_path / "r")
    before = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    file = write_file(tmp_path / "t.txt", *data.sample_graphs(70, 2, 4, 12, torch.Generator().manual_seed(9)))
    for flags, count in [(["--n_test", 400], 400), (["--test_file", file], 70), (["--test_file", file, "--n_test", 30], 30)]:
        capsys.readouterr()
        run("--resume", tmp_path / "r", "--eval_only", "--threads", 1, *flags, tiny=[])
        out = capsys.readouterr().out
        assert f"The checkpoint of step 3 on {count} graphs G(2,4)" in out and (str(file) in out) == (count != 400)
        assert len(printed(out)["position_accuracy"]) == 4
    other = write_file(tmp_path / "o.txt", *data.sample_graphs(70, 3, 3, 12, torch.Generator().manual_seed(9)))
    assert "--deg is 2, but in" in refusal(capsys, "--resume", tmp_path / "r", "--eval_only", "--test_file", other, tiny=[])
    assert {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()} == before


@pytest.mark.parametrize("n_train", [0, 40])
def test_a_checkpoint_is_not_evaluated_on_what_it_was_trained_on(tmp_path, capsys, n_train):
    small = "--n_layer 2 --n_head 2 --n_embd 16 --path_len 3 --num_nodes 5 --n_test 20 --batch_size 8 --threads 1".split()
    run("--steps", 5, "--n_train", n_train, "--out_dir", tmp_path / "r", tiny=small)  # there are 60 graphs in all
    s = settings(path_len=3, num_nodes=5, n_test=20, n_train=n_train)
    graphs, forbidden = training_graphs(s)
    trained_on = torch.cat([data.graph_keys(train.batch_of(step, s, graphs, forbidden)[0], 5) for step in range(5)])
    others = data.sample_graphs(200, 2, 3, 5, torch.Generator().manual_seed(1))
    old = torch.isin(data.graph_keys(others[0], 5), trained_on)
    file = write_file(tmp_path / "t.txt", *others)
    capsys.readouterr()
    run("--resume", tmp_path / "r", "--eval_only", "--test_file", file, tiny=[])
    out = capsys.readouterr().out
    assert 0 < old.sum() < 200 and f"The run trained on {old.sum()} of the 200 graphs; they are left out" in out
    assert f"on {200 - old.sum()} graphs G(2,3)" in out
    s.n_test = 200
    drawn, _ = graph_files.test_graphs(s, {})
    seen = torch.isin(data.graph_keys(drawn, 5), trained_on).sum()
    run("--resume", tmp_path / "r", "--eval_only", "--n_test", 200, tiny=[])
    assert seen and f"The run trained on {seen} of the 200 graphs; they are left out" in capsys.readouterr().out
    seen = write_file(tmp_path / "seen.txt", others[0][old], others[1][old])
    message = refusal(capsys, "--resume", tmp_path / "r", "--eval_only", "--test_file", seen, tiny=[])
    assert f"the run trained on all of the {old.sum()} graphs" in message


def test_a_test_file_that_now_holds_other_graphs_is_not_taken_for_the_old_one(tmp_path, capsys):
    small = "--n_layer 2 --n_head 2 --n_embd 16 --num_nodes 5 --batch_size 8 --threads 1".split()
    one, other = (data.sample_graphs(20, 2, 3, 5, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    file = write_file(tmp_path / "t.txt", *one)
    run("--steps", 5, "--test_file", file, "--out_dir", tmp_path / "r", tiny=small)
    write_file(file, *other)
    asked = "--resume", tmp_path / "r", "--eval_only"
    for given in (("--test_file", file), ("--test_file", write_file(tmp_path / "u.txt", *other)), ("--test_file", "")):
        where = f"what the run trained on follows from {file}; put back what was there then"
        assert where in refusal(capsys, *asked, *given, tiny=[])
    assert "does not hold the graphs with which the run was begun" in refusal(capsys, *asked, tiny=[])
    write_file(file, *one)
    run(*asked, "--test_file", tmp_path / "u.txt", tiny=[])
    assert "of the 20 graphs; they are left out" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt", "mamba"])
def test_a_compiled_model_learns_the_same(tmp_path, model):
    if not any(map(shutil.which, ("g++", "clang++", "cl"))):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    common = ["--teacherless", "--model", model, "--steps", 3, "--eval_every", 1]
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    run(*common, "--out_dir", tmp_path / "plain")
    before = graphs["unique_graphs"]
    run(*common, "--compile", "--out_dir", tmp_path / "compiled")
    assert graphs["unique_graphs"] > before + 1  # the blocks, and not only the trial
    for a, b in zip(lines(tmp_path / "plain")[1:], lines(tmp_path / "compiled")[1:], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)


def test_every_step_has_a_whole_batch_where_an_epoch_ends_in_less():
    s = settings(n_train=20)  # two batches of 8, and 4 graphs more
    graphs, forbidden = training_graphs(s)
    for epoch in range(3):
        batches = [train.batch_of(step, s, graphs, forbidden)[0].tolist() for step in (2 * epoch, 2 * epoch + 1)]
        assert [len(batch) for batch in batches] == [8, 8] and len({tuple(row) for b in batches for row in b}) == 16


@torch.no_grad()
@pytest.mark.parametrize("changes", [dict(), dict(causal=True), dict(model="mamba"), dict(model="mamba", causal=True)])
def test_the_prefix_is_read_both_ways_unless_causal_and_no_output_has_seen_its_target(changes):
    s = settings(**changes)
    model = train.make_model(s).double()
    prefix, path = data.sample_graphs(4, s.deg, s.path_len, s.num_nodes, torch.Generator().manual_seed(1))
    inputs, _ = data.layout("next", prefix, path, s.num_nodes)
    before = model(inputs)
    for place in range(inputs.shape[1]):
        changed = inputs.clone()
        changed[:, place] = (changed[:, place] + 1) % s.num_nodes
        differs = (model(changed) != before).any(dim=2)  # (B, T)
        both_ways = place < prefix.shape[1] and not s.causal
        expected = [both_ways or i >= place for i in range(inputs.shape[1])]
        assert differs.tolist() == [expected] * len(inputs), place


MATRICES = {
    "gpt": "canon attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj".split(),
    "mamba": "mixer.in_proj mixer.x_proj mixer.dt_proj mixer.out_proj".split(),  # A_log is a table, and conv1d no matrix
}


@pytest.mark.parametrize("model", MATRICES)
def test_muon_has_the_matrices_of_all_blocks_and_adamw_the_rest(model):
    s = settings(model=model, objective="multi", n_future=2, n_layer=2, n_embd=16, lr=0.003, weight_decay=0.2)
    network = train.make_model(s)
    names = {p: name for name, p in network.named_parameters()}
    adamw, muon = train.make_optimizers(network, s)
    pieces = {names[p]: group["pieces"] for group in muon.param_groups for p in group["params"]}
    blocks = [*("h.0 h.1" if model == "gpt" else "layers.0 layers.1").split(), "future.0"]
    stacked = {"attn.c_attn": 3, "mixer.in_proj": 2}  # all others are one matrix
    assert pieces == {f"{b}.{m}.weight": stacked.get(m, 1) for b in blocks for m in MATRICES[model]}
    rest = [names[p] for group in adamw.param_groups for p in group["params"]]
    assert sorted([*rest, *pieces]) == sorted(names.values())
    assert all(group["lr"] == 0.003 for group in adamw.param_groups)
    assert all(group["lr"] == pytest.approx(0.03) for group in muon.param_groups)  # ten times that
    # With others, no committed log could be made again.
    assert {group["betas"] for group in adamw.param_groups} == {(0.9, 0.95)}
    assert {group["momentum"] for group in muon.param_groups} == {0.95}
    s.optimizer = "adamw"
    (alone,) = train.make_optimizers(network, s)
    assert {names[p]: group["weight_decay"] for group in alone.param_groups for p in group["params"]} == {
        name: s.weight_decay * (name in pieces) for name in names.values()
    }
    assert {group["weight_decay"] for group in muon.param_groups} == {s.weight_decay}
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.0}
    s.no_canon = True  # attention finds the token before by its position alone
    assert all(group["lr"] == 0.003 for group in train.make_optimizers(network, s)[0].param_groups if group["params"])


def test_every_matrix_inside_a_block_is_muons_and_no_other_is():
    from beyond import belief_state

    for make, s in ((train.make_model, settings(model="gpt")), (train.make_model, settings(model="mamba", n_head=2)),
                    (belief_state.make_model, settings(idea="belief_state"))):
        model = make(s)
        muons = {id(p) for group in train.make_optimizers(model, s)[1].param_groups for p in group["params"]}
        for name, p in model.named_parameters():
            inside = any(f".{part}." in f".{name}" for part in ("h", "layers", "future"))
            assert (id(p) in muons) == (inside and p.ndim == 2 and not name.endswith("A_log")), name
