"""`python -m app` is `sealdex`."""

import sys

from app.cli import main

# A worker imports this module, too, under another name.
if __name__ == "__main__":
    sys.exit(main())
