"""How messages name settings: they mention fields, and whoever shows a message spells them as its reader knows them.

`f"{option('judge')} needs {option('constitution')}"` is `--judge needs --constitution` on the command line, and `judge
needs constitution` in a pipeline file and in Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Spell = Callable[[str], str]  # a setting's field -> how the reader of a message knows it

_MENTION = re.compile("\x02([a-z_]+)\x03")  # control characters, which no other text of a message contains


def option(field: str) -> str:
    """Mention a setting in a message; see `spelled`."""
    return f"\x02{field}\x03"


def as_option(field: str) -> str:
    """How the command line spells most settings; `StageConfig.option_name` knows the others."""
    return "--" + field.replace("_", "-")


def as_field(field: str) -> str:
    """How pipeline files and Python spell a setting."""
    return field


def spelled(text: str, spell: Spell = as_option) -> str:
    """A text with the settings that it mentions as its reader knows them."""
    return _MENTION.sub(lambda mention: spell(mention[1]), text)


def mentioned(text: str) -> list[str]:
    """The fields of the settings that a text mentions, in order, each once."""
    return list(dict.fromkeys(_MENTION.findall(text)))


class SettingError(ValueError):
    """Settings are invalid together. Its text spells them as fields, for those who build a config in Python.

    Args:
        text: mentions settings by `option`.
    """

    def __init__(self, text: str) -> None:
        super().__init__(spelled(text, as_field))
        self.text = text
