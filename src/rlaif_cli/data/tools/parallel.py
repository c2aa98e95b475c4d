"""Process many files with one worker process per core."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process

from rlaif_cli.config.data import ParallelConfig
from rlaif_cli.config.naming import option
from rlaif_cli.data.inputs import files
from rlaif_cli.data.reader import Each
from rlaif_cli.errors import RlaifError
from rlaif_cli.machine import cores


@contextlib.contextmanager
def each_file(config: ParallelConfig) -> Iterator[Each]:
    """A `map` over the files of an input, in several processes if there are several files."""
    many = min(len(files(config.records)), config.num_workers or cores())
    if many == 1:
        yield map
        return
    # Not fork: a progress bar's thread may hold a lock at that moment.
    with ProcessPoolExecutor(many, get_context("spawn"), initializer=_begin_worker) as pool:
        try:
            yield pool.map
        except BrokenProcessPool as error:
            hint = f"it may have run out of memory; try a lower {option('num_workers')}"
            raise RlaifError("a worker process was killed", where=config.records, hint=hint) from error
        except BaseException:  # the results of the others are not needed
            for worker in active_children():
                worker.terminate()
            # Wait for its thread: if it still closes its pipe while Python exits, it prints a traceback.
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _begin_worker() -> None:
    """Exit silently on Ctrl-C, and when the parent dies, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
