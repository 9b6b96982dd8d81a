"""The models among which ratios are searched: a dense backbone, and merged ones of its weights."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ltm_det.backbones import LTMViT
from ltm_det.backbones.common.weights import load_accounted, share_weights
from ltm_det.compat.state_dicts import origin
from ltm_det.conversion.convert import merged_config
from ltm_det.conversion.ratio_search import Label, Ratios, latencies, sensitivities, space_of
from ltm_det.measure.flops import build_backbone, count_backbone, dense_twin


class SearchedModels:
    """The dense backbone of a config, and merged ones that share its weights.

    Args:
        cfg: Of a detector; a merger in it is left out.
        options: Of the merger that takes its place, without ratios.
        checkpoint: Of the detector; mask modules in it are left out.
        ratios: Kept fractions to choose from.
        unit: What gets its ratio in one piece, see :func:`space_of`; None for a ViT.
        device: Where the models are.

    Raises:
        ValueError: If the weights do not fit, or the merger does not.
    """

    def __init__(
        self,
        cfg: Config,
        options: Mapping[str, Any],
        checkpoint: Mapping[str, Any],
        ratios: Sequence[float],
        unit: str | None,
        device: str,
    ) -> None:
        self.cfg, self.device = dense_twin(cfg) or cfg, device
        all_kept = merged_config(self.cfg, dict(options, compression_ratio=1.0))
        build_backbone(all_kept)  # a bad option of the merger raises
        self.dense = build_backbone(dense_twin(all_kept)).eval()
        if isinstance(self.dense, LTMViT) and unit:
            raise ValueError("a ViT has one merge point: leave --unit out")
        self.space = space_of(self.dense, options, ratios, unit or "stage")
        family, grid = self.dense.family, self.dense.pretrain_grid
        try:
            load_accounted(family, self.dense, checkpoint, drop_mergers=True, grid=grid)
        except ValueError as error:
            file = origin(checkpoint["state_dict"])
            raise ValueError(f"{file} does not fit the backbone: {error}") from error
        self.dense.to(device)

    @property
    def units(self) -> dict[str, list[str]]:
        """By the name of a unit the labels of its choices; the first changes nothing."""
        return {name: list(choices) for name, choices in self.space.units.items()}

    def costs(
        self, models: Sequence[nn.Module], cost: str, shape: tuple[int, int], image: Tensor
    ) -> list[float]:
        """GMACs of the backbones on one image, or milliseconds; any ``image`` takes as long."""
        if cost == "latency":
            return [1e3 * seconds for seconds in latencies(models, shape)]
        return [count_backbone(model, shape).macs["backbone"] / 1e9 for model in models]

    def errors(
        self,
        models: Sequence[nn.Module],
        batches: Iterable[Tensor],
        progress: Callable[[], Any] = lambda: None,
    ) -> list[float]:
        """See :func:`sensitivities`."""
        return sensitivities(self.dense, models, batches, progress)

    def recipe(self, labels: Sequence[Label]) -> dict[str, Any]:
        """A backbone has none."""
        return {}

    def merger(self, labels: Sequence[Label]) -> dict[str, Any] | None:
        """The backbone's merger for some choices."""
        ratios: Ratios = {}
        for unit, choice in labels:
            ratios |= self.space.units[unit][choice]
        return self.space.merger(ratios)

    def model(self, labels: Sequence[Label]) -> nn.Module:
        merger = self.merger(labels)
        if merger is None:
            return self.dense
        torch.manual_seed(0)
        model = build_backbone(merged_config(self.cfg, merger)).eval()
        share_weights(self.dense, model)
        return model.to(self.device)
