"""`$SLIRP_CONFIG`: a configuration file for `slirp4netns-py`.

Its callers (Podman, RootlessKit) write slirp4netns's options and no others; whoever starts them can
set this, and so have in their containers whatever a file can say. It is read as by `slirp attach
--config`; what the caller's options say counts more.

Does not do: anything for the other commands, which have --config.
"""

from __future__ import annotations

import os
from typing import Final

from slirp.cli import attach
from slirp.cli.commands import make_parser
from slirp.cli.config_file import ConfigFile, overlaid
from slirp.cli.early import Options

ENVIRONMENT: Final = "SLIRP_CONFIG"


def for_slirp4netns(options: Options) -> Options:
    """The same with the file that $SLIRP_CONFIG names, where the command line says nothing."""
    path = os.environ.get(ENVIRONMENT)
    if not path:
        return options
    parser = make_parser("slirp attach")
    attach.configure(parser)
    file = ConfigFile(path, "attach")
    values = vars(options)
    given = set(values)
    own = {name: value for name, value in file.options_for(parser).items() if name not in given}
    names = Options.names()
    values |= {name: value for name, value in own.items() if name in names}
    return Options(**overlaid(dict(values), file.fields, given))
