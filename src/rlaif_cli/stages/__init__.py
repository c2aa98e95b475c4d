"""The data stages. They know no torch and no Typer, and print nothing: progress is a callback."""
