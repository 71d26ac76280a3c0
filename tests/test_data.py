"""Graphs, layouts and files: checked one graph at a time by code that shares nothing with data.py."""

import itertools
import random

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
    labels = data.draw_labels(48_000, count, 4, generator())
    counts = {}
    for row in labels.tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    assert set(counts) == set(itertools.permutations(range(4), count))
    expected = 48_000 / len(counts)
    assert all(abs(n - expected) < 5 * expected**0.5 for n in counts.values())


def test_one_seed_gives_one_batch():
    first, again, other = (data.sample_graphs(8, 2, 5, 50, generator(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("deg, path_len, num_nodes", [shape for shape in SHAPES if shape[1] > 2])
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
TEXT = "3,5|7,9|5,2|3,7/3,9=3,7,9\n"


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


def test_text_by_hand(tmp_path):
    file = tmp_path / "graphs.txt"
    file.write_text(TEXT)
    prefix, path = data.read_graphs(file, 10)
    assert torch.equal(prefix, PREFIX) and torch.equal(path, PATH)


@pytest.mark.parametrize("deg, path_len, num_nodes", SHAPES)
def test_round_trip_through_text_is_exact(tmp_path, deg, path_len, num_nodes):
    prefix, path = data.sample_graphs(50, deg, path_len, num_nodes, generator())
    with open(tmp_path / "graphs.txt", "w") as file:
        data.write_graphs(file, prefix, path)
    again_prefix, again_path = data.read_graphs(tmp_path / "graphs.txt", num_nodes)
    assert torch.equal(prefix, again_prefix) and torch.equal(path, again_path)
    assert again_prefix.dtype == again_path.dtype == torch.int64


@pytest.mark.parametrize(
    "line, fault",
    [
        ("3,5|7,9|5,2|3,7/3,9", "is not of the form"),
        ("3,5|7,9|5,2|3,7/3,9=3,7,9 9", "is not of the form"),
        ("3,5|7, |5,2|3,7/3,9=3,7,9", "is not of the form"),
        ("3,5|7,9|5,2|3,7/3,9=9,7,3", "written from the goal to the start; .* let --reverse turn it round"),
        ("3,5|7,-9|5,2|3,7/3,9=3,7,9", "is not of the form"),
        ("3,5|7,9|5,2|3,7/3,9=3,7,٩", "is not of the form"),
        ("1" * 5000, "is not of the form"),
        ("3,5|7,19|5,2|3,7/3,19=3,7,19", "label 19 is out of range"),
        ("3,5|7,9|5,2|4,7/3,9=3,7,9", "no path-star graph"),
        ("3,5|7,9|5,9|3,7/3,9=3,7,9", "no path-star graph"),  # two arms meet
        ("3,5|7,9|7,2|3,7/3,9=3,7,9", "no path-star graph"),  # an arm forks
        ("3,5|7,9|5,7|3,2/3,9=3,5,7,9", "differ in length"),
        ("3,5|7,9|9,7|3,2/3,5=3,5", "lie off them"),  # a circle beside the arms
        ("3,5|7,9|5,2|3,7/5,9=5,2", "no path-star graph"),  # the start has a parent
        ("3,5|7,9|5,2|3,7/3,9=3,5,9", "is no arm"),
        ("3,5|7,9|5,2|3,7/3,9=3,7", "is no arm"),
        ("3,5|7,9|5,2|3,7/3,2=3,7,9", "the path ends at 9, but the goal is 2"),
        ("3,5|3,7/3,7=3,7", r"G\(2,2\), but the first line's is a G\(2,3\)"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_line(tmp_path, line, fault):
    file = tmp_path / "graphs.txt"
    file.write_text(TEXT * 2 + line + "\n" + TEXT, encoding="utf-8")
    with pytest.raises(ValueError, match=fault) as refusal:
        data.read_graphs(file, 10)
    assert str(refusal.value).startswith(f"{file}, line 3: ")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="holds no graph"):
        data.read_graphs(tmp_path / "empty.txt", 10)
    (tmp_path / "blank.txt").write_text("\n \n\t\n")
    with pytest.raises(ValueError, match="holds no graph"):
        data.read_graphs(tmp_path / "blank.txt", 10)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + TEXT.encode(),  # a byte order mark
        TEXT.encode().replace(b"\n", b"\r\n"),
        b"\n\n" + TEXT.encode() + b"\n \t\n",  # empty lines
        b" 3, 5 | 7,9|5 ,2|3,7 /3,\t9 = 3,7,9 \t\n",  # blanks around marks and at the ends of a line
        TEXT.encode().rstrip(),
    ],
)
def test_what_is_harmless_in_a_file_is_accepted(tmp_path, content):
    (tmp_path / "graphs.txt").write_bytes(content)
    prefix, path = data.read_graphs(tmp_path / "graphs.txt", 10)
    assert torch.equal(prefix, PREFIX) and torch.equal(path, PATH)


def test_a_fault_after_empty_lines_is_named_by_its_line_in_the_file(tmp_path):
    (tmp_path / "graphs.txt").write_text(f"\n{TEXT}\n3,5|7\n")
    with pytest.raises(ValueError, match="line 4: '3,5|7' "):
        data.read_graphs(tmp_path / "graphs.txt", 10)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(tmp_path, encoding):
    mark = "" if encoding == "utf-16" else "\ufeff"
    (tmp_path / "graphs.txt").write_bytes((mark + TEXT).encode(encoding))
    with pytest.raises(ValueError, match="UTF-16; save it as UTF-8"):
        data.read_graphs(tmp_path / "graphs.txt", 10)


def test_shape_and_length_say_the_same_both_ways():
    for deg in range(1, 21):
        for path_len in range(2, 21):
            P = data.prefix_length(deg, path_len)
            prefix, path = torch.zeros(1, P), torch.zeros(1, path_len)
            assert data.graph_shape(prefix, path) == (deg, path_len)
            edges, start = torch.zeros(1, deg * (path_len - 1), 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
            assert data.write_prefix(edges, start, start, 500).shape == (1, P)


def test_ten_thousand_mutations_are_each_a_graph_or_refused(tmp_path):
    prefix, path = data.sample_graphs(20, 2, 4, 10, generator())
    with open(tmp_path / "good.txt", "w") as file:
        data.write_graphs(file, prefix, path)
    good = (tmp_path / "good.txt").read_text().splitlines()
    chance = random.Random(0)
    accepted = 0
    for _ in range(10_000):
        characters = list(chance.choice(good))
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(characters))
            new = chance.choice("0123456789,|/=- x\n\t\0é")
            change = chance.choice(["replace", "insert", "delete", "swap"])
            if change == "replace":
                characters[place] = new
            elif change == "insert":
                characters.insert(place, new)
            elif change == "delete":
                del characters[place]
            else:
                other = chance.randrange(len(characters))
                characters[place], characters[other] = characters[other], characters[place]
        line = "".join(characters)
        try:
            numbers, deg, path_len = data.parse_graph(line, 10)
        except ValueError:
            continue
        accepted += 1
        ends = 2 * deg * (path_len - 1)
        edges = torch.tensor(numbers[:ends]).view(1, -1, 2)
        prefix = data.write_prefix(
            edges, torch.tensor(numbers[ends : ends + 1]), torch.tensor(numbers[ends + 1 : ends + 2]), 10
        )
        check_graph_slowly(prefix[0].tolist(), numbers[ends + 2 :], deg, path_len, 10)
    assert accepted  # some mutations leave a graph, such as a label replaced by an unused one


def test_an_endless_line_is_refused_without_reading_it_all(tmp_path):
    file = tmp_path / "endless.txt"
    for endless in ("3,5|", "3 ", "3,", "       "):
        file.write_text("3" + endless * 2_000_000)
        with pytest.raises(ValueError, match="line 1"):
            data.read_graphs(file, 10)
