"""`python -m onceflow`: the command line."""

from onceflow.cli import main

main()
