"""`python -m cowfs`: the same as the command `cowfs`."""

import sys

from cowfs.commands.cli import main

sys.exit(main())
