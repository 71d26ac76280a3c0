"""Exercise 4: the selective scan, its recurrence (part a) and its backward pass (part b). Everything is in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model_mamba import selective_scan, selective_scan_reference
from sizes import draw


def scan_inputs(batch, length, channels, N, seed=draw("inputs", 0, 10**6)):
    """x, dt, A, B, C, D and the first state h."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)
    x, dt, A = normal(batch, length, channels), F.softplus(normal(batch, length, channels)), -normal(channels, N).exp()
    return [x, dt, A, normal(batch, length, N), normal(batch, length, N), normal(channels), normal(batch, channels, N)]


def closed_form(x, dt, A, B, C, D, h):
    """The same scan as a sum: what step s wrote has decayed by exp(A (dt_{s+1} + … + dt_t)) when step t reads it."""
    time = dt.cumsum(dim=1)  # (B, T, E)
    past = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()[:, :, None, None]  # (T, T, 1, 1): s up to t
    elapsed = (time[:, :, None] - time[:, None])[..., None] * A  # (B, T, T, E, N): from s to t
    decay = elapsed.masked_fill(~past, -torch.inf).exp()
    states = torch.einsum("btsen,bse,bsn->bten", decay, dt * x, B) + (time[..., None] * A).exp() * h[:, None]
    return torch.einsum("bten,btn->bte", states, C) + D * x, states[:, -1]


class Watch(TorchDispatchMode):
    """Notes the size of the largest tensor that is made, and how many are made where autograd records what happens."""

    def __init__(self):
        super().__init__()
        self.largest, self.recorded = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.largest = max(self.largest, made.numel())
        self.recorded += torch.is_grad_enabled() and "like" not in str(function)  # like: the gradient that autograd begins with
        return made


def near(a, b):
    return torch.allclose(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, draw("length", 9, 20)])
def test_a_the_recurrence_is_the_sum_that_it_stands_for(length):
    inputs = scan_inputs(3, length, 4, 5)
    kept = [v.clone() for v in inputs]
    y, h = selective_scan_reference(*inputs)
    for name, before, after in zip("x dt A B C D h".split(), kept, inputs):
        assert torch.equal(before, after), f"the argument {name} was changed"
    expected_y, expected_h = closed_form(*inputs)
    assert y.shape == (3, length, 4) and h.shape == (3, 4, 5)
    assert near(y, expected_y), f"y differs by {(y - expected_y).abs().max():.1g}"
    assert near(h, expected_h), f"the last state differs by {(h - expected_h).abs().max():.1g}"


def test_a_autograd_finds_its_way_through_it():
    inputs = [v.requires_grad_() for v in scan_inputs(2, 5, 3, 4)]
    ours, exact = (scan(*inputs) for scan in (selective_scan_reference, closed_form))
    gradients = [torch.autograd.grad(y.sin().sum() + h.sum(), inputs) for y, h in (ours, exact)]
    for name, a, b in zip("x dt A B C D h".split(), *gradients):
        assert near(a, b), f"the gradient of {name}"


def test_a_it_is_a_recurrence_whose_memory_grows_with_the_length():
    with torch.no_grad(), Watch() as watch:
        selective_scan_reference(*scan_inputs(1, 60, 3, 4))
    assert watch.largest <= 4 * 60 * 3 * 4, "a tensor is far larger than all the states: step by step, please"


def test_a_where_no_time_passes_the_state_stays():
    x, dt, A, B, C, D, h = scan_inputs(2, 6, 3, 4)
    y, last = selective_scan_reference(x, 0 * dt, A, B, C, D, h)
    assert near(last, h) and near(y - D * x, torch.einsum("ben,btn->bte", h, C))


def test_a_two_halves_are_the_whole():
    x, dt, A, B, C, D, h = scan_inputs(2, 9, 3, 4)
    y, last = selective_scan_reference(x, dt, A, B, C, D, h)
    first, between = selective_scan_reference(x[:, :4], dt[:, :4], A, B[:, :4], C[:, :4], D, h)
    second, end = selective_scan_reference(x[:, 4:], dt[:, 4:], A, B[:, 4:], C[:, 4:], D, between)
    assert near(torch.cat([first, second], dim=1), y) and near(end, last)


@pytest.mark.parametrize("length", [1, 8, 10])
def test_b_gradients_are_finite_differences(length):
    def scan(*inputs):
        return selective_scan(*inputs, return_state=True, method="fast")

    inputs = [v.requires_grad_() for v in scan_inputs(2, length, 2, 2)]
    assert torch.autograd.gradcheck(scan, inputs)


@pytest.mark.parametrize("length", [7, 33])
def test_b_gradients_are_those_of_the_sum(length):
    inputs = [v.requires_grad_() for v in scan_inputs(5, length, 4, 3)]
    kept = [v.detach().clone() for v in inputs]
    results = []
    for y, h in (selective_scan(*inputs, return_state=True, method="fast"), closed_form(*inputs)):
        loss = (y.sin() * torch.arange(1, length + 1)[:, None]).sum() + h.pow(2).sum()
        results.append(torch.autograd.grad(loss, inputs, retain_graph=True))
        again = torch.autograd.grad(loss, inputs)  # nothing that forward kept may be lost on the way
        assert all(near(a, b) for a, b in zip(results[-1], again))
    for name, fast, exact in zip(("x", "dt", "A", "B", "C", "D", "initial_state"), *results):
        assert fast.shape == exact.shape and near(fast, exact), f"the gradient of {name}"
    assert all(torch.equal(a, b) for a, b in zip(inputs, kept))


def test_b_autograd_is_not_asked_for_what_must_be_derived():
    inputs = [v.requires_grad_() for v in scan_inputs(2, 20, 4, 3)]
    y, h = selective_scan(*inputs, return_state=True, method="fast")
    loss = y.sum() + h.sum()
    with Watch() as watch:
        torch.autograd.grad(loss, inputs)
    assert watch.recorded == 0, "backward lets autograd record operations, to derive the gradient in its place"
    assert watch.largest <= 8 * 2 * 20 * 4 * 3, "a tensor is far larger than all the states"
