"""Text that is shown to people."""

from __future__ import annotations

# Messages contain data, file names and server replies, which must not control the terminal (an escape sequence can
# clear the screen, rename the window or paste a command) or change the text direction.
_CONTROL = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_VISIBLE = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROL if chr(code) not in "\t\n"
}


def counted(number: int, thing: str) -> str:
    """A number with its noun, whose plural ends in -s: "1 row", "2 rows"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def visible(text: str) -> str:
    """`text` with control characters escaped as in Python: `\\x1b`."""
    return text.translate(_VISIBLE)
