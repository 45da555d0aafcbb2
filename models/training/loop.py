"""The training loop: two workers, stages of constant or falling rates, checkpoints.

The learning rate is counted in steps, never in time, so a run may be paused, killed and resumed: the same seed gives
the same windows. Each worker computes whole micro-batches with one thread (on shared processors this is many times
faster than one micro-batch on several threads, which wait for each other at every operation); their gradients are
added in a fixed order.
"""

from __future__ import annotations

import csv
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.training.data import Windows
from models.training.evaluate import bits_per_byte_quick
from models.training.model import Llama, Loss, Predictions
from models.training.optimizer import Optimizer
from models.training.preference import Preference

MICRO_BATCH = 2


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training: `steps` steps of `batch` windows, the rates falling linearly from rates[0] to rates[1].

    Both are shares of the full rates. Where they fall to zero, the last step has the rate zero: its forward pass is that
    of the finished model. Where they stay as they are, a file `decay_now` in the work folder ends the stage.
    """

    name: str
    int4: bool
    steps: int
    batch: int
    rates: tuple[float, float]
    warmup_steps: int = 0

    def factor(self, step: int) -> float:
        """What the learning rates are multiplied by at `step`, counted from the beginning of the stage."""
        if step < self.warmup_steps:
            return self.rates[0] * (step + 1) / self.warmup_steps
        done = step / max(1, self.steps - 1)
        return self.rates[0] * (1 - done) + self.rates[1] * done


@dataclass(frozen=True, slots=True)
class Run:
    """What all stages share."""

    folder: Path
    quick: list[np.ndarray]
    quick_bytes_per_token: float
    save_every: int
    report_every: int
    workers: int


@dataclass(slots=True)
class State:
    """What a checkpoint holds: the model, its optimizer, and how far training has come."""

    model: Llama
    optimizer: Optimizer
    step: int = 0
    """Steps of the present stage that are done."""
    tokens: int = 0
    """Tokens predicted in all stages."""

    def save(self, path: Path) -> None:
        """Write a checkpoint; the file appears whole or not at all."""
        part = path.with_suffix(".part")
        whole = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**whole, "step": self.step, "tokens": self.tokens}, part)
        part.replace(path)

    def restore(self, path: Path) -> None:
        """Take over a checkpoint."""
        saved = torch.load(path, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.tokens = int(saved["step"]), int(saved["tokens"])


def text_losses(batch: torch.Tensor, teacher: Predictions | None) -> list[Loss]:
    """The losses of windows (B, T + 1) int64, each of MICRO_BATCH of them.

    teacher: none, or whose predictions are learned instead of the text.
    """

    def loss_of(part: torch.Tensor) -> Loss:
        return lambda model, mode: model.loss(part, mode, teacher)

    return [loss_of(part) for part in batch.split(MICRO_BATCH)]


def train_step(model: Llama, rounded: Llama | None, kinds: list[list[Loss]], pool: ThreadPoolExecutor) -> list[float]:
    """Leave the gradient in the parameters: of the sum of the means of each kind of losses; return these means in nats.

    rounded: none for float training; else a model that receives the weights as INT4 and computes as the engine does. Its
    gradient becomes that of `model`: straight through the rounding.
    """
    if rounded is not None:
        model.round_weights(into=rounded)
    forward, mode = (model, "bfloat16") if rounded is None else (rounded, "int8")
    parameters = list(forward.parameters())

    def work(loss_of: Loss) -> tuple[float, tuple[torch.Tensor, ...]]:
        loss = loss_of(forward, mode)
        return loss.item(), torch.autograd.grad(loss, parameters)

    pieces = [pool.map(work, kind) for kind in kinds]
    found = [list(kind) for kind in pieces]
    for i, p in enumerate(model.parameters()):
        means = [torch.stack([gradients[i] for _, gradients in kind]).mean(0) for kind in found]
        p.grad = torch.stack(means).sum(0)
    return [sum(loss for loss, _ in kind) / len(kind) for kind in found]


def last_step(model: Llama, rounded: Llama, batch: torch.Tensor, pool: ThreadPoolExecutor) -> float:
    """The last step of INT4 training: its rate is zero, so all there is to it is the forward pass, here the engine's own.

    Returns the loss of `batch` (windows, T + 1) int64 in nats. The weights in `rounded` are then those that the file gets.
    """
    model.round_weights(into=rounded)
    losses = pool.map(lambda window: rounded.loss(window, "engine").item(), batch.split(1))
    return sum(losses) / len(batch)


def quick_check(run: Run, model: Llama, rounded: Llama | None, pool: ThreadPoolExecutor) -> float:
    """Bits per byte on a few held-out windows, computed as the training forward does."""
    if rounded is None:
        return bits_per_byte_quick(model, run.quick, run.quick_bytes_per_token, "bfloat16", pool)
    model.round_weights(into=rounded)
    return bits_per_byte_quick(rounded, run.quick, run.quick_bytes_per_token, "int8", pool)


def train(
    run: Run,
    stage: Stage,
    windows: Windows,
    state: State,
    teacher: Predictions | None,
    preference: Preference | None = None,
) -> None:
    """Train from `state` to the end of the stage, on windows of text and, where there is a preference, on its pairs.

    Writes `<stage>.last.pt` every `save_every` steps, `<stage>.pt` at the end, and a row of `loss.csv` per report:
    stage, step, tokens, training loss in nats per token, quick validation in bits per byte.
    """
    torch.set_num_threads(1)
    model = state.model
    losses: list[float] = []
    began, began_tokens = time.monotonic(), state.tokens
    stop_file = run.folder / "decay_now"
    constant = stage.rates[0] == stage.rates[1]
    rounded = Llama(model.shape) if stage.int4 else None
    with ThreadPoolExecutor(run.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        while state.step < stage.steps and not (constant and stop_file.exists()):
            batch = torch.from_numpy(windows.take(state.step * stage.batch, stage.batch))
            factor = stage.factor(state.step)
            if rounded is not None and factor == 0:
                losses.append(last_step(model, rounded, batch, pool))
            else:
                kinds = [text_losses(batch, teacher)]
                if preference is not None:
                    kinds.append(preference.losses(state.step))
                losses.append(train_step(model, rounded, kinds, pool)[0])
                state.optimizer.step(factor, pool)
            state.step += 1
            state.tokens += batch[:, 1:].numel()
            if state.step % run.report_every == 0 or state.step == stage.steps:
                bits = quick_check(run, model, rounded, pool)
                loss = sum(losses) / len(losses)
                rate = (state.tokens - began_tokens) / (time.monotonic() - began)
                with (run.folder / "loss.csv").open("a", newline="") as file:
                    csv.writer(file).writerow([stage.name, state.step, state.tokens, f"{loss:.4f}", f"{bits:.4f}"])
                sys.stderr.write(
                    f"{stage.name}: step {state.step}/{stage.steps}, {state.tokens / 1e6:.2f} M tokens, "
                    f"loss {loss:.3f}, valid {bits:.3f} bits/byte, {rate:.0f} tokens/s\n"
                )
                sys.stderr.flush()
                losses.clear()
            if state.step % run.save_every == 0:
                state.save(run.folder / f"{stage.name}.last.pt")
    state.save(run.folder / f"{stage.name}.pt")
