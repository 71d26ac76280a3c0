"""Graphs and layouts: checked one graph at a time by code that shares nothing with data.py."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import data

SHAPES = [(1, 2, 2), (1, 5, 9), (2, 2, 3), (2, 3, 5), (2, 5, 50), (3, 4, 10), (5, 5, 50), (20, 5, 100)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def check_graph_slowly(prefix, path, deg, path_len, num_nodes):
    """Prove by walking that one example is what the paper describes; plain Python on lists of int."""
    PIPE, EQUALS, SLASH = num_nodes, num_nodes + 1, num_nodes + 2
    num_edges = deg * (path_len - 1)
    assert len(prefix) == 3 * num_edges + 3 and len(path) == path_len
    *edge_tokens, start, goal, equals = prefix
    assert equals == EQUALS
    assert edge_tokens[2::3] == [PIPE] * (num_edges - 1) + [SLASH]
    edges = list(zip(edge_tokens[0::3], edge_tokens[1::3]))
    assert path[0] == start and path[-1] == goal
    assert all((a, b) in edges for a, b in zip(path, path[1:]))
    nodes = {node for edge in edges for node in edge}
    assert len(nodes) == 1 + num_edges and nodes <= set(range(num_nodes))
    arms = 0
    for tail, head in edges:
        if tail == start:
            arms, length = arms + 1, 2
            while children := [b for a, b in edges if a == head]:
                assert len(children) == 1
                head, length = children[0], length + 1
            assert length == path_len
    assert arms == deg


@pytest.mark.parametrize("deg, path_len, num_nodes", SHAPES)
def test_every_sampled_graph_is_a_path_star_with_its_path(deg, path_len, num_nodes):
    prefix, path = data.sample_graphs(200, deg, path_len, num_nodes, generator())
    assert prefix.shape == (200, data.prefix_length(deg, path_len)) and prefix.dtype == path.dtype == torch.int64
    for one_prefix, one_path in zip(prefix.tolist(), path.tolist()):
        check_graph_slowly(one_prefix, one_path, deg, path_len, num_nodes)


def test_labels_edge_orders_and_goals_are_uniform():
    prefix, path = data.sample_graphs(60_000, 2, 3, 5, generator())
    edges, start, goal = data.split_prefix(prefix)
    on_path = (edges[:, :, 0:1] == path[:, None, :-1]).any(2) & (edges[:, :, 1:2] == path[:, None, 1:]).any(2)
    for counts in (
        torch.bincount(start, minlength=5),  # every label is the start equally often
        torch.bincount(goal, minlength=5),
        torch.bincount(path[:, 1], minlength=5),
        on_path.sum(0),  # every place of the edge list holds an edge of the goal's arm equally often
    ):
        expected = counts.sum() / len(counts)
        assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_ordered_choice_of_labels_is_equally_likely(count):
    labels = data.random_orders(48_000, 4, generator())[:, :count]
    counts = {}
    for row in labels.tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    assert set(counts) == set(itertools.permutations(range(4), count))
    expected = 48_000 / len(counts)
    assert all(abs(n - expected) < 5 * expected**0.5 for n in counts.values())


def test_one_seed_gives_one_batch():
    first, again, other = (data.sample_graphs(8, 2, 5, 50, generator(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("deg, path_len, num_nodes", SHAPES)
def test_traced_arms_are_the_arms(deg, path_len, num_nodes):
    prefix, path = data.sample_graphs(100, deg, path_len, num_nodes, generator())
    arms = data.trace_arms(prefix, deg, num_nodes)
    assert arms.shape == (100, deg, path_len)
    edges, start, _ = data.split_prefix(prefix)
    for one_edges, one_start, one_path, one_arms in zip(edges.tolist(), start.tolist(), path.tolist(), arms.tolist()):
        assert one_path in one_arms
        walked = [[a, b] for arm in one_arms for a, b in zip(arm, arm[1:])]
        assert all(arm[0] == one_start for arm in one_arms) and sorted(walked) == sorted(one_edges)


def test_a_key_knows_a_graph_in_any_edge_order_and_for_any_goal():
    prefix, path = data.sample_graphs(500, 3, 4, 12, generator())
    keys = data.graph_keys(prefix, 12)
    edges, start, _ = data.split_prefix(prefix)
    arms = data.trace_arms(prefix, 3, 12)
    other_goal = arms[torch.arange(500), torch.randint(3, (500,), generator=generator(1)), -1]
    shuffled = edges[:, torch.randperm(9, generator=generator(2))]
    assert torch.equal(keys, data.graph_keys(data.write_prefix(shuffled, start, other_goal, 12), 12))
    assert len(keys.unique()) == len({frozenset(map(tuple, e)) for e in edges.tolist()})


def test_training_graphs_are_never_test_graphs_even_where_collisions_are_common():
    # G(2, 3) over 5 labels: 5! / 2 = 60 graphs. A test set of 60 draws holds more than half of them.
    test_prefix, _ = data.sample_graphs(60, 2, 3, 5, generator(1))
    forbidden = data.graph_keys(test_prefix, 5).unique()
    as_sets = lambda prefix: {frozenset(map(tuple, e)) for e in data.split_prefix(prefix)[0].tolist()}
    free, _ = data.sample_graphs(5000, 2, 3, 5, generator(2))
    assert as_sets(free) & as_sets(test_prefix)  # without care they would collide
    prefix, path = data.sample_new_graphs(5000, 2, 3, 5, generator(2), forbidden)
    assert not as_sets(prefix) & as_sets(test_prefix)
    assert len(as_sets(prefix)) == 60 - len(as_sets(test_prefix))  # and everything else does occur
    for one_prefix, one_path in zip(prefix.tolist(), path.tolist()):
        check_graph_slowly(one_prefix, one_path, 2, 3, 5)


def test_no_graph_left_to_train_on_is_said():
    forbidden = data.graph_keys(data.sample_graphs(1000, 2, 2, 3, generator())[0], 3).unique()
    with pytest.raises(ValueError, match="none are left to train on"):
        data.sample_new_graphs(10, 2, 2, 3, generator(), forbidden)


# The example of data.py's docstring, by hand: nodes 0 … 9, then | = / $ are 10 11 12 13.
PREFIX = torch.tensor([[3, 5, 10, 7, 9, 10, 5, 2, 10, 3, 7, 12, 3, 9, 11]])
PATH = torch.tensor([[3, 7, 9]])


@pytest.mark.parametrize(
    "objective, reverse, n_future, input_tail, targets",
    [
        ("next", False, 1, [3, 7], [[3], [7], [9]]),
        ("reverse", True, 1, [9, 7], [[9], [7], [3]]),
        ("reverse", False, 1, [9, 7], [[9], [7], [3]]),  # the objective alone says it
        ("teacherless", False, 1, [13, 13], [[3], [7], [9]]),
        ("teacherless", True, 1, [13, 13], [[9], [7], [3]]),
        ("multi", False, 1, [3, 7], [[3], [7], [9]]),
        ("multi", False, 2, [3, 7], [[3, 7], [7, 9], [9, -100]]),
        ("multi", False, 3, [3, 7], [[3, 7, 9], [7, 9, -100], [9, -100, -100]]),
        ("multi", True, 2, [9, 7], [[9, 7], [7, 3], [3, -100]]),
    ],
)
def test_layouts_by_hand(objective, reverse, n_future, input_tail, targets):
    inputs, got = data.layout(objective, PREFIX, PATH, 10, reverse, n_future)
    assert inputs.tolist() == [PREFIX[0].tolist() + input_tail]
    assert got.tolist() == [targets]


def test_shape_and_length_say_the_same_both_ways():
    for deg in range(1, 21):
        for path_len in range(2, 21):
            P = data.prefix_length(deg, path_len)
            prefix, path = torch.zeros(1, P), torch.zeros(1, path_len)
            assert data.graph_shape(prefix, path) == (deg, path_len)
            edges, start = torch.zeros(1, deg * (path_len - 1), 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
            assert data.write_prefix(edges, start, start, 500).shape == (1, P)


def test_the_file_run_as_a_script_shows_one_graph_and_its_four_layouts():
    command = [sys.executable, Path(data.__file__)]
    shown = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    for objective in data.OBJECTIVES:
        assert f"{objective} " in shown
    assert shown.count("inputs") == 4 and shown.count("targets") == 6  # multi has a row for each of three heads


def test_too_few_labels_are_no_other_graph():
    with pytest.raises(RuntimeError):
        data.sample_graphs(1, 2, 5, 7, torch.Generator().manual_seed(1))
