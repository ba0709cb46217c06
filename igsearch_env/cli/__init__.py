"""The ``igsearch`` command and its subcommands."""
