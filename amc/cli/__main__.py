"""`python -m amc.cli` is the command line."""

from amc.cli.main import main

main()
