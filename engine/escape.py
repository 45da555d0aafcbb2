"""How text from a file is shown in an error or on a terminal: on one line, no control characters, not too long."""

from __future__ import annotations


def escape(text: str | bytes, limit: int = 80) -> str:
    r"""Returns `text` with everything that isn't printable as `\x1b` or `\u202e`, cut to about `limit` characters.

    text: anything, also bytes that aren't UTF-8; a byte that can't be decoded is shown as `\xff`.
    """
    if isinstance(text, bytes):
        text = text[: 4 * limit + 4].decode("utf-8", "backslashreplace") if limit else ""
    cut = len(text) > limit
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit])
    return shown + "..." if cut else shown


def listed(names: list[str], limit: int = 50) -> str:
    """Returns `a, b, c`, each escaped; of more than `limit` names the first ones and how many are left."""
    text = ", ".join(escape(name, 200) for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"
