"""What each stage can be told. One definition serves the command line, pipeline files, manifests and resume checks."""
