"""`slirp config`: the effective configuration, as a file for `--config`.

Does not do: the configuration of a network that runs (`slirp ctl SOCKET config`).
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import Final

from slirp.cli import options
from slirp.cli.toml_out import toml_of
from slirp.config import Config

DESCRIPTION: Final = """\
Check options and a file and print what they come to, as a file for --config: what differs from the
defaults, or with --all every field.
"""
EPILOG: Final = """\
example:
  slirp config --network 10.0.9.0/24 --forward 8080:80 > net.toml
  slirp config --config net.toml --all
"""


def configure(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    options.add_machines_options(parser)
    parser.add_argument("--all", action="store_true", help="the defaults too")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(args: Namespace) -> int:
    config = options.make_machines_config(args)
    fields = every_field(config) if args.all else config.plain()
    text = json.dumps(fields, indent=2) + "\n" if args.json else toml_of(fields)
    sys.stdout.write(text)
    return 0


def every_field(config: Config) -> dict[str, object]:
    """Defaults as well, in the order of the documentation; what is None stays a choice of ours."""
    plain = config.plain()
    default = {name: _bare(value) for name, value in Config()._asdict().items()}
    return {name: plain.get(name, default[name]) for name in config._fields}


def _bare(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value
