"""Sizes and samples that the tests of the bound and of its gradients share."""

import torch

HALF = [torch.float16, torch.bfloat16]
SIZES = [(9, 5, 4, 3), (1, 3, 4, 2), (6, 2, 1, 3), (7, 4, 3, 1), (3, 5, 11, 4)]  # n, C, K, Y


def close(actual, expected, atol=1e-10):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)
