"""The ideas of beyond/: each loss beside a small computation of its own in float64, and each file a run of its own."""

import importlib
import json
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import data
import test_evaluate
import train
from beyond import (arm_lengths, belief_state, diffusion, future_states, hybrid, joint_tokens, masked, mixture, next_latent, ranking, scratchpad,
                    second_last, semformer, token_order)
from evaluate import evaluate
from helpers import HOME, TINY, assert_same_run, break_at_second_save, lines, refusal, settings

IDEAS = [belief_state, hybrid, token_order, next_latent, joint_tokens, semformer, scratchpad, masked, diffusion,
         second_last, ranking, mixture, future_states, arm_lengths]
N, L = 12, 4


def graphs(count=6, seed=1):
    return data.sample_graphs(count, 2, L, N, torch.Generator().manual_seed(seed))


def model_of(idea):
    """The idea's model, tiny, in float64, with weights that make every output differ."""
    s = settings(idea=idea.__name__.rpartition(".")[2], n_layer=2, n_head=2, n_embd=16, seed=3)
    model = idea.make_model(s).double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=torch.float64)
    return model, s


def softmax(scores):
    """Plain softmax of a list."""
    top = max(scores)
    exps = [math.exp(x - top) for x in scores]
    return [x / sum(exps) for x in exps]


def cross_entropy(target, logits):
    return -sum(t * math.log(p) for t, p in zip(target, softmax(logits)) if t > 0)


def test_token_order_is_next_token_and_a_ranking_of_what_comes():
    model, s = model_of(token_order)
    prefix, path = graphs()
    inputs, _ = data.layout("next", prefix, path, N)
    hidden = model.ln_f(model.h[-1](model.trunk(inputs), L))
    V, next_token, order = N + 4, [], []
    for b, row in enumerate(path.tolist()):
        for i in range(L):
            logits = (hidden[b, i] @ model.wte.weight.T).tolist()
            ranks = (hidden[b, i] @ model.order.weight.T).tolist()
            next_token.append(cross_entropy([float(v == row[i]) for v in range(V)], logits))
            scores = [L - (row.index(v) - i) if v in row[i:] else -math.inf for v in range(V)]
            order.append(cross_entropy(softmax(scores), ranks))
    got = token_order.losses(model, inputs, path)
    assert got[0].item() == pytest.approx(sum(next_token) / len(next_token))
    assert got[1].item() == pytest.approx(sum(order) / len(order), rel=1e-6)  # targets are float32


def test_ranking_asks_each_output_for_the_order_of_what_comes_above_all_else():
    model, s = model_of(ranking)
    prefix, path = graphs()
    inputs, _ = data.layout("next", prefix, path, N)
    logits, pairs = model(inputs, num_outputs=L), []
    for b, row in enumerate(path.tolist()):
        for t in range(L):
            coming, score = row[t:], logits[b, t].tolist()
            for i, first in enumerate(coming):
                below = [v for v in range(N + 4) if v not in coming[: i + 1]]
                pairs += [math.log(1 + math.exp(score[v] - score[first])) for v in below]
    assert ranking.ranking_loss(logits, path).item() == pytest.approx(sum(pairs) / len(pairs))


def test_next_latent_predicts_every_later_state_from_each():
    model, s = model_of(next_latent)
    prefix, path = graphs()
    inputs, _ = data.layout("next", prefix, path, N)
    with torch.no_grad():
        last, e = model.h[-1](model.trunk(inputs), L), model.wte(path)
        h = (last - last.mean(dim=2, keepdim=True)) / (last.var(dim=2, keepdim=True, correction=0) + 1e-5).sqrt()
        logits = lambda state: ((state * model.ln_f.weight + model.ln_f.bias) @ model.wte.weight.T).tolist()
        torch.testing.assert_close(logits(h[0, 0]), model(inputs, num_outputs=L)[0, 0].tolist())
        l1, kl = [[] for _ in range(L - 2)], [[] for _ in range(L - 2)]  # a list for each step of the roll-outs
        for b in range(len(path)):
            for first in range(L):
                state = h[b : b + 1, first : first + 1]
                for step, t in enumerate(range(first, min(first + L - 2, L - 1))):
                    state = model.predictor(state, e[b : b + 1, t : t + 1])
                    gap = (state[0, 0] - h[b, t + 1]).abs()
                    l1[step].append(torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean().item())
                    p, q = (softmax(logits(x)) for x in (h[b, t + 1], state[0, 0]))
                    kl[step].append(sum(a * math.log(a / c) for a, c in zip(p, q)))
    next_token, *got = next_latent.losses(model, inputs, path)
    for part, steps in zip(got, (l1, kl), strict=True):
        assert part.item() == pytest.approx(sum(sum(step) / len(step) for step in steps) / (L - 2))
    assert next_token.item() == pytest.approx(F.cross_entropy(model(inputs, num_outputs=L).flatten(0, 1), path.flatten()).item())


def test_next_latent_moves_neither_the_true_state_nor_the_frozen_head():
    """Nudge the unembedding for one part of the loss at a time: only by way of the states may it change."""
    model, s = model_of(next_latent)
    prefix, path = graphs()
    inputs, _ = data.layout("next", prefix, path, N)
    model.lm_head.weight = torch.nn.Parameter(model.wte.weight.detach().clone())  # no longer tied, so it can be told apart
    next_token, l1, kl = next_latent.losses(model, inputs, path)
    for loss in (l1, kl):
        names = [name for name, _ in model.named_parameters()]
        grads = dict(zip(names, torch.autograd.grad(loss, model.parameters(), retain_graph=True, allow_unused=True)))
        assert grads["lm_head.weight"] is None
        assert grads["predictor.mlp.0.weight"].abs().max() > 0 and grads["h.0.attn.c_attn.weight"].abs().max() > 0
    # A true state gets no gradient: the last one is a goal only, so it moves next_token's loss alone.
    seen = {}
    hook = model.h[-1].register_forward_hook(lambda module, given, out: out.retain_grad() or seen.update(h=out))
    _, l1, kl = next_latent.losses(model, inputs, path)
    hook.remove()
    (l1 + kl).backward()
    assert not seen["h"].grad[:, -1].any() and seen["h"].grad[:, 0].any()


def test_joint_tokens_sees_one_state_and_the_revealed_tokens():
    model, s = model_of(joint_tokens)
    prefix, path = graphs(3)
    inputs, _ = data.layout("next", prefix, path, N)
    later = []
    with torch.no_grad():
        for b, row in enumerate(path.tolist()):
            h = model.ln_f(model.h[-1](model.trunk(inputs[b : b + 1]), L))  # (1, L, C)
            for t in range(L):
                for ahead in range(t + 1, L):  # named from the state before token t, and tokens t to ahead - 1
                    told = torch.cat([h[:, t : t + 1], model.wte(path[b : b + 1, t:ahead])], dim=1)
                    later.append(-math.log(softmax(model.head(told, 1)[0, -1].tolist())[row[ahead]]))
    next_token, got = joint_tokens.losses(model, inputs, path)
    assert len(later) == 3 * L * (L - 1) / 2 and got.item() == pytest.approx(sum(later) / len(later))
    logits = model(inputs, L)
    assert next_token.item() == pytest.approx(torch.nn.functional.cross_entropy(logits.flatten(0, 1), path.flatten()).item())


def test_semformer_plans_before_it_is_shown_the_path():
    model, s = model_of(semformer)
    prefix, path = graphs()
    auto, Z = model.autoencoder, semformer.PLANNING
    with torch.no_grad():
        next_token, again, gaps = [], [], []
        for b, row in enumerate(path.tolist()):
            sequence = torch.tensor([prefix[b].tolist() + [N + 3] * Z + row[:-1]])
            h = model.ln_f(model.h[-1](model.trunk(sequence), sequence.shape[1]))[0]
            P = prefix.shape[1]
            of_path = model.ln_f(model.h[-1](model.trunk(path[b : b + 1]), L))
            seen = auto.look(auto.queries[None], of_path, of_path)[0]
            latents = auto.norm(auto.queries + seen) @ auto.squeeze.weight.T  # (1, Z, 32)
            x = torch.cat([latents @ auto.unfold.weight.T + auto.unfold.bias, auto.decoder.wte(path[b : b + 1])], dim=1)
            x = x + auto.decoder.wpe.weight[: Z + L]
            for block in auto.decoder.h:
                x = block(x, Z + L)
            for i in range(L):
                next_token.append(-math.log(softmax(model.lm_head(h[P + Z - 1 + i]).tolist())[row[i]]))
                logits = auto.decoder.lm_head(auto.decoder.ln_f(x[0, Z - 1 + i])).tolist()
                again.append(-math.log(softmax(logits)[row[i]]))
            gap = (h[P : P + Z] @ model.say.weight.T - latents[0]).abs()
            gaps.append(torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean().item())
    got = [part.item() for part in semformer.losses(model, prefix, path, N)]
    assert got == pytest.approx([sum(part) / len(part) for part in (next_token, again, gaps)])
    # What the planning tokens must say is settled by the autoencoder alone, and does not move it or the encoder.
    model.zero_grad()
    semformer.losses(model, prefix, path, N)[2].backward()
    assert all(p.grad is None for p in auto.parameters()) and model.say.weight.grad.any()
    model.zero_grad()
    semformer.losses(model, prefix, path, N)[1].backward()
    assert all(p.grad is None for p in model.h.parameters()) and auto.squeeze.weight.grad.any()


def test_belief_states_name_the_tokens_on_both_sides_of_what_is_left_out():
    model, s = model_of(belief_state)
    prefix, path = graphs(3)
    total, pairs = 0.0, 0
    with torch.no_grad():
        for b in range(3):
            row = path[b].tolist()
            for i in range(L):
                for j in range(L - i):  # i tokens from the start are seen, and j from the end
                    seen = torch.tensor([prefix[b].tolist() + row[:i]])
                    behind = torch.tensor([[N + 3] + row[::-1][:j]])
                    f = belief_state.states(model, seen, 1)[0, 0]
                    g = belief_state.states(model.backward_encoder, behind, 1)[0, 0]
                    logits = model.join(torch.cat([f, g])).view(2, -1).tolist()
                    for side, token in enumerate((row[i], row[L - 1 - j])):
                        total -= math.log(softmax(logits[side])[token])
                    pairs += 1
    assert pairs == 3 * L * (L + 1) / 2
    assert belief_state.loss_of(model, prefix, path, N).item() == pytest.approx(total / (2 * pairs))


def test_the_scratchpad_is_the_path_back_and_then_forth():
    prefix, path = graphs(2)
    assert scratchpad.with_scratchpad(path).tolist() == [[*row[::-1], *row] for row in path.tolist()]
    model, s = model_of(scratchpad)
    measured = scratchpad.evaluate(model, prefix, path, s)
    assert measured.keys() >= {"accuracy", "scratchpad_accuracy", "position_accuracy", "forced_accuracy", "difficult"}


def test_masked_trains_on_what_is_hidden_and_shows_the_rest():
    model, s = model_of(masked)
    prefix, path = graphs()
    hidden = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 1]]).bool()
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)[:, None]
    total = 0.0
    for b in range(6):
        shown = [N + 3 if gone else token for token, gone in zip(path[b].tolist(), hidden[b].tolist())]
        sequence = torch.tensor([prefix[b].tolist() + shown + [N + 3] * L])
        logits = model(sequence)[0, -L:].tolist()
        for i in range(L):
            if hidden[b, i]:
                total += weight[b].item() * -math.log(softmax(logits[i])[path[b, i]])
    assert masked.loss_of(model, prefix, path, hidden, weight, N).item() == pytest.approx(total / (6 * L))


def test_holes_come_in_every_share_and_depend_on_seed_and_step():
    s = settings(seed=5)
    path = graphs(4000)[1]
    hidden, share = masked.holes(path, s, 7)
    assert 0 < share.min() and share.max() <= 1 and abs(share.mean() - 0.5) < 0.02
    few, many = (hidden[(share[:, 0] > low) & (share[:, 0] < low + 0.2)].double().mean() for low in (0.1, 0.7))
    assert abs(few - 0.2) < 0.03 and abs(many - 0.8) < 0.03
    assert torch.equal(hidden, masked.holes(path, s, 7)[0]) and not torch.equal(hidden, masked.holes(path, s, 8)[0])


def test_diffusion_writes_the_surest_hole_first(monkeypatch):
    """A made model that is surest of the last hole, and of each token only once the one after it is written."""
    prefix, path = graphs(5)

    def logits_of(model, p, shown, hidden, num_nodes):
        sure = torch.zeros(*shown.shape, N + 4)
        for b in range(len(shown)):
            for i in range(L):
                known = i == L - 1 or not hidden[b, i + 1]
                sure[b, i, path[b, i]] = 5.0 if known else 1.0
        return sure

    monkeypatch.setattr(diffusion, "logits_of", logits_of)
    written, order = diffusion.decode(None, prefix, L, N)
    assert torch.equal(written, path) and order.tolist() == [[4, 3, 2, 1]] * 5


def test_what_is_written_token_by_token_is_measured_as_train_py_does():
    """On made models: one plans, one only cheats, one takes the right first step and follows any arm."""
    for choose in (test_evaluate.plan, test_evaluate.wrong_arm, lambda arms, goal: arms[0]):
        rule, s = test_evaluate.Rule(choose), settings(deg=3, path_len=4, num_nodes=test_evaluate.N)
        next_tokens = lambda prefix, so_far: rule(torch.cat([prefix, so_far], dim=1), so_far.shape[1] + 1).argmax(dim=2)
        measured = belief_state.measure_written(next_tokens, *test_evaluate.graphs(), s)
        expected = evaluate(rule, *test_evaluate.graphs(), s)
        assert measured == {name: pytest.approx(expected[name]) for name in measured} and measured["cheat_rate"] == 1
        assert expected.keys() - measured.keys() == {"margin", "wrong_arm", "no_path"}
    no_node = lambda prefix, so_far: torch.full((len(prefix), so_far.shape[1] + 1), test_evaluate.N)  # always `|`
    assert belief_state.measure_written(no_node, *test_evaluate.graphs(), s)["cheat_rate"] == 0


def test_second_last_learns_the_next_token_and_a_hole():
    model, s = model_of(second_last)
    s.path_len, s.num_nodes = L, N
    prefix, path = graphs()
    holes = set()
    for step in range(12):
        model.zero_grad()
        loss = second_last.learn(model, prefix, path, s, step)
        next_token, hole = [], {i: [] for i in range(L - 1)}
        with torch.no_grad():
            for p, row in zip(prefix.tolist(), path.tolist()):
                logits = model(torch.tensor([p + row[:-1]]))[0, -L:].tolist()
                next_token += [-math.log(softmax(logits[i])[row[i]]) for i in range(L)]
                for i in hole:
                    logits = model(torch.tensor([p + row[:i] + [N + 3, row[i + 1]]]))[0, -1].tolist()
                    hole[i].append(-math.log(softmax(logits)[row[i]]))
        means = [sum(losses) / len(path) + sum(next_token) / len(next_token) for losses in hole.values()]
        holes.add(min(range(L - 1), key=lambda i: abs(means[i] - loss)))
        assert min(abs(mean - loss) for mean in means) < 1e-9 and model.wte.weight.grad.any()
    assert holes == set(range(L - 1))  # each place is drawn in some step


def test_a_draft_is_refined_from_its_end_and_the_end_is_kept(monkeypatch):
    """A made model that knows each node's parent: a draft that ends in the goal becomes the path; one on a wrong arm stays."""
    prefix, path = graphs(50)
    arms = data.trace_arms(prefix, 2, N)
    wrong = torch.where((arms[:, :1] == path[:, None]).all(2), arms[:, 1], arms[:, 0])

    def fill_hole(model, p, draft, i, num_nodes):
        is_child = arms[:, :, 1:] == draft[:, i + 1, None, None]
        parents = torch.where(is_child, arms[:, :, :-1], 0).sum(dim=(1, 2))
        return torch.nn.functional.one_hot(parents, N + 4).float()

    monkeypatch.setattr(second_last, "fill_hole", fill_hole)
    draft = torch.cat([wrong[:, :-1], path[:, -1:]], dim=1)
    assert torch.equal(second_last.refine(None, prefix, draft, N), path) and not torch.equal(draft, path)
    assert torch.equal(second_last.refine(None, prefix, wrong, N), wrong)


def test_hybrid_takes_turns(monkeypatch):
    seen = []
    monkeypatch.setattr(train, "learn", lambda model, prefix, path, s, step: seen.append(s.objective))
    for step in range(4):
        hybrid.learn(None, None, None, settings(), step)
    assert seen == ["teacherless", "next", "teacherless", "next"]


def test_mixture_hides_nothing_or_random_tokens_or_an_end_in_turns(monkeypatch):
    seen = []
    monkeypatch.setattr(train, "add_gradients", lambda model, inputs, targets: seen.append((inputs, targets)))
    prefix, path = graphs(3000)
    s, P = settings(path_len=L, num_nodes=N), prefix.shape[1]
    for step in range(3):
        mixture.learn(None, prefix, path, s, step)
    dummy = N + data.DUMMY
    for inputs, targets in seen:  # only the path's own tokens are hidden, and all of them are predicted
        assert torch.equal(inputs[:, :P], prefix) and torch.equal(targets[:, :, 0], path)
        assert ((inputs[:, P:] == path[:, :-1]) | (inputs[:, P:] == dummy)).all()
    none, random, end = ((inputs[:, P:] == dummy) for inputs, _ in seen)
    assert not none.any() and abs(random.double().mean() - 0.5) < 0.03
    kinds = {tuple(row) for row in random.tolist()}
    assert len(kinds) == 2 ** (L - 1)  # every pattern of holes
    places = end.sum(dim=1)  # L - 1 places, each equally likely to be the first that is hidden
    assert (end == (torch.arange(L - 1) >= (L - 1 - places)[:, None])).all()
    assert all(abs((places == k).double().mean() - 1 / (L - 1)) < 0.05 for k in range(1, L))


def test_future_states_are_decoded_behind_what_was_read():
    model, s = model_of(future_states)
    prefix, path = graphs(3)
    with torch.no_grad():
        for i in range(L - 1):
            total = []
            for p, row in zip(prefix.tolist(), path.tolist()):
                x = model.wte(torch.tensor([p + row[:i]])) + model.wpe.weight[: len(p) + i]
                x = model.h[0](x, len(p) + i)  # one layer below the middle of two, and one above
                drafts = (x[0, -1] @ model.pseudo.weight.T + model.pseudo.bias).view(3, -1)
                x = model.ln_f(model.h[1](torch.cat([x, drafts[None]], dim=1), len(p) + i + 3))[0]
                named = [-math.log(softmax(model.lm_head(x[len(p) + i - 1 + k]).tolist())[row[i + k]]) for k in range(min(4, L - i))]
                total += named
            assert future_states.draft_loss(model, prefix, path, i).item() == pytest.approx(sum(total) / len(total))
    measured = future_states.evaluate(model, prefix, path, s)
    assert len(measured["drafts"]) == L - 1 and measured.keys() > {"accuracy", "cheat_rate"}


@pytest.mark.parametrize("deg", [2, 3])
def test_a_tail_that_moves_leaves_a_graph_of_the_same_edges_with_one_path_to_the_goal(deg):
    l, num_nodes = 5, 20
    s = settings(deg=deg, path_len=l, num_nodes=num_nodes)
    prefix, path = data.sample_graphs(20, deg, l, num_nodes, torch.Generator().manual_seed(4))
    for n in range(l - 1):
        for longer in (False, True):
            moved, new_path = arm_lengths.move_tail(prefix, path, n, longer, s)
            assert moved.shape == prefix.shape and new_path.shape[1] == (l + n if longer else l - n)
            (edges, start, goal), (old, _, _) = data.split_prefix(moved), data.split_prefix(prefix)
            assert torch.equal(start, path[:, 0]) and torch.equal(goal, new_path[:, -1])
            assert ((edges != old).any(dim=2).sum(dim=1) == (n > 0)).all()  # one edge is another, and only in its parent
            assert torch.equal(edges[:, :, 1], old[:, :, 1])
            for row, walk in zip(edges.tolist(), new_path.tolist()):
                parent = {b: a for a, b in row}
                assert all(parent[b] == a for a, b in zip(walk, walk[1:])) and len(set(parent.values()) - {walk[0]}) == len(row) - deg
                assert walk[-1] not in parent.values()  # the goal is an end


def test_arm_lengths_draws_every_length_and_asks_for_both_ends(monkeypatch):
    seen = []
    monkeypatch.setattr(train, "learn", lambda model, prefix, path, s, step: seen.append(path.shape[1]))
    for step in range(60):
        arm_lengths.learn(None, *graphs(2), settings(path_len=L, num_nodes=N), step)
    assert set(seen) == set(range(2, 2 * L - 1))
    with pytest.raises(ValueError, match="give --deg 2 or more"):
        arm_lengths.make_model(settings(idea="arm_lengths", deg=1))


@pytest.mark.parametrize("idea", IDEAS, ids=lambda idea: idea.__name__.rpartition(".")[2])
def test_each_trains_by_the_one_loop_resumes_and_refuses_what_it_cannot_do(tmp_path, idea, capsys):
    def run(*words):
        train.main([*TINY, *map(str, words)], idea=importlib.import_module(idea.__name__))

    run("--steps", 4, "--eval_every", 2, "--out_dir", tmp_path / "whole")
    run("--steps", 2, "--eval_every", 2, "--out_dir", tmp_path / "part")
    train.main(["--resume", str(tmp_path / "part"), "--steps", "4"], idea=idea)
    whole, parts = lines(tmp_path / "whole"), lines(tmp_path / "part")
    assert whole[-1]["step"] == parts[-1]["step"] == 4 and 0 < whole[-1]["loss"] < 40
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["idea"] == idea.__name__.rpartition(".")[2]
    capsys.readouterr()
    train.main(["--resume", str(tmp_path / "whole"), "--eval_only"], idea=idea)
    assert "accuracy" in capsys.readouterr().out
    assert "was trained by beyond/" in refusal(capsys, "--resume", tmp_path / "whole", tiny=[])
    with pytest.raises(SystemExit) as end:
        run("--teacherless", "--out_dir", tmp_path / "no")
    assert end.value.code == 2 and "--objective teacherless does not go with" in capsys.readouterr().err


def test_a_script_of_beyond_speaks_in_its_own_name(tmp_path):
    for words, sentence in ((["--help"], "usage: masked.py"), (["--reverse"], "masked.py: --reverse does not go with masked.py")):
        command = [sys.executable, "beyond/masked.py", *words, "--out_dir", str(tmp_path / "r")]
        done = subprocess.run(command, cwd=HOME, capture_output=True, text=True)
        assert sentence in done.stdout + done.stderr and done.returncode == (0 if words == ["--help"] else 2)
    environment = os.environ | {"WORLD_SIZE": "2"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", environment)
        with pytest.raises(ValueError, match="torchrun does not go with"):
            masked.make_model(settings(idea="masked"))


def test_ideas_are_drawn_beside_next_token_prediction(tmp_path, capsys):
    from beyond import draw_ideas

    for name, idea in (("next", train), ("masked", masked), ("hybrid", hybrid)):
        train.main([*TINY, "--steps", "2", "--eval_every", "1", "--out_dir", str(tmp_path / name)], idea=idea)
    draw_ideas.main([str(tmp_path), "--out", str(tmp_path / "figures")])
    assert (tmp_path / "figures" / "ideas.png").stat().st_size > 10_000
    with pytest.raises(SystemExit) as end:
        draw_ideas.main([str(tmp_path / "next")])
    assert end.value.code == 2 and "there is no run of an idea" in capsys.readouterr().err


def test_each_picture_has_the_runs_of_its_own_graph_and_length():
    from beyond import draw_ideas
    from plot import plt

    def made(deg, height, steps, **changes):
        s = vars(settings(deg=deg, idea="train", steps=steps)) | changes
        log = [dict(step=step, graphs=8 * step, accuracy=height) for step in (0, 1, 2)]
        return dict(s=s, graph=(deg, 4, 12), log=log, folder="x")

    kinds = [(2, 400), (3, 400), (2, 800)]
    runs = [made(deg, 0.1 * deg + 0.01, steps) for deg, steps in kinds[:2]]  # next-token prediction
    runs += [made(deg, 0.1 * deg + steps / 1e4, steps, idea="hybrid") for deg, steps in kinds]
    runs += [made(2, 0.9, 400, idea="masked")]  # so this setting has most
    figures = draw_ideas.ideas(runs)
    assert list(figures)[0] == "ideas" and ["G_2_4" in name or "G_3_4" in name for name in figures] == [False, True, True]
    heights = lambda ax: {round(line.get_ydata()[0], 3) for line in ax.lines}
    for fig, (deg, steps) in zip(figures.values(), kinds):
        axes = [ax for ax in fig.axes if ax.get_visible()]
        ideas = ["hybrid"] + ["masked"] * ((deg, steps) == (2, 400))
        assert [ax.get_title(loc="left") for ax in axes] == ideas
        beside = {round(0.1 * deg + 0.01, 3)} if steps == 400 else set()
        assert heights(axes[0]) == {round(0.1 * deg + steps / 1e4, 3), round(1 / deg, 3)} | beside
    plt.close("all")


@pytest.mark.parametrize("idea", IDEAS, ids=lambda idea: idea.__name__.rpartition(".")[2])
def test_muon_has_the_matrices_of_blocks_alone(idea):
    """A module of an idea's own learns by AdamW, whatever its name: the ideas are compared."""
    model, s = model_of(idea)
    adamw, muon = train.make_optimizers(model, s)
    learned = {id(p) for group in muon.param_groups for p in group["params"]}
    blocks = [m for m in model.modules() if type(m).__name__ == "Block"]
    assert learned == {id(p) for block in blocks for p in block.parameters() if p.ndim == 2}


@pytest.mark.parametrize("idea", IDEAS, ids=lambda idea: idea.__name__.rpartition(".")[2])
def test_an_idea_that_is_resumed_is_the_unbroken_run(tmp_path, monkeypatch, idea):
    words = [*TINY, "--steps", "4", "--eval_every", "2", "--out_dir"]
    train.main([*words, str(tmp_path / "whole")], idea=idea)
    break_at_second_save(monkeypatch, lambda: train.main([*words, str(tmp_path / "part")], idea=idea))
    train.main(["--resume", str(tmp_path / "part")], idea=idea)
    assert_same_run(tmp_path / "whole", tmp_path / "part")


def test_the_scratchpads_numbers_are_those_of_the_path_behind_it():
    s = settings(deg=2, path_len=4, num_nodes=12)
    prefix, path = data.sample_graphs(20, 2, 4, 12, torch.Generator().manual_seed(1))
    says = torch.cat([path.flip(1), path], dim=1)
    says[:5, 1] = 12  # five scratchpads are wrong, and eight first steps
    says[3:11, 5] = 12
    row_of = {tuple(p): row for p, row in zip(prefix.tolist(), says)}

    class Made:
        def new_cache(self, *_):
            return [torch.empty(20, 0, dtype=torch.int64)]

        def __call__(self, tokens, num_outputs, cache=None):
            if cache is not None:
                tokens = cache[0] = torch.cat([cache[0], tokens], dim=1)
            P = prefix.shape[1]
            rows = torch.stack([row_of[tuple(t[:P])] for t in tokens.tolist()])
            return F.one_hot(rows[:, : tokens.shape[1] - P + 1][:, -num_outputs:], 16).float()

    measured = scratchpad.evaluate(Made(), prefix, path, s)
    assert measured["scratchpad_accuracy"] == 0.75 and measured["accuracy"] == measured["difficult"] == 0.6
    assert measured["position_accuracy"] == measured["forced_accuracy"] == [1, pytest.approx(0.6), 1, 1]
