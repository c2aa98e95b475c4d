"""The subcommands: options -> one config -> one call -> one summary."""
