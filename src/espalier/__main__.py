"""`python -m espalier`, for where the script is not on the path."""

from espalier.cli import main

main()
