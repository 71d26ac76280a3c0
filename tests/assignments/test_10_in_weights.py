"""Exercise 10: one graph, known by heart: the first step is found, even of paths that the model was never told."""

import time

import pytest
import torch

import data
from evaluate import decode
from solutions import in_weights_prompts, memorise

DEG, L, N, HELD_OUT = 60, 4, 181, 12


def arms_of(seed):
    """The arms of one random graph: (DEG, L)."""
    prefix, _ = data.sample_graphs(1, DEG, L, N, torch.Generator().manual_seed(seed))
    return data.trace_arms(prefix, DEG, N)[0]


def right(model, arms):
    """Which tokens of each arm the model writes, asked by the arm's goal: (DEG, L), bool."""
    with torch.no_grad():
        return decode(model, in_weights_prompts(arms, N), L, "next", N) == arms


def test_a_prompt_holds_start_and_goal_and_no_edge():
    arms = arms_of(1)
    expected = [[arm[0], arm[-1], N + data.EQUALS] for arm in arms.tolist()]
    assert in_weights_prompts(arms, N).tolist() == expected


@pytest.mark.parametrize("seed", [1, 2])
def test_the_graph_is_in_the_weights(seed):
    arms, began = arms_of(seed), time.monotonic()
    model = memorise(arms, HELD_OUT, N)
    assert time.monotonic() - began < 120
    first, whole = right(model, arms)[:, 1], right(model, arms).all(dim=1)
    assert first[:-HELD_OUT].all() and whole[:-HELD_OUT].all()  # what it was told
    assert first[-HELD_OUT:].double().mean() >= 0.5  # what it was not: a guess is right in one of sixty
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert not right(model, arms).all(dim=1).any()  # it was the weights that knew
