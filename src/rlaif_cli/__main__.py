"""`python -m rlaif_cli`, and the `rlaif` command."""

import os
import sys

# Before any library is imported: bars and warnings of others are no part of what this program says.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def main() -> None:
    try:
        from rlaif_cli.cli import app
    except KeyboardInterrupt:  # Ctrl-C while libraries are still imported: nothing was begun
        sys.exit(130)
    app.exit_with(app.main())


if __name__ == "__main__":
    main()
