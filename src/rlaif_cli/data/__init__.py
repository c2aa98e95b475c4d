"""Read, validate and write records; output is written so that a killed run can resume."""
