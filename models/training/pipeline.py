"""From the corpus to the GGUF files: tokenizer, float training, the two decays, export, measurements.

    stable    float, constant rate ----+--> float   float, rate to zero: the model to compare with (F16 file) and, rounded
                                       |            plainly, the INT4 file to compare with
                                       +--> int4    quantised forward, rate to zero, same windows, learning from the text
                                                    and from the predictions of `float`: the model we ship

Every stage leaves its result in the work folder and is skipped when that is there, so a second start goes on where
the first ended.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides the result."""

    corpus: Path
    out: Path
    work: Path
    shape: Shape
    seed: int
    batch: int
    stable_tokens: int
    decay_tokens: int
    matrix_rate: float
    vector_rate: float
    workers: int

    @property
    def tokens_per_step(self) -> int:
        """Predicted tokens in one optimiser step."""
        return self.batch * self.shape.context


def _prepare_tokenizer(plan: Plan, stories: list[data.Story]) -> Tokenizer:
    path = plan.work / "tokenizer.json"
    if not path.exists():
        sys.stderr.write(f"tokenizer: {plan.shape.vocab} entries from {len(stories)} stories\n")
        data.train_tokenizer(stories, plan.shape.vocab).save(str(path))
    return Tokenizer.from_file(str(path))


def _prepare_ids(plan: Plan, tokenizer: Tokenizer, stories: list[data.Story]) -> list[np.ndarray]:
    path = plan.work / "ids.npz"
    if not path.exists():
        sys.stderr.write("encoding the stories\n")
        ids = data.encode_stories(tokenizer, stories)
        np.savez(path, ids=np.concatenate(ids), lengths=[len(i) for i in ids])
    with np.load(path) as stored:
        return np.split(stored["ids"], np.cumsum(stored["lengths"])[:-1])


def _run_stage(run: loop.Run, plan: Plan, name: str, before: Path | None, teacher: Path | None = None) -> Path:
    """Run one stage to its end unless that was reached before; return the path of its checkpoint."""
    finished, unfinished = run.folder / f"{name}.pt", run.folder / f"{name}.last.pt"
    if finished.exists():
        return finished
    torch.manual_seed(plan.seed)
    model = Llama(plan.shape)
    optimizer = Optimizer(model, plan.matrix_rate, plan.vector_rate, WEIGHT_DECAY)
    first = 0 if before is None else loop.restore(before, model, optimizer)
    step = loop.restore(unfinished, model, optimizer) if unfinished.exists() else first
    sys.stderr.write(f"{name}: {model.count() / 1e6:.2f} M parameters, from step {step}\n")
    tokens = plan.stable_tokens if before is None else plan.decay_tokens
    last = first + tokens // plan.tokens_per_step
    stage = loop.Stage(name, name == "int4", first, last, before is not None, WARMUP_STEPS)
    loop.train(run, stage, model, None if teacher is None else _load(plan, teacher)[0], optimizer, step)
    return finished


def _load(plan: Plan, checkpoint: Path) -> tuple[Llama, int]:
    state = torch.load(checkpoint, weights_only=True)
    model = Llama(plan.shape)
    model.load_state_dict(state["model"])
    return model, int(state["step"]) * plan.tokens_per_step


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
    ids = _prepare_ids(plan, tokenizer, stories)
    validation = data.make_validation(tokenizer, data.read_stories(plan.corpus, "valid"))
    scores = [story.score for story in stories]
    windows = data.Windows(ids, scores, plan.shape.context, plan.seed, data.COPIES)
    full = validation.windows(plan.shape.context)[:-1]
    quick = full[:: max(1, len(full) // QUICK_WINDOWS)]
    bytes_per_token = validation.text_bytes / (len(validation.stream) - 1)
    run = loop.Run(plan.work, windows, quick, bytes_per_token, plan.batch, 200, 50, plan.workers)

    stable = _run_stage(run, plan, "stable", None)
    teacher = None
    for name in ("float", "int4"):
        run.windows = data.Windows(ids, scores, plan.shape.context, plan.seed, data.DECAY_COPIES)
        teacher = _run_stage(run, plan, name, stable, teacher)

    float_model, tokens = _load(plan, plan.work / "float.pt")
    int4_model, _ = _load(plan, plan.work / "int4.pt")
    files = {
        "float": plan.out / "story-f16.gguf",
        "rounded": plan.work / "story-rounded.gguf",
        "int4": plan.out / "story.gguf",
    }
    write_gguf(files["float"], float_model, tokenizer, int4=False)
    write_gguf(files["rounded"], float_model, tokenizer, int4=True)
    write_gguf(files["int4"], int4_model, tokenizer, int4=True)
    check_file(files["int4"], int4_model)
    plot_losses(plan.work / "loss.csv", plan.out / "loss.png")
    _measure(plan, validation, run, files, tokens)
    _write_samples(plan, tokenizer, files["int4"])
