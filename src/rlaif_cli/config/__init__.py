"""The settings of each stage: one definition for the command line, pipeline files, manifests and resume checks."""
