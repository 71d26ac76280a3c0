"""Exercise 2: what each layout shows, and what it hides."""

import pytest
import torch

from data import DUMMY, IGNORE, layout, sample_graphs
from sizes import draw

L, N, B = draw("path_len", 4, 7), draw("labels", 20, 40), draw("batch", 20, 60)
PREFIX, PATH = sample_graphs(B, 3, L, N, torch.Generator().manual_seed(draw("graphs", 0, 10**6)))
P = PREFIX.shape[1]
ALL = [("next", False, 1), ("reverse", True, 1), ("reverse", False, 1), ("teacherless", False, 1)]
ALL += [("teacherless", True, 1), ("multi", False, 1), ("multi", False, 3), ("multi", True, L)]
ALL += [("next", False, 3), ("teacherless", False, 3)]  # only multi has more than one row


def spoken(objective, reverse):
    """The path in the order in which it is written."""
    return PATH.flip(1) if reverse or objective == "reverse" else PATH


@pytest.mark.parametrize("objective, reverse, n_future", ALL)
def test_shapes_and_the_prefix(objective, reverse, n_future):
    before = PREFIX.clone(), PATH.clone()
    inputs, targets = layout(objective, PREFIX, PATH, N, reverse, n_future)
    rows = n_future if objective == "multi" else 1
    assert inputs.shape == (B, P + L - 1) and targets.shape == (B, L, rows)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, :P], PREFIX), "the inputs do not begin with the prefix"
    assert torch.equal(PREFIX, before[0]) and torch.equal(PATH, before[1]), "an argument was changed"


@pytest.mark.parametrize("objective, reverse, n_future", ALL)
def test_the_first_column_of_targets_is_the_path(objective, reverse, n_future):
    _, targets = layout(objective, PREFIX, PATH, N, reverse, n_future)
    said = "the first column of targets is not the path in the order in which it is written"
    assert torch.equal(targets[:, :, 0], spoken(objective, reverse)), said


@pytest.mark.parametrize("objective, reverse, n_future", [row for row in ALL if row[0] != "teacherless"])
def test_with_a_teacher_each_target_is_the_next_input(objective, reverse, n_future):
    inputs, targets = layout(objective, PREFIX, PATH, N, reverse, n_future)
    assert torch.equal(inputs[:, P:], targets[:, :-1, 0]), "an input is not the target before it"


@pytest.mark.parametrize("reverse", [False, True])
def test_without_a_teacher_nothing_of_the_path_is_shown(reverse):
    inputs, _ = layout("teacherless", PREFIX, PATH, N, reverse)
    assert (inputs[:, P:] == N + DUMMY).all(), "an input after the prefix is not `$`"


@pytest.mark.parametrize("n_future", [1, 2, L])
@pytest.mark.parametrize("reverse", [False, True])
def test_head_k_speaks_of_the_token_k_ahead(n_future, reverse):
    inputs, targets = layout("multi", PREFIX, PATH, N, reverse, n_future)
    for k in range(n_future):
        ahead = spoken("multi", reverse)[:, k:]
        assert torch.equal(targets[:, : L - k, k], ahead), f"row {k} does not name the token {k} after row 0's"
        assert (targets[:, L - k :, k] == IGNORE).all(), f"row {k} has a target past the path's end"


@pytest.mark.parametrize("objective, reverse, n_future", ALL)
def test_no_output_has_seen_what_it_must_say(objective, reverse, n_future):
    # All labels of a path differ, so whether a target was revealed can be read off the path's side of the inputs.
    inputs, targets = layout(objective, PREFIX, PATH, N, reverse, n_future)
    for place in range(L):
        shown = inputs[:, P : P + place]
        seen = (shown[:, :, None] == targets[:, place][:, None, :]).any()
        assert not seen, f"a target of place {place} stands among the inputs before it"
