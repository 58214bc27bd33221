"""`python -m lowmem_spin`."""

from lowmem_spin.cli.main import main

if __name__ == "__main__":
    main()
