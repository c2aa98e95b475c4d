"""Pipeline files: read, checked, run, resumed, reproduced."""
