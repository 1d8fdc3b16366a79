"""`python -m app` is `sealdex`."""

import sys

from app.cli import main

sys.exit(main())
