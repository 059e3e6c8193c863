"""`python -m cowfs`: the same as the command `cowfs`."""

import sys

from cowfs.commands.program import main

sys.exit(main())
