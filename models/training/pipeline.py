"""From the corpus to the GGUF files: tokenizer, float training, the two decays, export, measurements.

    stable   float, constant rate, the plainer two thirds
    cool     float, the rate falls to less than half, all stories, renamed
      |
      +--> float   float, the rate falls to zero: the model to compare with (F16 file) and, rounded plainly, the INT4
      |            file to compare with
      +--> int4    quantised forward, same rates, same windows, learning from the text and from the predictions of
                   `float`: the model we ship

Every stage leaves its result in the work folder and is skipped when that is there, so a second start goes on where
the first ended.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from models.training import data, loop
from models.training.evaluate import bits_per_byte, bits_per_byte_quick, sample
from models.training.export import read_gguf, write_gguf
from models.training.model import Llama, Shape
from models.training.optimizer import Optimizer
from models.training.plot import plot_losses

QUICK_WINDOWS = 24
WARMUP_STEPS = 50
WEIGHT_DECAY = 0.05
ALL = float("inf")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a stage trains."""

    batch: int
    """Windows a step: small steps bring a young model on, larger ones an old one."""
    rates: tuple[float, float]
    """The learning rates at its beginning and its end, as shares of the full ones."""
    mix: data.Mix


DECAY = Recipe(batch=8, rates=(0.45, 0.0), mix=data.Mix(copies=((1.8, 1),), renamed=0.8, told=True))
"""What is learned last shows most, and the model should write plainly."""
RECIPES = {
    "stable": Recipe(batch=4, rates=(1.0, 1.0), mix=data.Mix(copies=((1.8, 3), (2.4, 2)), renamed=0.0, told=False)),
    "cool": Recipe(batch=8, rates=(1.0, 0.45), mix=data.Mix(copies=((1.8, 2), (ALL, 1)), renamed=0.8, told=False)),
    "float": DECAY,
    "int4": DECAY,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides the result."""

    corpus: Path
    out: Path
    work: Path
    shape: Shape
    seed: int
    tokens: dict[str, int]
    """Of each stage in RECIPES."""
    matrix_rate: float
    vector_rate: float
    workers: int


def _prepare_tokenizer(plan: Plan, stories: list[data.Story]) -> Tokenizer:
    path = plan.work / "tokenizer.json"
    if not path.exists():
        sys.stderr.write(f"tokenizer: {plan.shape.vocab} entries from {len(stories)} stories\n")
        data.train_tokenizer(stories, plan.shape.vocab).save(str(path))
    return Tokenizer.from_file(str(path))


def _begin(plan: Plan) -> loop.State:
    torch.manual_seed(plan.seed)
    model = Llama(plan.shape)
    return loop.State(model, Optimizer(model, plan.matrix_rate, plan.vector_rate, WEIGHT_DECAY))


def _load(plan: Plan, checkpoint: Path) -> loop.State:
    state = _begin(plan)
    state.restore(checkpoint)
    return state


@dataclass(frozen=True, slots=True)
class Stages:
    """Runs the stages of a plan on its stories."""

    plan: Plan
    run: loop.Run
    tokenizer: Tokenizer
    stories: list[data.Story]

    def finish(self, name: str, before: Path | None = None, teacher: Path | None = None) -> Path:
        """Bring a stage to its end, unless that was reached before; return the path of its checkpoint.

        before: the checkpoint that it begins with; teacher: that of a float model, to learn from.
        """
        plan, finished, unfinished = self.plan, self.run.folder / f"{name}.pt", self.run.folder / f"{name}.last.pt"
        if finished.exists():
            return finished
        state = _begin(plan)
        if unfinished.exists():
            state.restore(unfinished)
        elif before is not None:
            state.restore(before)
            state.step = 0
        sys.stderr.write(f"{name}: {state.model.count() / 1e6:.2f} M parameters, from step {state.step}\n")
        recipe = RECIPES[name]
        steps = plan.tokens[name] // (recipe.batch * plan.shape.context)
        warmup = WARMUP_STEPS if before is None else 0
        stage = loop.Stage(name, name == "int4", steps, recipe.batch, recipe.rates, warmup)
        windows = data.Windows(self.tokenizer, self.stories, plan.shape.context, plan.seed, recipe.mix)
        loop.train(self.run, stage, windows, state, None if teacher is None else _load(plan, teacher).model)
        return finished


def check_file(path: Path, model: Llama) -> None:
    """Refuse an INT4 file whose values differ, in any bit, from those of the last training forward pass of `model`.

    The last step of a decay has the rate zero, so that pass, the engine's own, used exactly the rounding of these weights.
    """
    expected = Llama(model.shape)
    model.round_weights(into=expected)
    for (name, wanted), found in zip(expected.named_parameters(), read_gguf(path).parameters()):
        if not torch.equal(wanted, found):
            raise ValueError(f"{path}: {name}: values differ from those of the last training forward pass")


def _measure(plan: Plan, validation: data.Validation, run: loop.Run, files: dict[str, Path], tokens: int) -> None:
    """Bits per byte of each file, as PyTorch computes it, into `measured.json`; on a few windows also as the engine does."""
    result: dict[str, dict[str, float] | int] = {"tokens": tokens, "valid_bytes": validation.text_bytes}
    with ThreadPoolExecutor(plan.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for name, path in files.items():
            model, mode = read_gguf(path), "float32" if name == "float" else "int8"
            bits = bits_per_byte(model, validation, mode, pool)
            result[name] = found = {"bits_per_byte": bits, "file_bytes": path.stat().st_size}
            for way in (mode,) if name == "float" else (mode, "engine"):
                quick = bits_per_byte_quick(model, run.quick, run.quick_bytes_per_token, way, pool)
                found[f"{way}, {len(run.quick)} windows"] = quick
            sys.stderr.write(f"{name}: {bits:.4f} bits per byte on valid, {path.stat().st_size / 1e6:.2f} MB\n")
    (plan.work / "measured.json").write_text(json.dumps(result, indent=1) + "\n")


def _write_samples(plan: Plan, tokenizer: Tokenizer, path: Path) -> None:
    """Twenty samples at temperature 0.8 into `samples.txt`, for reading."""
    model = read_gguf(path)
    prompt = tokenizer.encode("Once upon a time").ids
    texts = [tokenizer.decode(sample(model, prompt, 160, 0.8, seed, "int8")) for seed in range(20)]
    (plan.work / "samples.txt").write_text("\n\n".join(f"--- seed {i}\n{text}" for i, text in enumerate(texts)) + "\n")


def run_pipeline(plan: Plan) -> None:
    """Do everything that is not done yet. Raises OSError and ValueError for a corpus that cannot be read."""
    plan.work.mkdir(parents=True, exist_ok=True)
    plan.out.mkdir(parents=True, exist_ok=True)
    stories = data.read_stories(plan.corpus, "train")
    tokenizer = _prepare_tokenizer(plan, stories)
    validation = data.make_validation(tokenizer, data.read_stories(plan.corpus, "valid"))
    full = validation.windows(plan.shape.context)[:-1]
    quick = full[:: max(1, len(full) // QUICK_WINDOWS)]
    bytes_per_token = validation.text_bytes / (len(validation.stream) - 1)
    run = loop.Run(plan.work, quick, bytes_per_token, 100, 50, plan.workers)

    stages = Stages(plan, run, tokenizer, stories)
    cooled = stages.finish("cool", stages.finish("stable"))
    floating = stages.finish("float", cooled)
    quantized = stages.finish("int4", cooled, floating)

    float_state, int4_model = _load(plan, floating), _load(plan, quantized).model
    files = {
        "float": plan.out / "story-f16.gguf",
        "rounded": plan.work / "story-rounded.gguf",
        "int4": plan.out / "story.gguf",
    }
    write_gguf(files["float"], float_state.model, tokenizer, int4=False)
    write_gguf(files["rounded"], float_state.model, tokenizer, int4=True)
    write_gguf(files["int4"], int4_model, tokenizer, int4=True)
    check_file(files["int4"], int4_model)
    plot_losses(plan.work / "loss.csv", plan.out / "loss.png")
    _measure(plan, validation, run, files, float_state.tokens)
    _write_samples(plan, tokenizer, files["int4"])
