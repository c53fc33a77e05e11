"""`python -m fastib`."""

import sys

from fastib.cli import main

sys.exit(main())
