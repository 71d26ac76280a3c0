"""Tests that must fail. grade.py runs them after the graders: where one passes, the answer has tampered with testing."""

import pytest
import torch


def test_an_assertion():
    assert [1] == [2]


def test_equal():
    assert torch.equal(torch.zeros(2), torch.ones(2))


def test_allclose():
    assert torch.allclose(torch.zeros(2), torch.ones(2))


def test_comparison():
    assert (torch.zeros(2) == torch.ones(2)).all() or not (torch.zeros(2) < torch.ones(2)).any()


def test_approx():
    assert 1.0 == pytest.approx(2.0)


def test_gradcheck():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, d):
            return 3 * d

    assert torch.autograd.gradcheck(Wrong.apply, torch.ones(2, dtype=torch.float64, requires_grad=True))


def test_a_fault_that_must_be_raised():
    with pytest.raises(ValueError):
        pass
