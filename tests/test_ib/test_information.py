"""Entropy and mutual information against the formulas, and at their limits."""

import math

import pytest
import torch

from ltm_det.ib import assign, entropy, mutual_information
from tests.test_ib.oracle import entropy_oracle, information_oracle

SHAPES = [(3, 4), (1, 5), (5, 1), (1, 1), (7, 2), (12, 12)]


def counts(*shape):
    """Non-negative, some of them zero, nowhere near each other."""
    table = torch.randn(*shape, dtype=torch.float64).mul(2).exp()
    table = table * (torch.rand(*shape) > 0.3)
    table[0, 0] = 1.0
    return table


@pytest.mark.parametrize("shape", SHAPES)
def test_they_are_the_formulas(shape):
    for _ in range(5):
        table = counts(*shape)
        assert abs(mutual_information(table).item() - information_oracle(table)) < 1e-10
        assert abs(entropy(table).item() - entropy_oracle(table)) < 1e-10


@pytest.mark.parametrize("shape", SHAPES)
def test_independent_variables_share_nothing(shape):
    a, b = torch.rand(shape[0]).double(), torch.rand(shape[1]).double()
    information = mutual_information(a[:, None] * b)
    assert 0 <= information.item() < 1e-12


@pytest.mark.parametrize("classes", [1, 2, 9])
def test_a_copy_tells_all(classes):
    """X~ = Y, one-hot: I(X~; Y) = H(Y); also under another name for each class."""
    prior = torch.rand(classes).double() + 0.1
    joint = torch.diag(prior)[torch.randperm(classes)]
    torch.testing.assert_close(mutual_information(joint), entropy(prior), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_information_is_at_most_either_entropy_and_never_negative(shape):
    for _ in range(50):
        table = counts(*shape)
        least = min(entropy(table.sum(0)).item(), entropy(table.sum(1)).item())
        assert 0 <= mutual_information(table).item() <= least + 1e-12


def test_neither_order_nor_scale_counts():
    table = counts(5, 7)
    expected = mutual_information(table)
    torch.testing.assert_close(mutual_information(table.T), expected)
    torch.testing.assert_close(mutual_information(table * 1e9), expected)
    torch.testing.assert_close(mutual_information(table[torch.randperm(5)]), expected)


def test_clusters_made_one_tell_no_more():
    for _ in range(50):
        table = counts(6, 5)
        merged = torch.cat([table[:1] + table[1:2], table[2:]])
        assert mutual_information(merged) <= mutual_information(table) + 1e-12


def test_softer_assignments_tell_less():
    """X~ = Y blurred by the inverse temperature: from nothing to H(Y)."""
    prior = torch.tensor([0.5, 0.3, 0.2]).double()
    told = []
    for beta in (1e-9, 0.1, 1.0, 10.0, 1000.0):
        phi = assign(torch.eye(3).double(), torch.eye(3).double(), beta)
        told.append(mutual_information(prior[:, None] * phi).item())
    assert told == sorted(told)
    assert told[0] < 1e-12 and abs(told[-1] - entropy_oracle(prior)) < 1e-12


def test_entropy_of_equals_and_of_one():
    assert abs(entropy(torch.full((3, 4), 5.0)).item() - math.log(12)) < 1e-6
    assert entropy(torch.tensor([0.0, 3.0, 0.0])).item() == 0


def test_whole_numbers_are_counts_too():
    table = torch.tensor([[3, 0], [1, 4]])
    assert abs(mutual_information(table).item() - information_oracle(table)) < 1e-6


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0)])
@pytest.mark.parametrize("measure", [entropy, mutual_information])
def test_nothing_counted(measure, shape):
    with pytest.raises(ValueError, match="table of .* without samples"):
        measure(torch.zeros(shape))
