"""rlaif annotate"""

from __future__ import annotations

import webbrowser

import typer

from rlaif_cli.cli.options import command
from rlaif_cli.config.judge import AnnotateConfig
from rlaif_cli.ui.console import Console


def run(config: AnnotateConfig, console: Console) -> int:
    from rlaif_cli.stages.annotate import Session
    from rlaif_cli.stages.annotate_server import make_server

    session = Session(config)
    if config.dry_run:
        console.say(f"{session.total} pairs")
        return 0
    server, address = make_server(session, config.port)
    console.say(f"annotate: open {address}")
    console.say(f"answers are saved in {config.output}; press Ctrl-C to stop")
    if not config.no_browser:
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        state = session.state()
        console.say(f"annotate: {state['answered']} of {state['total']} pairs answered by {config.annotator}")
    finally:
        server.server_close()
    return 0


def register(app: typer.Typer) -> None:
    command(app, "annotate", AnnotateConfig, run)
