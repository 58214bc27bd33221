"""`python -m lowmem_spin.cli`."""

from lowmem_spin.cli.main import main

main()
