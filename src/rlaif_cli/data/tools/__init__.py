"""The tools of `rlaif data`."""
