"""`python -m isthmus.cli`: the console script where scripts are not on the path."""

from isthmus.cli import main

main()
