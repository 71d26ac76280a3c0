"""Exercise 6: the cheat rate of models that follow known rules, then of trained ones, predicted first."""

import pytest
import torch

import data
from run_folder import evaluate_again, is_share, read_run
from sizes import draw
from solutions import cheat_rate

L, N = draw("path_len", 5, 7), draw("labels", 30, 40)


class ByRule:
    """Stands where a model does; rule(arms, goal, written) says the token after what is written of the path."""

    def __init__(self, deg, rule):
        self.deg, self.rule = deg, rule

    def new_cache(self, batch_size, max_tokens):
        return [torch.empty(batch_size, 0, dtype=torch.int64)]

    def __call__(self, tokens, num_outputs=None, cache=None):
        wanted = num_outputs or tokens.shape[1]
        if cache is not None:
            tokens = cache[0] = torch.cat([cache[0], tokens], dim=1)
        P, answers = data.prefix_length(self.deg, L), []
        for row in tokens.tolist():
            arms = data.trace_arms(torch.tensor([row[:P]]), self.deg, N)[0].tolist()
            answers.append([0] * (P - 1) + [self.rule(arms, row[P - 2], row[P:end]) for end in range(P, len(row) + 1)])
        logits = torch.nn.functional.one_hot(torch.tensor(answers), data.vocab_size(N)).double()
        return logits[:, -wanted:]


def follow(arms, goal, written):
    """The cheat: into the first arm, and then to the child of the token before, whichever arm that is on."""
    if len(written) < 2:
        return arms[0][len(written)]
    return next((b for arm in arms for a, b in zip(arm, arm[1:]) if a == written[-1]), 0)


def plan(arms, goal, written):
    """The path, place by place, whatever is revealed."""
    return next(arm for arm in arms if arm[-1] == goal)[min(len(written), L - 1)]


def copy_last(arms, goal, written):
    """The cheat at all inner places; at the last, it copies the goal from the prefix."""
    return follow(arms, goal, written) if len(written) < L - 1 else goal


def tire(arms, goal, written):
    """The cheat for all but the last inner place."""
    return follow(arms, goal, written) if len(written) < L - 2 else plan(arms, goal, written)


def stumble(arms, goal, written):
    """The cheat at all inner places but the first one that it is asked for."""
    return follow(arms, goal, written) if len(written) != 2 else goal


def follow_even_labels(arms, goal, written):
    """The cheat on arms whose first node is even, the plan on the others."""
    return (follow if len(written) > 1 and written[1] % 2 == 0 else plan)(arms, goal, written)


def graphs(deg):
    return data.sample_graphs(60, deg, L, N, torch.Generator().manual_seed(draw("graphs", 0, 10**6)))


@pytest.mark.parametrize("deg", [2, 3])
@pytest.mark.parametrize("rule, rate", [(follow, 1), (copy_last, 1), (plan, 0), (tire, 0), (stumble, 0)])
def test_of_models_that_always_or_never_cheat(deg, rule, rate):
    measured = cheat_rate(ByRule(deg, rule), *graphs(deg), N)
    assert isinstance(measured, float) and measured == rate


def test_it_writes_the_arm_itself():
    """What the model sees after the first node of the wrong arm is what it has said, not the arm."""
    prefix, path = graphs(2)
    said = lambda arms, goal, written: (sum(written) + len(written)) % N  # nobody's arm

    class Strict(ByRule):
        def __call__(self, tokens, num_outputs=None, cache=None):
            P = data.prefix_length(2, L)
            for row in tokens.tolist() if cache is None else []:
                for end in range(P + 2, len(row)):
                    assert row[end] == said(None, None, row[P:end]), "the model is shown what it has not written"
            return super().__call__(tokens, num_outputs, cache)

    assert cheat_rate(Strict(2, said), prefix, path, N) < 0.5


def test_of_a_model_that_cheats_now_and_then():
    prefix, path = graphs(2)
    arms = data.trace_arms(prefix, 2, N)
    wrong = torch.where((arms[:, 0] == path).all(dim=1), arms[:, 1, 1], arms[:, 0, 1])  # its first node after the start
    expected = (wrong % 2 == 0).double().mean().item()
    assert 0.2 < expected < 0.8
    assert cheat_rate(ByRule(2, follow_even_labels), prefix, path, N) == pytest.approx(expected)


def test_the_prediction_and_what_was_measured(answers):
    sheet, folder = answers[0]["6"], answers[1]
    for objective in ("next", "multi"):
        assert is_share(sheet["predicted"][objective]), f"exercise 6: predict the cheat rate of {objective}, 0 to 1"
    assert len(sheet["why"].split()) >= 10, "exercise 6: say in a sentence or two why you predict this"
    seen = set()
    for objective in ("next", "multi"):
        config, log = read_run(folder, sheet["runs"][objective], exercise=6)
        assert config["objective"] == objective and not config["reverse"] and not config["only_difficult"]
        assert config["deg"] > 1 and config["path_len"] > 3 and config["n_test"] >= 1000
        measured = sheet["measured"][objective]
        assert is_share(measured) and measured == pytest.approx(log[-1]["cheat_rate"], abs=0.001)
        again = evaluate_again(folder, sheet["runs"][objective], exercise=6)
        assert again is None or measured == pytest.approx(again["cheat_rate"][0], abs=0.01), "ckpt.pt says another rate"
        seen.add((config["deg"], config["path_len"], config["num_nodes"], log[-1]["graphs"]))
    assert len(seen) == 1, "exercise 6: the two runs must be of one graph size, and have seen as many graphs"
