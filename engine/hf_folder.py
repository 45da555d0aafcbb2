"""A Hugging Face folder, seen as the GGUF file that it would become.

    config.json                                 the model's sizes                     hf_config.py
    model.safetensors, or shards of it          the tensors                           safetensors_file.py
    model.safetensors.index.json                which shard holds which tensor
    tokenizer.json                              the vocabulary                        hf_tokenizer.py
    tokenizer_config.json, special_tokens_map.json, generation_config.json, chat_template.jinja     as far as they are there

    with HuggingFaceFolder.open("folder") as file: ...      # a GGUFFile: keys and tensors have their names in GGUF

Whoever reads a GGUF file can so read a folder: nothing is converted but, for llama, the order of the rows of q and k. These
folders turn the elements j and j + D / 2 of a head together, GGUF's llama 2 j and 2 j + 1:

    row 2 j + half of a head in GGUF  =  row half * D / 2 + j in the folder

Weights in pickles (pytorch_model.bin) are never read.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from engine.errors import FileError
from engine.escape import escape, listed
from engine.gguf import GGUFFile
from engine.gguf_header import TensorInfo
from engine.gguf_writer import Key
from engine.hf_config import HuggingFaceConfig
from engine.hf_tokenizer import MAX_FILE, HuggingFaceTokenizer
from engine.safetensors_file import SafetensorsFile, named_files, read_json
from engine.sampling_options import SAMPLING_KEYS

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SETTINGS = 8 << 20
DTYPES = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
LEFT_OUT = ".rotary_emb.inv_freq"  # old folders hold what the configuration says already
REORDERED = (".attn_q.weight", ".attn_k.weight")


@dataclass(frozen=True, slots=True, eq=False)
class HuggingFaceFolder(GGUFFile):
    """An open folder; see `GGUFFile` for what it gives.

    Attributes:
        sources: GGUF name -> the file and the name there, for tensors that are read from one.
        made: GGUF name -> those that are computed from the configuration.
        head_size: D where rows of q and k are reordered, else 0.
    """

    sources: Mapping[str, tuple[SafetensorsFile, str]]
    made: Mapping[str, np.ndarray]
    head_size: int

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> HuggingFaceFolder:
        """Maps the files and checks all headers; raises FileError, one line, for whatever is wrong."""
        folder = os.fspath(path)
        config_path = os.path.join(folder, "config.json")
        if not os.path.exists(config_path):
            raise FileError(
                f"{escape(folder, 300)}: is a directory without config.json; name a GGUF file or a model folder"
            )
        found = read_json(config_path, MAX_SETTINGS)
        config = HuggingFaceConfig(found, config_path)
        files = _weight_files(folder)
        try:
            sources = _sources(files, config, folder)
            divisors = config.rope_divisors()
            made = {} if divisors is None else {"rope_freqs.weight": divisors}
            keys = config.keys(os.path.basename(os.path.abspath(folder))) | _tokenizer_keys(folder, found, config.rows)
            tensors = {name: _info(name, *source) for name, source in sources.items()}
            tensors |= {name: TensorInfo(name, "F32", a.shape, 0, a.nbytes) for name, a in made.items()}
        except BaseException:
            _close(files)
            raise
        return cls(
            path=folder,
            size=sum(file.size for file in {id(file): file for file, _ in sources.values()}.values()),
            version=3,
            alignment=32,
            data_start=0,
            metadata=MappingProxyType({key: value for key, (_, value) in keys.items()}),
            kinds=MappingProxyType({key: kind for key, (kind, _) in keys.items()}),
            tensors=MappingProxyType(tensors),
            _map=mmap.mmap(-1, 1),
            sources=sources,
            made=made,
            head_size=config.head_size if config.architecture == "llama" else 0,
        )

    def close(self) -> None:
        """Unmaps the files."""
        _close({file.path: file for file, _ in self.sources.values()})

    def data(self, name: str) -> np.ndarray:
        """Returns the tensor's bytes as GGUF has them, uint8 (nbytes,): a view of the mapped file where it can be."""
        info = self.tensor(name)
        if name in self.made:
            return self.made[name].view(np.uint8)
        file, theirs = self.sources[name]
        raw = file.data(theirs)
        if self.head_size and name.endswith(REORDERED):
            return interleaved(raw.reshape(info.shape[0], -1), self.head_size).reshape(-1)
        return raw if info.offset % 4 == 0 else raw.copy()  # old writers don't align

    def release(self, name: str) -> None:
        """Lets the system take back the memory of a tensor's pages (Linux)."""
        if name in self.sources:
            file, theirs = self.sources[name]
            file.release(theirs)


def interleaved(rows: np.ndarray, head_size: int) -> np.ndarray:
    """Rows (H * D, ...) with those of each head in GGUF's order: 0, D / 2, 1, D / 2 + 1, ..."""
    halves = rows.reshape(-1, 2, head_size // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _close(files: Mapping[str, SafetensorsFile]) -> None:
    for file in files.values():
        file.close()


def _weight_files(folder: str) -> dict[str, SafetensorsFile]:
    """The open files that hold the tensors, by their names; each tensor lies where the index says, and nowhere else."""
    shown, index = escape(folder, 300), os.path.join(folder, INDEX)
    if os.path.exists(os.path.join(folder, WEIGHTS)):
        return {WEIGHTS: SafetensorsFile(os.path.join(folder, WEIGHTS))}
    if not os.path.exists(index):
        pickles = sorted(name for name in os.listdir(folder) if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
        if pickles:
            raise FileError(
                f"{shown}: has no {WEIGHTS}, only {listed(pickles, 2)}: pickles, which can run any program when they are "
                "read and so never are; save the model as safetensors"
            )
        raise FileError(f"{shown}: has neither {WEIGHTS} nor {INDEX}; download the whole model")
    places = named_files(read_json(index, MAX_SETTINGS), index)
    names = sorted(set(places.values()))
    missing = [name for name in names if not os.path.exists(os.path.join(folder, name))]
    if missing:
        raise FileError(f"{shown}: {len(missing)} of {len(names)} shards missing: {listed(missing, 3)}; download them")
    files: dict[str, SafetensorsFile] = {}
    try:
        for name in names:
            files[name] = SafetensorsFile(os.path.join(folder, name))
        held = {tensor: name for name, file in files.items() for tensor in file.tensors}
        astray = [t for t, name in places.items() if t not in files[name].tensors]
        astray += [t for name, file in files.items() for t in file.tensors if places.get(t) != name]
        if astray or len(held) != len(places):
            raise FileError(
                f"{escape(index, 300)}: weight_map: not where it says, or in two shards: {listed(astray, 3)}"
            )
    except BaseException:
        _close(files)
        raise
    return files


def _sources(
    files: Mapping[str, SafetensorsFile], config: HuggingFaceConfig, folder: str
) -> dict[str, tuple[SafetensorsFile, str]]:
    """GGUF name -> file and name there, of all tensors, which are those of such a model, no more and no less."""
    held = {tensor: file for file in files.values() for tensor in file.tensors if not tensor.endswith(LEFT_OUT)}
    names = config.tensor_names()
    beyond = [tensor for tensor in held if tensor not in names]
    tied = config.tied
    if tied is None:
        tied = "lm_head.weight" not in held
    if tied and "lm_head.weight" in held:
        _check_same(held, folder)
        del held["lm_head.weight"]
    missing = [tensor for tensor in names if tensor not in held and not (tied and tensor == "lm_head.weight")]
    types = [
        f"{tensor} {file.tensors[tensor].dtype}"
        for tensor, file in held.items()
        if tensor in names and file.tensors[tensor].dtype not in DTYPES
    ]
    empty = [
        tensor for tensor, file in held.items() if 0 in file.tensors[tensor].shape or not file.tensors[tensor].shape
    ]
    wrong = [
        f"{len(found)} {text}: {listed(found, 8)}"
        for found, text in (
            (missing, "missing"),
            (types, f"of a type that is not supported (supported: {', '.join(DTYPES)})"),
            (empty, "without elements or axes"),
            (beyond, f"that {config.kind} has no use for"),
        )
        if found
    ]
    if wrong:
        raise FileError(f"{escape(folder, 300)}: tensors: {'; '.join(wrong)}")
    ordered = {ours: (held[theirs], theirs) for theirs, ours in names.items() if theirs in held}
    rows = config.heads * config.head_size, config.kv_heads * config.head_size
    for tensor, (file, theirs) in ordered.items():  # else reordering rows would fail; `read_config` checks all shapes
        shape = file.tensors[theirs].shape
        if tensor.endswith(REORDERED) and (len(shape) != 2 or shape[0] not in rows):
            raise FileError(f"{escape(folder, 300)}: tensor '{escape(theirs)}': shape {shape}, expected {rows} rows")
    return ordered


def _check_same(held: Mapping[str, SafetensorsFile], folder: str) -> None:
    """An output matrix that is there although it is tied must be the embedding."""
    names = ("model.embed_tokens.weight", "lm_head.weight")
    if names[0] not in held:
        return
    first, second = (held[name].data(name) for name in names)
    step = 1 << 24
    same = len(first) == len(second) and all(
        np.array_equal(first[i : i + step], second[i : i + step]) for i in range(0, len(first), step)
    )
    for name in names:
        held[name].release(name)
    if not same:
        raise FileError(
            f"{escape(folder, 300)}: tensor 'lm_head.weight': differs from the embedding, but config.json says "
            "tie_word_embeddings; say false there if the matrix is to be used"
        )


def _info(name: str, file: SafetensorsFile, theirs: str) -> TensorInfo:
    entry = file.tensors[theirs]
    return TensorInfo(name, DTYPES[entry.dtype], entry.shape, entry.offset, entry.nbytes)


def _tokenizer_keys(folder: str, config: Mapping[str, Any], rows: int) -> dict[str, Key]:
    """The keys of the vocabulary and of its use (chat template, sampling), from all files that say something of them."""

    def settings(name: str) -> dict[str, Any]:
        path = os.path.join(folder, name)
        return read_json(path, MAX_SETTINGS) if os.path.exists(path) else {}

    path = os.path.join(folder, "tokenizer.json")
    if not os.path.exists(path):
        raise FileError(f"{escape(folder, 300)}: has no tokenizer.json; save the tokenizer in its fast form")
    found = settings("special_tokens_map.json") | settings("tokenizer_config.json")
    generation = settings("generation_config.json")
    ends = next((ids for ids in (_ids(c.get("eos_token_id")) for c in (generation, config)) if ids), [])
    starts = next((ids for ids in (_ids(c.get("bos_token_id")) for c in (generation, config)) if ids), [None])
    keys = HuggingFaceTokenizer(read_json(path, MAX_FILE), found, path).keys(rows, ends, starts[0])
    template = _chat_template(folder, found)
    keys |= {"tokenizer.chat_template": ("string", template)} if template else {}
    recommended = {key: generation.get(option) for option, key in SAMPLING_KEYS.items()}
    return keys | {key: ("f32", float(np.float32(v))) for key, v in recommended.items() if type(v) in (int, float)}


def _ids(value: Any) -> list[int]:
    """Token ids that a file gives as one or as a list."""
    values = value if isinstance(value, list) else [value]
    return [id_ for id_ in values if type(id_) is int and id_ >= 0]


def _chat_template(folder: str, settings: Mapping[str, Any]) -> str | None:
    """The template in a file of its own, or in tokenizer_config.json, where several have names; None without."""
    path = Path(folder) / "chat_template.jinja"
    if path.exists():
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.stat().st_size <= MAX_SETTINGS:
                return path.read_text("utf-8")
        raise FileError(f"{escape(str(path), 300)}: can't be read as UTF-8 text of at most {MAX_SETTINGS >> 20} MiB")
    given = settings.get("chat_template")
    if isinstance(given, list):
        named = {t.get("name"): t.get("template") for t in given if isinstance(t, dict)}
        given = named.get("default")
    if given is not None and not isinstance(given, str):
        raise FileError(
            f"{escape(folder, 300)}: tokenizer_config.json: chat_template: is {escape(json.dumps(given), 60)}"
        )
    return given
