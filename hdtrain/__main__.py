"""`python -m hdtrain`."""

import sys

from hdtrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
