"""The training loop: two workers, a warm-up, a constant stage and a linear decay, checkpoints.

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
from models.training.model import Llama
from models.training.optimizer import Optimizer

MICRO_BATCH = 2


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training: steps first_step .. last_step - 1, the rate falling linearly to zero if `decay`.

    The last step of a decay has the rate zero: its forward pass is that of the finished model.
    """

    name: str
    int4: bool
    first_step: int
    last_step: int
    decay: bool
    warmup_steps: int = 0

    def factor(self, step: int) -> float:
        """What the learning rates are multiplied by at `step`."""
        if self.decay:
            return (self.last_step - 1 - step) / (self.last_step - self.first_step)
        return min(1.0, (step + 1) / self.warmup_steps)


@dataclass(slots=True)
class Run:
    """What all stages share."""

    folder: Path
    windows: Windows
    quick: list[np.ndarray]
    quick_bytes_per_token: float
    batch: int
    save_every: int
    report_every: int
    workers: int = 2


def save(path: Path, model: Llama, optimizer: Optimizer, step: int) -> None:
    """Write a checkpoint; the file appears whole or not at all."""
    part = path.with_suffix(".part")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, part)
    part.replace(path)


def restore(path: Path, model: Llama, optimizer: Optimizer) -> int:
    """Load a checkpoint and return the step that comes next."""
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def train_step(
    model: Llama, rounded: Llama | None, teacher: Llama | None, batch: torch.Tensor, pool: ThreadPoolExecutor
) -> float:
    """Leave the mean gradient of `batch` (windows, T + 1) int64 in the parameters and return the loss in nats.

    rounded: none for float training; else a model that receives the weights as INT4 and computes as the engine does. Its
    gradient becomes that of `model`: straight through the rounding.
    teacher: none, or a float model whose predictions are learned beside the text.
    """
    if rounded is not None:
        model.round_weights(into=rounded)
    forward, mode = (model, "bfloat16") if rounded is None else (rounded, "int8")
    parameters = list(forward.parameters())

    def work(windows: torch.Tensor) -> tuple[float, tuple[torch.Tensor, ...]]:
        loss = forward.loss(windows, mode, teacher)
        return loss.item(), torch.autograd.grad(loss, parameters)

    pieces = list(pool.map(work, batch.split(MICRO_BATCH)))
    for p, *gradients in zip(model.parameters(), *(piece[1] for piece in pieces)):
        p.grad = torch.stack(gradients).mean(0)
    return sum(piece[0] for piece in pieces) / len(pieces)


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


def train(run: Run, stage: Stage, model: Llama, teacher: Llama | None, optimizer: Optimizer, step: int) -> int:
    """Train from `step` to the end of the stage, or until the file `decay_now` appears during a constant stage.

    Writes `<stage>.last.pt` every `save_every` steps, `<stage>.pt` at the end, and a row of `loss.csv` per report:
    stage, step, tokens, training loss in nats per token, quick validation in bits per byte. Returns the step reached.
    """
    torch.set_num_threads(1)
    length = run.windows.take(step * run.batch, 1).shape[1] - 1
    losses: list[float] = []
    began, began_step = time.monotonic(), step
    stop_file = run.folder / "decay_now"
    rounded = Llama(model.shape) if stage.int4 else None
    with ThreadPoolExecutor(run.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        while step < stage.last_step and (stage.decay or not stop_file.exists()):
            batch = torch.from_numpy(run.windows.take(step * run.batch, run.batch))
            factor = stage.factor(step)
            if rounded is not None and factor == 0:
                losses.append(last_step(model, rounded, batch, pool))
            else:
                losses.append(train_step(model, rounded, teacher, batch, pool))
                optimizer.step(factor, pool)
            step += 1
            if step % run.report_every == 0 or step == stage.last_step:
                bits = quick_check(run, model, rounded, pool)
                loss = sum(losses) / len(losses)
                rate = (step - began_step) * run.batch * length / (time.monotonic() - began)
                tokens = step * run.batch * length
                with (run.folder / "loss.csv").open("a", newline="") as file:
                    csv.writer(file).writerow([stage.name, step, tokens, f"{loss:.4f}", f"{bits:.4f}"])
                sys.stderr.write(
                    f"{stage.name}: step {step}/{stage.last_step}, {tokens / 1e6:.2f} M tokens, loss {loss:.3f}, "
                    f"valid {bits:.3f} bits/byte, {rate:.0f} tokens/s\n"
                )
                sys.stderr.flush()
                losses.clear()
            if step % run.save_every == 0:
                save(run.folder / f"{stage.name}.last.pt", model, optimizer, step)
    save(run.folder / f"{stage.name}.pt", model, optimizer, step)
    return step
