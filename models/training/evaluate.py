"""Bits per byte on the held-out stories, computed in PyTorch."""

from __future__ import annotations

import math
from concurrent.futures import Executor

import numpy as np
import torch
from torch.nn import functional as F

from models.training.data import Validation
from models.training.model import Llama


@torch.no_grad()
def window_nats(model: Llama, window: np.ndarray, mode: str) -> float:
    """Sum of -ln p over the predicted tokens of one window (T + 1,) int64."""
    ids = torch.from_numpy(window)
    logits = model(ids[None, :-1], mode)[0].float()
    return F.cross_entropy(logits, ids[1:], reduction="sum").item()


def total_nats(model: Llama, windows: list[np.ndarray], mode: str, pool: Executor) -> float:
    """Sum of -ln p over all the windows, added in their order."""
    return math.fsum(pool.map(lambda window: window_nats(model, window, mode), windows))


def bits_per_byte(model: Llama, validation: Validation, mode: str, pool: Executor) -> float:
    """Bits per byte over all held-out stories.

    Every token is predicted once, from at most 512 tokens of its window; end-of-text entries count as bits, not as bytes.
    """
    nats = total_nats(model, validation.windows(model.shape.context), mode, pool)
    return nats / math.log(2) / validation.text_bytes


def bits_per_byte_quick(
    model: Llama, windows: list[np.ndarray], bytes_per_token: float, mode: str, pool: Executor
) -> float:
    """Bits per byte over a few windows, with the mean length of a token: for watching a run."""
    tokens = sum(len(window) - 1 for window in windows)
    return total_nats(model, windows, mode, pool) / math.log(2) / (tokens * bytes_per_token)
