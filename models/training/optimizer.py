"""Muon for the matrices, AdamW for the embedding and the norms.

Muon replaces a matrix's momentum by the nearest orthogonal matrix, so that all directions learn at one speed:
five steps of X <- a X + (b A + c A A) X, A = X X^T, after division by the Frobenius norm.
Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon (coefficients from there).
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import Executor

import torch

from models.training.model import Llama


def orthogonalize(batch: torch.Tensor) -> torch.Tensor:
    """Nearly orthogonal matrices of the same singular vectors: (M, N, K) float32, N <= K, to the same in bfloat16."""
    x = (batch / (batch.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


class Optimizer:
    """One step over all parameters; learning rates are multiplied by a factor that the schedule gives."""

    def __init__(self, model: Llama, matrix_rate: float, vector_rate: float, weight_decay: float) -> None:
        """matrix_rate: of Muon; vector_rate: of AdamW; weight_decay: of the matrices, times their rate."""
        parameters = dict(model.named_parameters())
        self._vectors = [p for name, p in parameters.items() if p.ndim == 1 or name == "token_embd"]
        self._shapes: dict[tuple[int, ...], list[torch.Tensor]] = defaultdict(list)
        for name, p in parameters.items():
            if p.ndim == 2 and name != "token_embd":
                self._shapes[tuple(p.shape)].append(p)
        self._momenta = {size: torch.zeros(len(group), *size) for size, group in self._shapes.items()}
        self._matrix_rate, self._vector_rate, self._weight_decay = matrix_rate, vector_rate, weight_decay
        self._adam = torch.optim.AdamW(self._vectors, vector_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step(self, factor: float, pool: Executor) -> None:
        """Update every parameter from its gradient, learning rates times `factor`, one task of `pool` per matrix shape."""
        for group in self._adam.param_groups:
            group["lr"] = self._vector_rate * factor
        largest_first = sorted(self._shapes, key=lambda size: -self._momenta[size].numel())
        list(pool.map(lambda size: self._matrix_step(*size, self._matrix_rate * factor), largest_first))
        self._adam.step()

    @torch.no_grad()
    def _matrix_step(self, n: int, k: int, rate: float) -> None:
        """Muon for all the matrices of shape (n, k)."""
        group = self._shapes[n, k]
        gradients = torch.stack([p.grad for p in group])
        momentum = self._momenta[n, k].lerp_(gradients, 0.05)
        update = gradients.lerp_(momentum, 0.95)
        flat = orthogonalize(update if n <= k else update.mT)
        directions = (flat if n <= k else flat.mT).float() * max(1.0, n / k) ** 0.5
        for p, direction in zip(group, directions):
            p.mul_(1 - rate * self._weight_decay).add_(direction, alpha=-rate)

    def state_dict(self) -> dict[str, object]:
        """All state for a checkpoint."""
        return {"momenta": self._momenta, "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave."""
        self._momenta = {size: momentum.clone() for size, momentum in state["momenta"].items()}
        self._adam.load_state_dict(state["adam"])
