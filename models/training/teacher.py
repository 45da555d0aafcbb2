"""What the INT4 model learns to predict: what the finished float model predicts (Hinton et al. 2015), but for the hero.

Learning from tales makes a model tell of one hero above all; the others are told of as well, but seldom begun with. So
after the words that a tale begins with, and only there, the float model is asked at a higher temperature.
"""

from __future__ import annotations

import torch

from models.training.model import Llama

HERO_TEMPERATURE = 1.6


class Teacher:
    """The predictions of a float model.

    opening: the ids that a tale begins with, those after which the hero comes.
    """

    def __init__(self, model: Llama, opening: list[int]) -> None:
        self._model, self._opening = model, torch.tensor(opening)

    @torch.no_grad()
    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, T, V) float32 of what follows each of ids (B, T) int64."""
        logits = self._model(ids, "bfloat16").float()
        length = len(self._opening)
        if ids.shape[1] >= length:
            begun = (ids.unfold(1, length, 1) == self._opening).all(2)
            logits[:, length - 1 :][begun] /= HERO_TEMPERATURE
        return logits.softmax(-1)
