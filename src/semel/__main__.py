"""`python -m semel` is `semel`, where the scripts of an environment are not on the path."""

from semel.cli.main import main

main()
