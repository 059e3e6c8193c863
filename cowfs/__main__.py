"""`python -m cowfs`: the same as the command `cowfs`."""

import sys

from cowfs.cli import main

sys.exit(main())
