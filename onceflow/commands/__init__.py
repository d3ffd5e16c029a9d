"""What each command of the CLI does: one module a command, imported when the command is run.

Every module has a `run` that takes the command's options as keyword arguments and returns the exit code, or None for 0.
"""
