"""`python -m kmsd.ctl` is `kmsctl`."""

import sys

from kmsd.ctl import main

if __name__ == "__main__":
    sys.exit(main())
