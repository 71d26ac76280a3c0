"""Muon: every step is nearly orthogonal, in batches as one at a time."""

import pytest
import torch

from muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(4, 16, 16), (3, 32, 16), (2, 16, 48), (1, 5, 7)])
def test_orthogonalize_keeps_the_directions_and_evens_out_the_sizes(shape):
    G = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    X = orthogonalize(G)
    sizes = U.mT @ X @ Vh.mT  # diagonal, if X has the directions of G
    diagonal = sizes.diagonal(dim1=1, dim2=2)
    assert (sizes - torch.diag_embed(diagonal)).abs().max() < 1e-8
    assert 0.5 < diagonal.min() and diagonal.max() < 1.3


def test_matrices_of_one_shape_and_stacked_ones_are_treated_like_single_ones():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 8, 8, generator=generator)
    gradients = torch.randn(3, 6, 8, 8, generator=generator)

    def run(params, pieces):
        optimizer = Muon([{"params": params, "pieces": pieces}], lr=0.02)
        for gradient in gradients:
            for p, g in zip(params, gradient.reshape(len(params), *params[0].shape)):
                p.grad = g.clone()
            optimizer.step()
        return torch.cat([p.detach().reshape(-1, 8, 8) for p in params])

    batched = run([torch.nn.Parameter(w.clone()) for w in start], pieces=1)
    stacked = run([torch.nn.Parameter(w.reshape(24, 8).clone()) for w in start.split(3)], pieces=3)
    one_by_one = torch.empty_like(start)
    for i in range(6):
        p = torch.nn.Parameter(start[i].clone())
        optimizer = Muon([p], lr=0.02)
        for gradient in gradients:
            p.grad = gradient[i].clone()
            optimizer.step()
        one_by_one[i] = p.detach()
    assert torch.allclose(batched, one_by_one, atol=1e-5) and torch.allclose(stacked, one_by_one, atol=1e-5)
    assert not torch.allclose(batched, start, atol=1e-2)


def test_two_steps_by_the_long_way():
    """Weight decay, momentum, Nesterov's look ahead, five Newton-Schulz steps, the factor for tall matrices, in float64."""
    generator = torch.Generator().manual_seed(0)
    for rows, columns, factor in ((8, 4, 2**0.5), (4, 8, 1.0), (6, 6, 1.0)):
        start, *gradients = torch.randn(3, rows, columns, generator=generator, dtype=torch.float64)
        p = torch.nn.Parameter(start.clone())
        optimizer = Muon([p], lr=0.02, momentum=0.9, weight_decay=0.3)
        expected, momentum = start.clone(), torch.zeros(rows, columns, dtype=torch.float64)
        for gradient in gradients:
            p.grad = gradient.clone()
            optimizer.step()
            momentum = 0.9 * momentum + 0.1 * gradient
            X = 0.1 * gradient + 0.9 * momentum
            X = X / X.norm()
            for _ in range(5):
                X = 3.4445 * X - 4.7750 * X @ X.T @ X + 2.0315 * X @ X.T @ X @ X.T @ X
            expected = expected - 0.02 * 0.3 * expected - 0.02 * factor * X
            assert torch.allclose(p.detach(), expected, atol=1e-6)


def test_a_step_is_as_long_as_the_learning_rate_of_now_says():
    p = torch.nn.Parameter(torch.zeros(4, 4))
    optimizer = Muon([p], lr=0.02)
    sizes = []
    for lr in (0.02, 0.01, 0.0):
        optimizer.param_groups[0]["lr"] = lr  # as the schedule does
        before, p.grad = p.detach().clone(), torch.eye(4)
        optimizer.step()
        sizes.append((p.detach() - before).norm().item())
    assert sizes[0] > 0 and sizes == pytest.approx([sizes[0], sizes[0] / 2, 0], rel=1e-4)


def test_a_gradient_of_zeros_moves_nothing():
    start = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    params = [torch.nn.Parameter(w.clone()) for w in start]
    params[0].grad, params[1].grad = torch.zeros(4, 4), torch.eye(4)  # they go through one batch
    Muon(params, lr=0.02).step()
    assert torch.equal(params[0], start[0]) and params[1].isfinite().all() and not torch.equal(params[1], start[1])
