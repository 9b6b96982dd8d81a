"""The bottleneck that LTM's step is given: its options, what sets it, and what is saved."""

import math
import re

import pytest
import torch

from ltm_det.ib import IBStatistics
from ltm_det.merging import BottleneckStep
from tests.test_merging.bottleneck_cases import DIM, PaperLTM


def test_set_bottleneck():
    step = BottleneckStep(DIM, clusters=4, classes=3)
    centroids, q = torch.randn(4, DIM), torch.rand(3, 4).softmax(-1)
    prior = torch.tensor([0.5, 0.3, 0.2])
    given = [t.clone() for t in (centroids, q, prior)]
    step.rate.data.fill_(0.7)
    step.set_bottleneck(centroids, q, prior, step.beta)
    for t in (centroids, q, prior):
        t.zero_()  # it has copies
    torch.testing.assert_close(step.centroids.data, given[0])
    torch.testing.assert_close(step.log_q.softmax(-1), given[1])
    torch.testing.assert_close(step.log_prior.softmax(-1), given[2])
    assert step.rate.item() == 0.7 and all(p.requires_grad and p.is_leaf for p in step.parameters())


def test_set_bottleneck_takes_float64_statistics():
    """As IBStatistics has them: an absent class, and clusters never seen."""
    step = BottleneckStep(DIM, clusters=4, classes=3).float()
    statistics = IBStatistics(4, 2, 3)
    out = torch.eye(4)[torch.zeros(5, dtype=torch.long)]
    statistics.update(out, torch.rand(5, 2).softmax(-1), torch.tensor([0, 0, 2, 2, 2]))
    step.set_bottleneck(
        torch.randn(4, DIM), statistics.class_conditional(), statistics.prior(), step.beta
    )
    step.rate.data.fill_(1.0)
    u = step(torch.randn(2, 9, DIM).float(), torch.rand(2, 9, 3).float())
    assert u.isfinite().all() and step.log_q.dtype == torch.float32


@pytest.mark.parametrize("wrong", ["clusters", "classes", "channels", "q", "prior"])
def test_set_bottleneck_of_other_sizes(wrong):
    step = BottleneckStep(DIM, clusters=4, classes=3)
    k, y, c = 4 + (wrong == "clusters"), 3 + (wrong == "classes"), DIM + (wrong == "channels")
    q = torch.rand(y, k + (wrong == "q")).softmax(-1)
    prior = torch.ones(1 if wrong == "prior" else y)
    before = {name: value.clone() for name, value in step.state_dict().items()}
    message = (
        f"update='gradient' has clusters=4, classes=3 in {DIM} channels, but was given {k} "
        f"clusters, {y} classes in {c} channels (Q is {tuple(q.shape)}, the prior "
        f"{tuple(prior.shape)}): set the merger's clusters and classes to these"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        step.set_bottleneck(torch.randn(k, c), q, prior, step.beta)
    assert all(torch.equal(value, before[name]) for name, value in step.state_dict().items())


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(clusters=1), "clusters must be a whole number from 2 on, got 1"),
        (dict(clusters=8.0), "clusters must be a whole number from 2 on, got 8.0"),
        (dict(classes=0), "classes must be a whole number from 2 on, got 0"),
        (dict(classes="80"), "classes must be a whole number from 2 on, got '80'"),
        *(
            (dict(beta=beta), f"beta must be finite and above 0, got {beta}")
            for beta in (0, -1.0, math.inf, math.nan)
        ),
    ],
    ids=str,
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PaperLTM(DIM, 7, 25, update="gradient", **options)


def test_what_is_saved():
    own = {f"step.{name}" for name in ("centroids", "log_q", "log_prior", "rate")}
    assert set(PaperLTM(DIM, 5, 9, update="gradient").state_dict()) == own | {"initial_logits"}
    assert set(PaperLTM(DIM, 5, 9, chained=True, update="gradient").state_dict()) == own


def test_repr():
    text = repr(PaperLTM(DIM, 7, 25, update="gradient", clusters=8, classes=3, beta=2.5))
    assert "update=gradient" in text and "clusters=8, classes=3, beta=2.5" in text


def test_set_bottleneck_of_another_beta():
    step = BottleneckStep(DIM, clusters=4, classes=3, beta=10.0)
    given = torch.randn(4, DIM), torch.full((3, 4), 0.25), torch.full((3,), 1 / 3)
    with pytest.raises(
        ValueError, match=r"beta=10.0, but Q was counted with beta=5.0: set the mer"
    ):
        step.set_bottleneck(*given, 5.0)
