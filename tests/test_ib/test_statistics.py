"""The streaming sums: against the formulas, in any split of the samples, and over ranks."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ltm_det.ib import IBStatistics, bound, class_cost, input_term
from ltm_det.ib.bound import EPS
from tests.test_ib.oracle import (
    bound_oracle,
    conditional_oracle,
    entropy_oracle,
    information_oracle,
    joint_oracle,
    one_hot,
)

K, J, Y = 5, 4, 3


def samples(n, clusters=K, inputs=J, classes=Y, sharpness=2.0, dtype=torch.float64):
    """Soft assignments that tell something of each other and of the labels, and the labels."""
    labels = torch.randint(classes, (n,))
    cause = torch.randn(n, 1) + labels[:, None]
    out = (sharpness * (torch.randn(n, clusters) + cause * torch.arange(clusters))).to(dtype)
    inside = (sharpness * (torch.randn(n, inputs) - cause * torch.arange(inputs))).to(dtype)
    return out.softmax(-1), inside.softmax(-1), labels


def counted(out, inside, labels, classes=Y):
    return IBStatistics(out.shape[1], inside.shape[1], classes).update(out, inside, labels)


def same(one, other, tolerance=1e-12):
    for a, b in zip(one.sums, other.sums, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
    assert one.samples == other.samples
    a, b = one.summary(), other.summary()
    assert a == pytest.approx(b, abs=10 * tolerance)


@pytest.mark.parametrize(
    "n, clusters, inputs, classes", [(12, 5, 4, 3), (9, 2, 7, 1), (20, 1, 1, 4)]
)
def test_summary_is_the_formulas(n, clusters, inputs, classes):
    out, inside, labels = samples(n, clusters, inputs, classes)
    labels[:classes] = torch.arange(classes)
    ys = labels.tolist()
    statistics = counted(out, inside, labels, classes)
    summary = statistics.summary()
    with_input = joint_oracle(out, inside)
    with_class = joint_oracle(one_hot(ys, classes), out)
    torch.testing.assert_close(statistics.with_input, n * with_input)
    torch.testing.assert_close(statistics.with_class, n * with_class)
    q = conditional_oracle(out, ys, classes, EPS)
    entropy = -sum(v * math.log(v) for v in out.flatten().tolist())
    of_input = sum(v * math.log(v) for v in inside.flatten().tolist()) / n
    expected = dict(
        information_x=information_oracle(with_input),
        information_y=information_oracle(with_class),
        ib=information_oracle(with_input) - information_oracle(with_class),
        bound=bound_oracle(out, inside, q, ys) - of_input,
        input_term=of_input,
        label_entropy=entropy_oracle(torch.bincount(labels, minlength=classes)),
        softness=entropy / n / math.log(clusters) if clusters > 1 else 0.0,
        samples=n,
    )
    assert summary == pytest.approx(expected, abs=1e-10)
    assert type(summary["samples"]) is int


def test_it_agrees_with_the_functions_on_samples():
    out, inside, labels = samples(30)
    statistics = counted(out, inside, labels)
    summary = statistics.summary()
    cost = class_cost(statistics.class_conditional().log(), labels)
    assert summary["bound"] == pytest.approx(bound(out, cost).item(), abs=1e-12)
    assert summary["input_term"] == pytest.approx(input_term(inside).item(), abs=1e-12)


def test_bound_with_its_own_q_is_the_entropy_that_the_class_leaves():
    """H(X~|Y) = H(X~, Y) - H(Y), and no other Q has a lower bound."""
    statistics = counted(*samples(40))
    table = statistics.with_class
    left = entropy_oracle(table) - entropy_oracle(table.sum(1))
    own = statistics.summary()["bound"]
    assert own == pytest.approx(left, abs=1e-6)
    for _ in range(20):
        foreign = (table + torch.rand(Y, K).double()).softmax(-1)
        assert statistics.summary(foreign)["bound"] > own


def test_a_foreign_q_changes_the_bound_alone():
    out, inside, labels = samples(15)
    statistics, q = counted(out, inside, labels), torch.randn(Y, K).softmax(-1)
    own, summary = statistics.summary(), statistics.summary(q)
    expected = bound_oracle(out, inside, q, labels.tolist()) - own["input_term"]
    assert summary["bound"] == pytest.approx(expected, abs=1e-10)
    assert summary | dict(bound=0) == own | dict(bound=0)


def test_a_foreign_q_of_zero_matters_where_samples_are():
    out, inside = torch.eye(3).double()[[0, 1]], torch.rand(2, 2).softmax(-1)
    statistics = counted(out, inside, torch.tensor([0, 1]), classes=2)
    q = torch.eye(3)[:2]
    assert statistics.summary(q)["bound"] == 0
    assert statistics.summary(q.flip(0))["bound"] == math.inf


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 5.0])
def test_the_bound_is_one(sharpness):
    """ib <= bound + input_term + H(X), whatever Q and however few samples."""
    for n in [1, 2, 3, 5, 10, 30] * 10:
        statistics = counted(*samples(n, sharpness=sharpness))
        of_input = entropy_oracle(statistics.with_input.sum(0))
        for q in (None, torch.randn(Y, K).softmax(-1)):
            summary = statistics.summary(q)
            limit = summary["bound"] + summary["input_term"] + of_input
            assert summary["ib"] <= limit + 1e-12
            assert summary["information_y"] <= summary["label_entropy"] + 1e-12


def test_features_that_are_the_class_tell_its_entropy():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    statistics = counted(one_hot(labels.tolist(), 3), torch.rand(6, 2).softmax(-1), labels)
    summary = statistics.summary()
    assert summary["information_y"] == pytest.approx(summary["label_entropy"], abs=1e-12)
    assert summary["label_entropy"] == pytest.approx(entropy_oracle(torch.tensor([3.0, 1, 2])))
    assert summary["bound"] == pytest.approx(0, abs=1e-4) and summary["softness"] == 0


def test_features_that_are_always_the_same_tell_nothing():
    _, inside, labels = samples(20)
    summary = counted(torch.rand(1, K).softmax(-1).expand(20, -1), inside, labels).summary()
    assert summary["information_x"] == pytest.approx(0, abs=1e-7)
    assert summary["information_y"] == pytest.approx(0, abs=1e-7)
    uniform = counted(torch.full((20, K), 1 / K), inside, labels).summary()
    assert uniform["softness"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("n, classes, clusters", [(1, 4, 9), (5, 1, 9), (2, 6, 40), (1, 1, 1)])
def test_few_samples_few_classes_many_clusters(n, classes, clusters):
    statistics = counted(*samples(n, clusters, J, classes), classes=classes)
    assert all(math.isfinite(value) for value in statistics.summary().values())
    absent = statistics.with_class.sum(1) == 0
    q = statistics.class_conditional()
    torch.testing.assert_close(q[absent], torch.full_like(q[absent], 1 / clusters))
    torch.testing.assert_close(q.sum(1), torch.ones(classes).double())
    assert (q > 0).all() and absent.sum() >= classes - n
    if n == 1:
        assert statistics.summary()["ib"] == pytest.approx(0, abs=1e-12)


def test_prior():
    labels = torch.tensor([2, 0, 2, 2])
    out, inside, _ = samples(4)
    prior = counted(out, inside, labels).prior()
    expected = (torch.tensor([1.0, 0, 3]).double() + EPS) / (4 + 3 * EPS)
    torch.testing.assert_close(prior, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(prior.sum(), torch.ones(()).double())


@pytest.mark.parametrize("cuts", [[], [1], [0, 7], [3, 3, 10], list(range(1, 23))])
def test_any_split_into_batches_adds_up(cuts):
    out, inside, labels = samples(23)
    statistics = IBStatistics(K, J, Y)
    for batch in torch.arange(23).tensor_split(cuts):
        statistics.update(out[batch], inside[batch], labels[batch])
    same(statistics, counted(out, inside, labels))


@pytest.mark.parametrize("cuts", [[11], [0], [4, 5, 20]])
def test_merged_statistics_are_those_of_all(cuts):
    out, inside, labels = samples(23)
    merged = IBStatistics(K, J, Y)
    for part in torch.arange(23).tensor_split(cuts):
        other = counted(out[part], inside[part], labels[part])
        before = [sums.clone() for sums in other.sums]
        assert merged.merge(other) is merged
        assert all(torch.equal(a, b) for a, b in zip(before, other.sums))
    same(merged, counted(out, inside, labels))


@pytest.mark.parametrize("sizes", [(1, J, Y), (K, 1, Y), (K, J, 1), (K, J, Y + 1)])
def test_statistics_of_other_sizes_are_not_merged(sizes):
    with pytest.raises(ValueError, match=r"classes differ: \(5, 4, 3\), \("):
        IBStatistics(K, J, Y).merge(IBStatistics(*sizes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_are_in_float64_whatever_comes_in(dtype):
    """Many small batches of assignments in low precision add up as well as their values do."""
    out, inside, labels = samples(200, dtype=torch.float32)
    out, inside = out.to(dtype).requires_grad_(), inside.to(dtype)
    statistics = IBStatistics(K, J, Y)
    for batch in torch.arange(200).split(3):
        with torch.autocast("cpu", torch.bfloat16):
            statistics.update(out[batch], inside[batch], labels[batch])
    assert all(s.dtype == torch.float64 and not s.requires_grad for s in statistics.sums)
    same(statistics, counted(out.double(), inside.double(), labels))


def test_labels_may_be_of_any_width():
    out, inside, labels = samples(10)
    same(counted(out, inside, labels.int()), counted(out, inside, labels))


def test_no_samples_change_nothing():
    statistics = counted(*samples(10))
    before = [sums.clone() for sums in statistics.sums]
    statistics.update(torch.zeros(0, K), torch.zeros(0, J), torch.zeros(0, dtype=torch.long))
    assert all(torch.equal(a, b) for a, b in zip(before, statistics.sums))


@pytest.mark.parametrize("label", [-1, Y, 100])
def test_a_label_that_is_no_class(label):
    out, inside, labels = samples(10)
    labels[7] = label
    statistics = IBStatistics(K, J, Y)
    with pytest.raises(ValueError, match=f"label {label} is none of the classes 0 to 2"):
        statistics.update(out, inside, labels)
    assert all((sums == 0).all() for sums in statistics.sums)


@pytest.mark.parametrize(
    "out, inside, labels",
    [
        ((10, K + 1), (10, J), (10,)),
        ((10, K), (10, J - 1), (10,)),
        ((9, K), (10, J), (10,)),
        ((10, K), (9, J), (10,)),
        ((10, K), (10, J), (9,)),
        ((10, K), (10, J), (10, 1)),
        ((10, K), (10, J), ()),
        ((2, 5, K), (2, 5, J), (2, 5)),
        ((K,), (J,), (1,)),
        ((K,), (J,), ()),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit(out, inside, labels):
    with pytest.raises(ValueError, match=r"labels \(.*expected \(n,\) with 5 and 4 clusters"):
        IBStatistics(K, J, Y).update(
            torch.zeros(out), torch.zeros(inside), torch.zeros(labels, dtype=torch.long)
        )


def test_nothing_counted():
    statistics = IBStatistics(K, J, Y)
    assert statistics.samples == 0
    with pytest.raises(ValueError, match="without samples"):
        statistics.summary()
    torch.testing.assert_close(statistics.class_conditional(), torch.full((Y, K), 1 / K).double())
    torch.testing.assert_close(statistics.prior(), torch.full((Y,), 1 / Y).double())


def test_alone_there_is_nothing_to_reduce():
    statistics = counted(*samples(10))
    before = [sums.clone() for sums in statistics.sums]
    assert statistics.all_reduce() is statistics
    assert all(torch.equal(a, b) for a, b in zip(before, statistics.sums))


RANK = """
import datetime, sys, torch
from torch import distributed
from ltm_det.ib import IBStatistics

sys.meta_path = [hiding.finder for hiding in sys.meta_path]  # torch looks up its backends there
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method="file://{folder}/meeting", rank={rank},
                               world_size=2, timeout=datetime.timedelta(seconds=60))
results = []
for parts in torch.load("{folder}/parts.pt"):
    statistics = IBStatistics(5, 4, 3).update(*parts[{rank}]).all_reduce()
    results.append([statistics.sums, statistics.summary()])
torch.save(results, "{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


def test_two_ranks_are_one(tmp_path, run_python):
    """Each with half of the samples, and one with none."""
    whole = samples(31)
    cuts = [15, 0]
    parts = [tuple(zip(*(x.tensor_split([cut]) for x in whole))) for cut in cuts]
    torch.save(parts, tmp_path / "parts.pt")
    code = [RANK.format(folder=tmp_path, rank=rank) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda c: run_python(c, hidden=["mmcv", "mmengine", "mmdet"]), code))
    assert all(run.returncode == 0 for run in runs), [run.stderr for run in runs]
    expected = counted(*whole)
    for one, other in zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2))):
        assert all(torch.equal(a, b) for a, b in zip(one[0], other[0])) and one[1] == other[1]
        for a, b in zip(one[0], expected.sums):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
        assert one[1] == pytest.approx(expected.summary(), abs=1e-12)
