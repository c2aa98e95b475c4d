"""Rows and files: read, checked, written so that a killed run can resume."""
