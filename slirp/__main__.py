"""`python -m slirp` is the `slirp` command."""

from __future__ import annotations

import sys

from slirp.cli.main import main

sys.exit(main())
