"""Exercise 8: the gradients of several output heads on one trunk, taken one head after the other. In float64."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from data import IGNORE
from sizes import draw
from train import add_gradients

B, T, l, V = draw("batch", 3, 6), draw("tokens", 9, 14), draw("path_len", 4, 6), draw("words", 7, 12)


class Tiny(nn.Module):
    """Stands where a model does; it notes when its trunk and its heads are run, forward and backward."""

    def __init__(self, n_future):
        super().__init__()
        torch.manual_seed(6)
        self.config = SimpleNamespace(n_embd=5)
        self.embedding, self.mix = nn.Embedding(V, 5).double(), nn.Linear(5, 5).double()
        self.heads = nn.ModuleList(nn.Linear(5, V) for _ in range(n_future)).double()
        self.notes = []

    def trunk(self, tokens, cache=None):
        x = self.mix(self.embedding(tokens)).tanh()
        if x.requires_grad:
            self.notes.append("trunk forward")
            x.grad_fn.register_prehook(lambda _: self.notes.append("trunk backward"))
        return x

    def head(self, x, k=0, num_outputs=None, cache=None):
        y = self.heads[k](x[:, x.shape[1] - (num_outputs or x.shape[1]) :].sin())
        self.notes.append(f"head {k} forward, {y.shape[1]} logits")
        y.grad_fn.register_prehook(lambda _: self.notes.append(f"head {k} backward"))
        return y

    def forward(self, tokens, num_outputs=None, cache=None):
        return self.head(self.trunk(tokens, cache), 0, num_outputs, cache)


def batch(K, seed=draw("tokens of a batch", 0, 10**6), rows=B):
    """Random inputs (rows, T) and targets (rows, l, K); head k has no target at the last k places.

    Nor has any head one at the first place of the first half of the rows: some parts have fewer targets than others.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = (torch.randint(V, shape, generator=generator) for shape in ((rows, T), (rows, l, K)))
    for k in range(1, K):
        targets[:, l - k :, k] = IGNORE
    targets[: rows // 2, 0] = IGNORE
    return inputs, targets


def all_at_once(model, inputs, targets):
    """The loss and its gradients by definition: cross-entropies, a mean over the targets and a sum over the heads."""
    x, loss = model.trunk(inputs), 0.0
    for k in range(targets.shape[2]):
        log_p = F.log_softmax(model.head(x, k)[:, T - l :], dim=2)
        real = targets[:, :, k] != IGNORE
        loss = loss - log_p[real].gather(1, targets[:, :, k][real][:, None]).mean()
    return loss.item(), torch.autograd.grad(loss, list(model.parameters()))


def check_gradients(model, expected):
    for (name, p), exact in zip(model.named_parameters(), expected):
        assert p.grad is not None, f"{name} has no gradient: did it get that far?"
        assert torch.allclose(p.grad, exact, rtol=1e-9, atol=1e-12), f"the gradient of {name} is another"


@pytest.mark.parametrize("K, rows", [(1, B), (2, B), (4, B), (2, 2**17 * torch.get_num_threads() // (5 * T) + 7)])  # the last: may go in parts
def test_loss_and_gradients_are_those_of_the_sum_over_heads(K, rows):
    model = Tiny(K)
    expected_loss, expected = all_at_once(model, *batch(K, rows=rows))
    loss = add_gradients(model, *batch(K, rows=rows))
    assert isinstance(loss, float) and loss == pytest.approx(expected_loss), f"a batch of {rows}"
    check_gradients(model, expected)


def test_gradients_are_added_to_those_that_are_there():
    model = Tiny(3)
    _, first = all_at_once(model, *batch(3, seed=1))
    _, second = all_at_once(model, *batch(3, seed=2))
    add_gradients(model, *batch(3, seed=1)), add_gradients(model, *batch(3, seed=2))
    check_gradients(model, [a + b for a, b in zip(first, second)])


def test_heads_take_turns_and_the_trunk_runs_once():
    model = Tiny(3)
    add_gradients(model, *batch(3))
    first, *turns, last = model.notes
    expected = [[f"head {k} forward, {l} logits", f"head {k} backward"] for k in range(3)]  # in whichever order of heads
    assert sorted(turns[i : i + 2] for i in range(0, len(turns), 2)) == expected
    assert (first, last) == ("trunk forward", "trunk backward")
