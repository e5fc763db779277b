"""`python -m openfed` is `fx`."""

from openfed.cli.main import main

main()
