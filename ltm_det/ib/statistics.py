"""Streaming sums from which the bottleneck and its bound are computed.

Shapes: n samples, K clusters of merged features, J clusters of input features, Y classes.
"""

import math

import torch
from torch import Tensor, distributed

from ltm_det.ib.bound import EPS, class_conditional
from ltm_det.ib.information import entropy, mutual_information


class IBStatistics:
    """Sums over samples of their assignments, in float64; they add up over batches and ranks.

    Args:
        clusters: K, of the merged features X~.
        input_clusters: J, of the input features X.
        classes: Y, background included.
        device: Where the sums are kept; for :meth:`all_reduce` the process group's, on NCCL a GPU.
    """

    def __init__(
        self, clusters: int, input_clusters: int, classes: int, device: str | torch.device = "cpu"
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.with_input = zeros(clusters, input_clusters)  # sum of phi_out phi_in^T
        self.with_class = zeros(classes, clusters)  # sum of phi_out over each class
        self.input_sum = zeros()  # sum of phi_in log phi_in
        self.output_sum = zeros()  # sum of phi_out log phi_out
        self.count = zeros()  # n

    @property
    def sums(self) -> tuple[Tensor, ...]:
        return self.with_input, self.with_class, self.input_sum, self.output_sum, self.count

    def update(self, phi_out: Tensor, phi_in: Tensor, labels: Tensor) -> "IBStatistics":
        """Counts samples in.

        Args:
            phi_out: (n, K), assignments of the merged features; rows sum to one.
            phi_in: (n, J), of the input features.
            labels: (n,), whole numbers below Y.

        Raises:
            ValueError: On a label that is no class, or shapes that do not fit.
        """
        clusters, inputs = self.with_input.shape
        classes = len(self.with_class)
        shapes = [tuple(x.shape) for x in (labels, phi_out, phi_in)]
        n = shapes[0][:1]
        if not n or shapes != [n, (*n, clusters), (*n, inputs)]:
            raise ValueError(
                f"labels {shapes[0]} with assignments {shapes[1]} and {shapes[2]}: expected (n,) "
                f"with {clusters} and {inputs} clusters a sample"
            )
        bad = labels[(labels < 0) | (labels >= classes)]
        if len(bad):
            raise ValueError(f"label {bad[0].item()} is none of the classes 0 to {classes - 1}")
        out = phi_out.detach().to(self.with_input)
        inside = phi_in.detach().to(self.with_input)
        self.with_input += out.T @ inside
        self.with_class.index_add_(0, labels.to(out.device), out)
        self.input_sum += torch.xlogy(inside, inside).sum()
        self.output_sum += torch.xlogy(out, out).sum()
        self.count += len(labels)
        return self

    def merge(self, other: "IBStatistics") -> "IBStatistics":
        """Counts in what another has counted; ValueError if it has other clusters or classes."""
        sizes = [(*x.with_input.shape, len(x.with_class)) for x in (self, other)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"clusters, input clusters and classes differ: {sizes[0]}, {sizes[1]}")
        for own, more in zip(self.sums, other.sums, strict=True):
            own += more.to(own.device)
        return self

    def all_reduce(self) -> "IBStatistics":
        """Sums over all ranks, so that each has the same; nothing without a process group."""
        if distributed.is_available() and distributed.is_initialized():
            for sums in self.sums:
                distributed.all_reduce(sums)
        return self

    @property
    def samples(self) -> int:
        return int(self.count)

    def class_conditional(self, eps: float = EPS) -> Tensor:
        """Q(a|y), (Y, K) in float64."""
        return class_conditional(self.with_class, eps)

    def prior(self, eps: float = EPS) -> Tensor:
        """p(y), (Y,) in float64."""
        counts = self.with_class.sum(1) + eps
        return counts / counts.sum()

    def summary(self, q: Tensor | None = None) -> dict[str, float]:
        """The bottleneck of all samples, in nats.

        Args:
            q: (Y, K), the Q(a|y) that the bound is taken with; None for that of these samples.

        Returns:
            - information_x: I(X~; X)
            - information_y: I(X~; Y)
            - ib: their difference; at most bound + input_term + H(X), H(X) being the entropy of
              the input's clusters, which like the input term is no function of the model
            - bound: the part of IBB that depends on the model; with Q of the same samples, H(X~|Y)
            - input_term: the part of IBB that does not
            - label_entropy: H(Y), the most that I(X~; Y) can be
            - softness: mean entropy of an assignment over log K; 1: beta is too low to tell
              clusters apart, 0: hard clusters
            - samples: n

        Raises:
            ValueError: If nothing was counted.
        """
        information_x = mutual_information(self.with_input).item()
        information_y = mutual_information(self.with_class).item()
        q = self.class_conditional() if q is None else q.to(self.with_class)
        log_k = math.log(max(len(self.with_input), 2))
        return dict(
            information_x=information_x,
            information_y=information_y,
            ib=information_x - information_y,
            bound=-torch.xlogy(self.with_class, q).sum().item() / self.samples,
            input_term=self.input_sum.item() / self.samples,
            label_entropy=entropy(self.with_class.sum(1)).item(),
            softness=abs(self.output_sum.item()) / self.samples / log_k,
            samples=self.samples,
        )
