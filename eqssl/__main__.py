"""`python -m eqssl`, the console command `eqssl`."""

import sys

from eqssl.cli import main

sys.exit(main())
