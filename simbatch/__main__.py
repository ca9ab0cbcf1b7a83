"""`python -m simbatch`."""

from simbatch.cli import main

if __name__ == "__main__":
    main()
