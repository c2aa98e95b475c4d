"""Find the files that ship with rlaif, in a checkout as well as in an installed wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rlaif_cli.errors import RlaifError

PACKAGE = Path(__file__).resolve().parents[1]


def shipped_path(kind: Literal["constitutions", "examples"]) -> Path:
    """The folder of shipped files of one kind.

    A wheel carries it inside the package (`rlaif_cli/<kind>`); in a checkout the package is `src/rlaif_cli`
    and the folder is at the top level.

    Raises:
        RlaifError: the installation has no such folder.
    """
    places = [PACKAGE / kind]
    if PACKAGE.parent.name == "src":
        places.append(PACKAGE.parent.parent / kind)
    for place in places:
        if place.is_dir():
            return place
    raise RlaifError(
        f"this installation of rlaif lacks its '{kind}' folder",
        where=str(PACKAGE),
        hint="reinstall rlaif",
    )
