"""What a file is when it isn't the model file that it should be: the usual mix-ups, told by their first bytes."""

from __future__ import annotations

from engine.escape import escape

HEAD_BYTES = 512  # enough of the file for `describe`

_PICKLE = (
    "holds a pickle (PyTorch), which can run any program when it is read and so is never opened; "
    "convert the model to GGUF where it comes from"
)
_COMPRESSED = "is a compressed file; unpack it first"

# first bytes -> what it is and what to do; the first match counts
_KINDS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself; run `git lfs pull`, or download it"),
    (b"PK\x03\x04", "is a zip file; if PyTorch wrote it, it " + _PICKLE),
    (b"\x80", _PICKLE),
    (b"\x1f\x8b", _COMPRESSED),
    (b"\xfd7zXZ", _COMPRESSED),
    (b"7z\xbc\xaf", _COMPRESSED),
    (b"(\xb5/\xfd", _COMPRESSED),
    (b"BZh", _COMPRESSED),
    (b"lmgg", "is of llama.cpp's oldest format (GGML, 2023); convert it to GGUF"),
    (b"fmgg", "is of llama.cpp's oldest format (GGMF, 2023); convert it to GGUF"),
    (b"tjgg", "is of llama.cpp's older format (GGJT, 2023); convert it to GGUF"),
    (b"algg", "is an adapter of llama.cpp's older format (GGLA), not a model"),
    (b"FUGG", "has its bytes in reverse order; it was damaged on the way, download it again"),
    (b"\x89HDF", "is an HDF5 file; convert the model to GGUF"),
)


def describe(head: bytes) -> str:
    """Returns what a file that isn't GGUF seems to be, and what to do, as a phrase: `is a web page ...`.

    head: the file's first bytes, HEAD_BYTES or fewer.
    """
    for start, text in _KINDS:
        if head.startswith(start):
            return text
    text_start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text_start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "is a web page or XML, perhaps an error or log-in page saved as the model; download the file itself"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000:
        return "is a safetensors file, not GGUF; name a GGUF file"
    if text_start.startswith(b"{"):
        return "is JSON, not a model file; name a GGUF file"
    if not any(head):
        return "begins with zeros: a download that never finished, perhaps; download it again"
    return f"is not a GGUF file: it begins with '{escape(head[:8])}', a GGUF file begins with 'GGUF'"
