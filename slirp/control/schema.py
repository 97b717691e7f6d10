"""`python -m slirp.control.schema` prints the control protocol's JSON Schema.

docs/control.schema.json is what it printed last.

Does not do: check anything against it (slirp.control.protocol checks by the same table).
"""

from __future__ import annotations

import json
import sys

from slirp.control.protocol import schema


def main() -> None:
    """Print it."""
    sys.stdout.write(json.dumps(schema(), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
