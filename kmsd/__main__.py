"""`python -m kmsd` is `kmsd`."""

from kmsd.cli import main

if __name__ == "__main__":
    main()
