import numpy as np
import pytest
import torch

from dsi.queries.copy_bias import MAX_IDF, Copying, idf

END, PAD = 1, 0
INPUT = torch.tensor([[5, 6, 5, 7, 5, 6, END], [6, 8, END, PAD, PAD, PAD, PAD]])


def test_idf_by_hand():
    values = idf([np.array([5, 5, 6]), np.array([6, 7]), np.array([6])], 9)
    assert values[6] == pytest.approx(0.0)  # in all three
    assert values[5] == pytest.approx(np.log(4 / 2))
    assert values[8] == pytest.approx(np.log(4))  # never seen
    assert idf([np.array([6])] * 5000, 9).max() == MAX_IDF


def test_tokens_of_the_document_and_those_that_follow():
    weights = torch.arange(9.0)
    copying = Copying(INPUT, weights, present=2.0, follow=10.0, end=END, pad=PAD)
    bias = torch.zeros(4, 9)
    copying.add(bias, torch.tensor([0, 0, 1, 1]), torch.tensor([5, PAD, 8, 5]))
    # after 5, document 0 goes on with 6 (twice, counted once) or 7
    assert bias[0].tolist() == [0, 0, 0, 0, 0, 10, 22, 24, 0]
    assert bias[1].tolist() == [0, 0, 0, 0, 0, 10, 12, 14, 0]  # the start follows nothing
    assert bias[2].tolist() == [0, 0, 0, 0, 0, 0, 12, 0, 16]  # the end is never raised
    assert bias[3].tolist() == [0, 0, 0, 0, 0, 0, 12, 0, 16]


def test_without_follow_only_presence_counts():
    copying = Copying(INPUT, torch.ones(9), present=1.5, follow=0.0, end=END, pad=PAD)
    logits = torch.full((1, 9), 4.0)
    copying.add(logits, torch.tensor([1]), torch.tensor([6]))
    assert logits.tolist() == [[4, 4, 4, 4, 4, 4, 5.5, 4, 5.5]]


def test_the_gradient_of_the_logits_is_what_arrives():
    copying = Copying(INPUT, torch.ones(9), present=1.0, follow=2.0, end=END, pad=PAD)
    leaf = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = leaf * 1.0
    copying.add(logits, torch.tensor([0, 0, 1, 1]), torch.tensor([5, PAD, 8, 5]))
    arriving = torch.arange(36.0).view(4, 9)
    logits.backward(arriving)
    assert torch.equal(leaf.grad, arriving)
