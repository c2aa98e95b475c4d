"""`python -m rlaif_cli`, and the `rlaif` command."""

from rlaif_cli.cli import main

if __name__ == "__main__":
    main()
