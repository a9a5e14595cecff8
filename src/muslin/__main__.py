"""`python -m muslin` is the `muslin` command."""

from muslin.cli.main import main

main()
