"""`rlaif data validate`: the invalid lines of a file."""

from __future__ import annotations

from rlaif_cli.config.data import ParallelConfig
from rlaif_cli.data.reader import Source
from rlaif_cli.data.tools.kinds import KINDS
from rlaif_cli.data.tools.parallel import each_file
from rlaif_cli.errors import InputError


def invalid_lines(config: ParallelConfig, kind: str) -> tuple[int, list[str]]:
    """(number of valid records, the error of every invalid line).

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with each_file(config) as each:
            source = Source(config.records, KINDS[kind], skip_invalid=True, each=each)
    except InputError as error:
        if not error.errors:
            raise
        return 0, error.errors
    return len(source), source.errors
