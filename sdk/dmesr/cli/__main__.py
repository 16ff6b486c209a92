"""`python -m dmesr.cli`, the same as `dmesr-cli`."""

import sys

from . import main

sys.exit(main())
