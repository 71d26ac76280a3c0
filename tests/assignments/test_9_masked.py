"""Exercise 9: a teacher who forgets. Each revealed token is hidden with the given probability; the rest stays."""

import pytest
import torch

import data
from sizes import draw
from solutions import masked_layout

L, N = draw("path_len", 4, 7), draw("labels", 30, 40)


def graphs(count=50):
    return data.sample_graphs(count, 2, L, N, torch.Generator().manual_seed(draw("graphs", 0, 10**6)))


def hidden_by(share, count=50, seed=1):
    """Which of the revealed tokens are hidden: (B, L - 1), bool. On the way, that nothing else changed."""
    prefix, path = graphs(count)
    before = prefix.clone(), path.clone()
    inputs, targets = masked_layout(prefix, path, N, share, torch.Generator().manual_seed(seed))
    assert torch.equal(prefix, before[0]) and torch.equal(path, before[1]), "an argument was changed"
    P = prefix.shape[1]
    assert inputs.dtype == targets.dtype == torch.int64 and inputs.shape == (count, P + L - 1)
    assert torch.equal(inputs[:, :P], prefix), "the inputs do not begin with the prefix"
    assert torch.equal(targets, path[:, :, None]), "the targets must stay those of `next`"
    hidden = inputs[:, P:] == N + data.DUMMY
    assert torch.equal(inputs[:, P:][~hidden], path[:, :-1][~hidden]), "what is not hidden must stay as it is"
    return hidden


def test_at_the_ends_it_is_next_and_teacherless():
    assert not hidden_by(0.0).any() and hidden_by(1.0).all(), "a share of 0 hides nothing, and 1 everything"


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_each_token_is_hidden_on_its_own(share):
    count = 20_000
    hidden = hidden_by(share, count).double()
    five_sigma = lambda p: 5 * (p * (1 - p) / count) ** 0.5
    right = ((hidden.mean(dim=0) - share).abs() < five_sigma(share)).all()
    assert right, f"each place must be hidden with probability {share}, not {hidden.mean(dim=0).tolist()}"
    for i in range(L - 1):
        for j in range(i):
            together = (hidden[:, i] * hidden[:, j]).mean().item()
            assert abs(together - share**2) < five_sigma(share**2), f"places {j} and {i} are not hidden independently"


def test_the_generator_decides():
    assert torch.equal(hidden_by(0.5, seed=1), hidden_by(0.5, seed=1)), "the same generator, and yet other places"
    assert not torch.equal(hidden_by(0.5, seed=1), hidden_by(0.5, seed=2)), "another generator, and yet the same places"


def test_each_batch_is_hidden_anew():
    prefix, path = graphs()
    generator = torch.Generator().manual_seed(1)
    first, second = (masked_layout(prefix, path, N, 0.5, generator)[0] for _ in range(2))
    assert not torch.equal(first, second), "two batches have the same places hidden"
