"""What `rlaif data` does with files of records."""
