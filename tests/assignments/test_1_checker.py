"""Exercise 1: the checker accepts what the sampler draws, and nothing else."""

import random

import pytest
import torch

import data
from sizes import draw
from solutions import is_path_star

SHAPES = [(1, 2, 4), (2, 4, 9), (3, 3, 12), (5, 5, 50), (draw("deg", 2, 4), draw("path_len", 3, 6), draw("labels", 25, 40))]


def examples(deg, path_len, num_nodes, count=30):
    prefix, path = data.sample_graphs(count, deg, path_len, num_nodes, torch.Generator().manual_seed(draw("graphs", 0, 10**6)))
    return list(zip(prefix.tolist(), path.tolist()))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_sampled_example_is_accepted(shape):
    for prefix, path in examples(*shape):
        said = is_path_star(prefix, path, *shape)
        assert said is True, f"a sampled example must give True, not {said}: {prefix}, {path}, {shape}"


@pytest.mark.parametrize("shape", SHAPES)
def test_one_changed_token_is_one_too_many(shape):
    # Each change puts a label of this graph, or a mark, where another token belongs: that never leaves a right example.
    chance = random.Random(draw("changes", 0, 10**6))
    for prefix, path in examples(*shape):
        tokens = prefix + path
        for place, right in enumerate(tokens):
            wrong = chance.choice(sorted({*tokens, shape[2] + data.DUMMY} - {right}))
            changed = tokens[:place] + [wrong] + tokens[place + 1 :]
            said = is_path_star(changed[: len(prefix)], changed[len(prefix) :], *shape)
            where = f"{changed[: len(prefix)]}, {changed[len(prefix) :]}, {shape}"
            assert said is False, f"token {place} was {right} and is now {wrong}, which must give False, not {said}: {where}"


def written(edges, start, goal, num_nodes=10):
    """A prefix by hand: edges as a string like "35 79"."""
    marks = ["|"] * (len(edges.split()) - 1) + ["/"]
    tokens = [[int(edge[0]), int(edge[1]), num_nodes + "|=/".index(mark)] for edge, mark in zip(edges.split(), marks)]
    return sum(tokens, []) + [start, goal, num_nodes + 1]


@pytest.mark.parametrize(
    "edges, path, right, why",
    [
        ("35 79 52 37", [3, 7, 9], True, "the lab's own example"),
        ("37 35 52 79", [3, 7, 9], True, "in any order of its edges"),
        ("35 79 52 37", [3, 5, 2], False, "the path leads to another goal"),
        ("35 79 52 37", [3, 5, 9], False, "the path jumps from one arm to the other"),
        ("35 97 52 37", [3, 7, 9], False, "an edge points the wrong way"),
        ("35 79 59 37", [3, 7, 9], False, "two arms meet"),
        ("37 79 72 35", [3, 7, 9], False, "an arm forks"),
        ("37 79 38 62", [3, 7, 9], False, "an edge lies apart"),
        ("37 79 26 62", [3, 7, 9], False, "a circle lies apart"),
        ("37 79 93 35", [3, 7, 9], False, "an arm comes back to the start"),
        ("37 79 37 79", [3, 7, 9], False, "one arm twice"),
        ("37 79 98 35", [3, 7, 9], False, "arms of different length"),
    ],
)
def test_graphs_by_hand(edges, path, right, why):
    assert is_path_star(written(edges, 3, 9), path, 2, 3, 10) is right, why


def test_sizes_and_labels_are_checked():
    (prefix, path), *_ = examples(2, 4, 9)
    for shape in ((2, 3, 9), (3, 4, 9), (2, 4, 8), (2, 4, 10), (1, 7, 9)):
        assert is_path_star(prefix, path, *shape) is False
    assert is_path_star(prefix[:-1], path, 2, 4, 9) is False and is_path_star(prefix, path[:-1], 2, 4, 9) is False
    assert is_path_star(prefix[3:], path, 2, 4, 9) is False and is_path_star([], [], 2, 4, 9) is False
    assert is_path_star([0] * len(prefix), [0] * len(path), 2, 4, 9) is False
    below = ([-1 if token == path[0] else token for token in tokens] for tokens in (prefix, path))
    assert is_path_star(*below, 2, 4, 9) is False, "a label below 0"


def test_an_edge_or_a_token_too_many():
    prefix, path = written("35 79 52 37", 3, 9), [3, 7, 9]
    for place in range(0, len(prefix) - 2, 3):
        for edge in ([5, 9, 10], [3, 8, 10], [7, 9, 10], [3, 7, 12]):  # a second way to the goal, a new arm, an edge twice
            longer = prefix[:place] + edge + prefix[place:]
            said = is_path_star(longer, path, 2, 3, 10)
            assert said is False, f"an edge too many must give False, not {said}: {longer}, {path}"
    for longer in ([3, 7, 9, 9], [3, 3, 7, 9], [3, 7, 7, 9]):
        assert is_path_star(prefix, longer, 2, 3, 10) is False, f"the path is too long: {longer}"
    assert is_path_star([*prefix, 11], path, 2, 3, 10) is False, "a token after `=`"
