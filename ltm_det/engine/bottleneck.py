"""The information bottleneck at the merge points of a detector: samples, clusters, Q, the bound.

Shapes: n samples, C channels, K clusters, Y classes.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmengine.dist import all_gather_object, broadcast_object_list, get_comm_device, get_rank
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from ltm_det.ib import IBStatistics, assign, bound, class_cost, unit
from ltm_det.merging import BottleneckStep, Merger


def fit_centroids(features: Tensor, clusters: int, seed: int = 0) -> Tensor:
    """Centroids of unit vectors by scikit-learn's mini-batch k-means.

    Args:
        features: (n, C)

    Returns:
        (K, C), of unit length.

    Raises:
        ValueError: If there are fewer samples than clusters.
    """
    if len(features) < clusters:
        raise ValueError(
            f"{clusters} clusters need as many samples, but there are {len(features)}: "
            "collect more, or lower the number of clusters"
        )
    kmeans = MiniBatchKMeans(clusters, random_state=seed, n_init=3)
    with warnings.catch_warnings():  # fewer distinct samples than clusters: some coincide
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans.fit(unit(features).cpu().numpy())
    return unit(torch.as_tensor(kmeans.cluster_centers_, dtype=torch.float32))


class Bottleneck:
    """Gathers samples at merge points; from them come centroids, then Q, then the bound.

    Centroids and the Q that belongs to them are replaced together, from one and the same
    assignment, so that the ids of clusters always match (defect 2 of the published loss).

    Args:
        points: Names of the merge points.
        classes: Y, background included.
        clusters: K, for merged features and for the input alike.
        beta: Inverse temperature of the assignments.
        capacity: Samples kept on each rank; beyond it the oldest go.
    """

    def __init__(
        self, points: Iterable[str], classes: int, clusters: int, beta: float, capacity: int
    ) -> None:
        self.points = list(points)
        self.classes, self.clusters = classes, clusters
        self.beta, self.capacity = beta, capacity
        self.centroids: dict[str, Tensor] = {}  # by point, (K, C)
        self.q: dict[str, Tensor] = {}  # by point, Q(a|y) as (Y, K) in float64
        self.prior = torch.full((classes,), 1 / classes)
        self.clear()

    def clear(self) -> None:
        """Forgets the samples, not the centroids."""
        self.labels = torch.zeros(0, dtype=torch.long)
        self.inputs: Tensor | None = None
        self.features: dict[str, Tensor] = {}

    @property
    def ready(self) -> bool:
        """Whether there are centroids."""
        return bool(self.centroids)

    def add(self, labels: Tensor, inputs: Tensor, features: dict[str, Tensor]) -> None:
        """Gathers samples.

        Args:
            labels: (n,)
            inputs: (n, D), their pixels.
            features: At each point, (n, C).
        """

        def append(old: Tensor | None, new: Tensor) -> Tensor:
            new = new.detach().cpu()
            return (new if old is None else torch.cat([old, new]))[-self.capacity :]

        self.labels = append(self.labels, labels)
        self.inputs = append(self.inputs, inputs.float())
        for name in self.points:
            self.features[name] = append(self.features.get(name), features[name].float())

    def loss(self, name: str, features: Tensor, labels: Tensor) -> Tensor:
        """IBB of features (n, C), less its constant term, with the present centroids and Q."""
        phi = assign(features, self.centroids[name].to(features.device), self.beta)
        log_q = self.q[name].log().to(phi)
        return bound(phi, class_cost(log_q, labels.to(phi.device)))

    def refresh(self) -> dict[str, dict[str, float]]:
        """New centroids from the samples of all ranks, then Q, then forgets the samples.

        Returns:
            By point, what :meth:`ltm_det.ib.IBStatistics.summary` tells, the same on every rank.
            Empty, and nothing changes, where there are fewer samples than clusters.
        """
        samples = sum(all_gather_object(len(self.labels)))
        if samples < self.clusters:
            return {}
        input_centroids = self._fit(self.inputs)
        summaries = {}
        for name in self.points:
            self.centroids[name] = self._fit(self.features.get(name))
            statistics = IBStatistics(self.clusters, self.clusters, self.classes, get_comm_device())
            if len(self.labels):
                statistics.update(
                    assign(self.features[name], self.centroids[name], self.beta),
                    assign(self.inputs, input_centroids, self.beta),
                    self.labels,
                )
            statistics.all_reduce()
            self.q[name], self.prior = (
                statistics.class_conditional().cpu(),
                statistics.prior().cpu(),
            )
            summaries[name] = statistics.summary()
        self.clear()
        return summaries

    def give(self, mergers: Mapping[str, Merger]) -> None:
        """Sets centroids and Q of mask modules that compute their step from them.

        Args:
            mergers: By merge point.
        """
        for name, merger in mergers.items():
            step = getattr(merger, "step", None)
            if isinstance(step, BottleneckStep) and name in self.points:
                step.set_bottleneck(self.centroids[name], self.q[name], self.prior, self.beta)

    def _fit(self, features: Tensor | None) -> Tensor:
        """Centroids of all ranks' features, fitted on the first rank."""
        everywhere = [part for part in all_gather_object(features) if part is not None]
        fitted: list[Any] = [None]
        if get_rank() == 0:
            fitted = [fit_centroids(torch.cat(everywhere), self.clusters)]
        broadcast_object_list(fitted)
        return fitted[0]

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, tensors in dicts; the samples are those of this rank."""
        kept = ("centroids", "q", "prior", "labels", "inputs", "features")
        return {name: getattr(self, name) for name in kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError if the state is of other points, classes or clusters."""
        clusters = {len(centroids) for centroids in state["centroids"].values()}
        points = state["centroids"].keys() | state["features"].keys()
        theirs = (len(state["prior"]), clusters or {self.clusters}, points or set(self.points))
        if theirs != (self.classes, {self.clusters}, set(self.points)):
            raise ValueError(
                f"the checkpoint's bottleneck has {theirs[0]} classes, {max(theirs[1])} clusters "
                f"and merge points {sorted(theirs[2])}, but the hook has {self.classes}, "
                f"{self.clusters} and {sorted(self.points)}: resume with the settings of the run"
            )
        for name, value in state.items():
            setattr(self, name, _on_cpu(value))


def _on_cpu(state: Any) -> Any:
    """A checkpoint's tensors, which mmengine loads onto the model's device."""
    if isinstance(state, dict):
        return {name: _on_cpu(value) for name, value in state.items()}
    return state.cpu() if isinstance(state, Tensor) else state
