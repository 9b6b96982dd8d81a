"""Stages that are not trained."""

from collections.abc import Iterable
from typing import Any

from torch import nn


class FrozenStages(nn.Module):
    """A backbone that takes its first stages out of training, again whenever its mode changes."""

    frozen_stages: int

    def frozen(self) -> Iterable[nn.Module | nn.Parameter | None]:
        """What is frozen where ``frozen_stages`` is not negative."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.freeze()
        return self

    def freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        for part in filter(lambda part: part is not None, self.frozen()):
            part.requires_grad_(False)
            if isinstance(part, nn.Module):
                part.eval()
