"""The evaluation, on models whose every answer is known: made of rules instead of weights."""

import pytest
import torch

import data
from evaluate import another_arm, decode, evaluate, on_a_wrong_arm
from helpers import settings
from model_gpt import GPT, GPTConfig
from model_mamba import Mamba, MambaConfig

DEG, L, N = 3, 4, 30


def graphs(count=200):
    return data.sample_graphs(count, DEG, L, N, torch.Generator().manual_seed(0))


class Rule(torch.nn.Module):
    """Stands where a model does, and follows edges: from the start into `choose(arms, goal)`, then to the arm's end."""

    def __init__(self, choose):
        super().__init__()
        self.choose = choose

    def new_cache(self, batch_size, max_tokens):
        return [torch.empty(batch_size, 0, dtype=torch.int64)]

    def forward(self, tokens, num_outputs=None, cache=None):
        if cache is not None:
            cache[0] = torch.cat([cache[0], tokens], dim=1)
        seen = tokens if cache is None else cache[0]
        P = data.prefix_length(DEG, L)
        answers = []
        for row in seen.tolist():
            prefix = torch.tensor([row[:P]])
            arms, goal = data.trace_arms(prefix, DEG, N)[0].tolist(), row[P - 2]
            child = {a: b for arm in arms for a, b in zip(arm[1:], arm[2:])}
            mine = self.choose(arms, goal)
            child |= dict(zip(mine, mine[1:]))  # a path from the goal to the start is followed in its own order
            answer = [mine[0]]
            for place, token in enumerate(row[P:]):
                if token == N + data.DUMMY:
                    answer.append(mine[place + 1])
                else:
                    answer.append(mine[1] if place == 0 else child.get(token, 0))
            answers.append(answer)
        logits = torch.nn.functional.one_hot(torch.tensor(answers), data.vocab_size(N)).float()
        return logits[:, -(num_outputs or tokens.shape[1]) :]


def plan(arms, goal):
    return next(arm for arm in arms if arm[-1] == goal)


def wrong_arm(arms, goal):
    return next(arm for arm in arms if arm[-1] != goal)


def measure(rule, objective, reverse=False):
    s = settings(objective=objective, reverse=reverse, deg=DEG, path_len=L, num_nodes=N)
    return evaluate(Rule(rule), *graphs(), s)


def test_a_planner_is_right_everywhere():
    for objective in ("next", "teacherless"):
        measured = measure(plan, objective)
        assert measured["accuracy"] == measured["difficult"] == 1 and measured["position_accuracy"] == [1] * L
        assert measured["wrong_arm"] == measured["no_path"] == 0 and measured["margin"] == 1
    assert "cheat_rate" not in measured


def test_paths_that_are_written_from_the_goal_are_measured_from_the_start():
    for objective in ("reverse", "teacherless"):
        measured = measure(lambda arms, goal: plan(arms, goal)[::-1], objective, reverse=True)
        assert measured["accuracy"] == measured["difficult"] == 1 and measured["forced_accuracy"] == [1] * L
        measured = measure(lambda arms, goal: [*plan(arms, goal)[:0:-1], goal], objective, reverse=True)  # no start
        assert measured["position_accuracy"] == [0, 1, 1, 1] and measured["difficult"] == measured["no_path"] == 1


def test_the_cheat_is_seen_for_what_it_is():
    measured = measure(lambda arms, goal: arms[0], "next")  # always the arm whose edge stands first: chance
    assert measured["difficult"] == measured["accuracy"] == pytest.approx(1 / DEG, abs=0.1)
    assert measured["forced_accuracy"] == [1, measured["difficult"], 1, 1]
    assert measured["cheat_rate"] == measured["writes_arm_end"] == 1 and measured["writes_goal"] == 0
    assert measured["wrong_arm"] == pytest.approx(1 - measured["accuracy"]) and measured["no_path"] == 0


def test_a_model_that_cheats_to_the_last_place_and_copies_the_goal_there_is_caught():
    """The goal stands in the prefix: to copy it is easier than to follow the last edge, and takes no plan."""

    class CopiesTheGoal(Rule):
        def forward(self, tokens, num_outputs=None, cache=None):
            logits = super().forward(tokens, num_outputs, cache)
            before = cache[0].shape[1] - logits.shape[1]
            for i in range(logits.shape[1]):
                if before + i == data.prefix_length(DEG, L) + L - 2:  # the place that writes the last token
                    goals = cache[0][:, data.prefix_length(DEG, L) - 2]
                    logits[:, i] = torch.nn.functional.one_hot(goals, data.vocab_size(N)).float()
            return logits

    s = settings(objective="next", deg=DEG, path_len=L, num_nodes=N)
    measured = evaluate(CopiesTheGoal(lambda arms, goal: arms[0]), *graphs(), s)
    assert measured["cheat_rate"] == measured["writes_goal"] == 1 and measured["writes_arm_end"] == 0


@pytest.mark.parametrize("deg, path_len", [(2, 3), (2, 2), (1, 4)])
def test_what_cannot_be_measured_is_left_out(deg, path_len):
    prefix, path = data.sample_graphs(20, deg, path_len, N, torch.Generator().manual_seed(0))
    s = settings(deg=deg, path_len=path_len, num_nodes=N)
    for objective, reverse in (("next", False), ("reverse", True), ("teacherless", False), ("teacherless", True)):
        model = GPT(GPTConfig(data.vocab_size(N), prefix.shape[1] + path_len, 1, 2, 8))
        s.objective, s.reverse = objective, reverse
        measured = evaluate(model, prefix, path, s)
        assert "cheat_rate" not in measured
        assert ("writes_goal" in measured) == (objective == "next" and (deg, path_len) == (2, 3))
        assert ("margin" in measured) == ((deg, path_len) == (2, 3))


def test_a_model_that_guesses_has_no_margin_and_does_not_cheat():
    class Guess(Rule):
        def forward(self, tokens, num_outputs=None, cache=None):
            if cache is not None:
                cache[0] = torch.cat([cache[0], tokens], dim=1)
            generator = torch.Generator().manual_seed(tokens.shape[1])
            return torch.randn(len(tokens), num_outputs or tokens.shape[1], data.vocab_size(N), generator=generator)

    s = settings(objective="next", deg=2, path_len=L, num_nodes=N)
    prefix, path = data.sample_graphs(2000, 2, L, N, torch.Generator().manual_seed(0))
    measured = evaluate(Guess(None), prefix, path, s)
    assert abs(measured["margin"]) < 0.15 and measured["cheat_rate"] < 0.1 and measured["accuracy"] < 0.01


def test_a_wrong_arm_and_no_path_are_told_apart():
    measured = measure(wrong_arm, "next")
    assert measured["accuracy"] == measured["difficult"] == 0 and measured["wrong_arm"] == 1
    assert measured["position_accuracy"] == [1, 0, 0, 0] and measured["forced_accuracy"] == [1, 0, 1, 1]
    measured = measure(lambda arms, goal: arms[0][:3] + [arms[1][3]], "teacherless")
    assert measured["no_path"] == 1 and "cheat_rate" not in measured


def test_a_path_that_is_wrong_in_its_start_alone_is_no_path():
    measured = measure(lambda arms, goal: [arms[0][1], *plan(arms, goal)[1:]], "teacherless")
    assert measured["position_accuracy"] == [0, 1, 1, 1] and measured["accuracy"] == 0
    assert measured["no_path"] == 1 and measured["wrong_arm"] == 0
    measured = measure(lambda arms, goal: [arms[0][1], *wrong_arm(arms, goal)[1:]], "teacherless")
    assert measured["no_path"] == 1 and measured["wrong_arm"] == 0


def test_the_cheat_rate_asks_for_every_further_inner_node():
    prefix, path = data.sample_graphs(50, DEG, 6, N, torch.Generator().manual_seed(0))
    arms = data.trace_arms(prefix, DEG, N)
    wrong = another_arm(arms, path)  # s w x y z e: the places 0 … 4 name w x y z e
    for missed in range(5):
        def name_next(revealed):
            assert torch.equal(revealed, wrong[:, :-1])
            named = wrong[:, 1:].clone()
            named[:, missed] = N + data.PIPE
            return named

        hits = on_a_wrong_arm(name_next, arms, path)
        assert hits["cheat_rate"].tolist() == [missed in (0, 4)] * 50, missed  # first step and end do not count
        assert hits["writes_arm_end"].tolist() == [missed != 4] * 50


@torch.no_grad()
def random_model(kind, n_future=1, seed=0):
    """A model whose outputs differ from place to place, as those of initial weights hardly do."""
    torch.manual_seed(seed)
    P = data.prefix_length(DEG, L)
    parts = dict(n_layer=2, n_embd=16, n_future=n_future, prefix_len=0 if "causal" in kind else P)
    if "gpt" in kind:
        model = GPT(GPTConfig(data.vocab_size(N), P + L - 1, n_head=2, **parts)).double()
    else:
        model = Mamba(MambaConfig(data.vocab_size(N), **parts)).double()
    for p in model.parameters():
        p += 0.3 * torch.randn_like(p)
    return model


@pytest.mark.parametrize("kind", ["gpt", "causal gpt", "mamba", "causal mamba"])
@torch.no_grad()
def test_every_head_says_with_a_cache_what_it_says_without(kind):
    model, (prefix, path) = random_model(kind, n_future=3), graphs(5)
    sequence = torch.cat([prefix, path[:, :-1]], dim=1)
    cache, parts = model.new_cache(5, sequence.shape[1]), [[] for _ in range(3)]
    for piece in sequence.split([prefix.shape[1], 1, L - 2], dim=1):
        trunk = model.trunk(piece, cache)
        for k, part in enumerate(parts):
            part.append(model.head(trunk, k, piece.shape[1], cache))
    for k, part in enumerate(parts):
        whole = model.head(model.trunk(sequence), k, sequence.shape[1])
        torch.testing.assert_close(torch.cat(part, dim=1), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["gpt", "causal gpt", "mamba", "causal mamba"])
def test_cached_decoding_writes_what_full_recomputation_writes(kind):
    model, (prefix, _) = random_model(kind), graphs(50)
    with torch.no_grad():
        sequence = prefix
        for _ in range(L):
            sequence = torch.cat([sequence, model(sequence)[:, -1:].argmax(2)], dim=1)
        assert torch.equal(decode(model, prefix, L, "next", N), sequence[:, -L:])


@pytest.mark.parametrize("kind", ["gpt", "mamba"])
@pytest.mark.parametrize(
    "objective, reverse",
    [
        ("next", False),
        ("reverse", True),
        ("teacherless", False),
        ("teacherless", True),
        ("multi", False),
        ("multi", True),
    ],
)
def test_teacher_forced_accuracy_and_cheat_rate_by_the_long_way(kind, objective, reverse):
    n_future = 3 if objective == "multi" else 1
    model, (prefix, path) = random_model(kind, n_future), graphs(60)
    s = settings(objective=objective, reverse=reverse, deg=DEG, path_len=L, num_nodes=N, n_future=n_future)
    measured = evaluate(model, prefix, path, s)
    with torch.no_grad():
        inputs, targets = data.layout(objective, prefix, path, N, reverse, n_future)
        hits = model(inputs)[:, -L:].argmax(2) == targets[:, :, 0]
        hits = hits.flip(1) if reverse else hits
        assert measured["forced_accuracy"] == pytest.approx(hits.double().mean(0).tolist())
        if objective in ("next", "multi") and not reverse:
            walked, ends, goals = 0, 0, 0
            for one_prefix, one_path in zip(prefix, path):
                arms = data.trace_arms(one_prefix[None], DEG, N)[0]
                goal_arm = [i for i in range(DEG) if torch.equal(arms[i], one_path)][0]
                wrong = arms[(goal_arm + 1) % DEG]
                sequence = torch.cat([one_prefix, wrong[:2]])[None]
                for _ in range(L - 3):  # it writes the inner nodes itself …
                    sequence = torch.cat([sequence, model(sequence)[:, -1:].argmax(2)], dim=1)
                walked += torch.equal(sequence[0, -L + 1 :], wrong[:-1])
                last = model(torch.cat([one_prefix, wrong[:-1]])[None])[0, -1].argmax()  # … and is shown them
                ends, goals = ends + int(last == wrong[-1]), goals + int(last == one_path[-1])
            assert measured["cheat_rate"] == pytest.approx(walked / len(path))
            assert measured["writes_arm_end"] == pytest.approx(ends / len(path))
            assert measured["writes_goal"] == pytest.approx(goals / len(path))
        else:
            assert "cheat_rate" not in measured
        margin, place = 0.0, L - 2 if reverse else 1
        logp = model(inputs)[:, -L:].log_softmax(2)[:, place]
        for row, one_prefix, one_path in zip(logp, prefix, path):
            firsts = data.trace_arms(one_prefix[None], DEG, N)[0, :, 1].tolist()
            margin += row[one_path[1]] - max(row[node] for node in firsts if node != one_path[1])
        assert measured["margin"] == pytest.approx(margin.item() / len(path), abs=1e-5)


def test_a_batch_at_a_time_changes_nothing(monkeypatch):
    model, (prefix, path) = random_model("gpt"), graphs(50)
    s = settings(deg=DEG, path_len=L, num_nodes=N)
    whole = evaluate(model, prefix, path, s)
    monkeypatch.setattr("evaluate.GRAPHS_AT_ONCE", 7)
    parts = evaluate(model, prefix, path, s)
    assert parts.pop("margin") == pytest.approx(whole.pop("margin"))
    assert parts == whole
