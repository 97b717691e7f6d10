"""`--config FILE.toml`: everything that options can say, in a file.

    network = "10.0.9.0/24"            fields of slirp.Config, by their names (docs/library.md)
    forwards = ["8080:80"]
    control = "/run/user/1000/net.sock"     options without such a field, - written as _

    [names]
    "web.test" = ["10.0.9.15"]

    [attach]                           what is for one command only
    enable_sandbox = true

What the command line says counts, then the command's own table, then the rest of the file, then the
defaults; a list on the command line replaces the file's. The file is checked by the same Config, by
itself and once more with what the options change. Every mistake names the key and its line.

How it gets into a command: its parser takes the file's options as defaults, and the namespace gets
`config_fields`, what the file says of the network, and `config_given`, the options that the command
line names. `slirp.cli.options.configured` puts the two together.

Does not do: several files, includes, environment variables in values.
"""

from __future__ import annotations

from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

from slirp.cli.failure import USAGE, Failure
from slirp.errors import ConfigError, shown

FILE_MAX: Final = 1 << 16  # bytes
# The fields that attach has under slirp4netns's names: how Options has them.
_EARLY: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "network": ("cidr", str),
    "network6": ("network6", str),
    "ipv4_only": ("ipv6", lambda on: not on),
    "ipv6_only": ("ipv6_only", bool),
    "mtu": ("mtu", int),
    "host_loopback": ("disable_host_loopback", lambda on: not on),
    "dns_enabled": ("disable_dns", lambda on: not on),
    "outbound_addr": ("outbound_addr", str),
    "outbound_addr6": ("outbound_addr6", str),
    "forwards": ("forwards", list),
}
_DESTINATIONS: Final = {"forwards": "forward"}  # where attach's parser has another name still


class ConfigFile:
    """One file, read and sorted: what the network is to be, and what the command is to do."""

    def __init__(self, path: str, command: str) -> None:
        import tomllib

        self.path = path
        self._command = command
        try:
            with open(path, "rb") as file:
                data = file.read(FILE_MAX + 1)
        except OSError as error:
            raise Failure(f"--config {path}: {error.strerror}", USAGE) from None
        if len(data) > FILE_MAX:
            raise Failure(f"--config {path}: is longer than {FILE_MAX} bytes", USAGE)
        try:
            self._text = data.decode()
            values = tomllib.loads(self._text)
        except UnicodeDecodeError:
            raise Failure(f"--config {path}: is no UTF-8 text", USAGE) from None
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise Failure(f"--config {path}: {error}", USAGE) from None
        self.fields: dict[str, Any] = {}
        self.options: dict[tuple[str, ...], Any] = {}
        self._own_fields: set[str] = set()
        self._sort(values)
        self._check()

    def _sort(self, values: Mapping[str, Any]) -> None:
        from slirp.cli.commands import COMMANDS
        from slirp.config import Fields

        known = Fields.__annotations__
        own: Mapping[str, Any] = {}
        for key, value in values.items():
            if key in COMMANDS and isinstance(value, dict):
                own = value if key == self._command else own
            elif key in known:
                self.fields[key] = value
            else:
                self.options[key,] = value
        for key, value in own.items():
            if key in known:
                self.fields[key] = value
                self._own_fields.add(key)
            else:
                self.options.pop((key,), None)
                self.options[self._command, key] = value

    def _check(self) -> None:
        from slirp.cli.options import outbound, outbound6
        from slirp.config import Config

        try:
            for name, found in (("outbound_addr", outbound), ("outbound_addr6", outbound6)):
                if isinstance(self.fields.get(name), str):
                    self.fields[name] = found(self.fields[name])
            Config(**self.fields)
        except ConfigError as error:
            own = error.field in self._own_fields
            self.refuse((self._command, error.field) if own else (error.field,), str(error))

    def refuse(self, keys: Sequence[str], why: str) -> NoReturn:
        """Raise the Failure about one key."""
        raise Failure(f"{self.path}:{self._line_of(keys)}: {why}", USAGE)

    def _line_of(self, keys: Sequence[str]) -> int:
        """Where this key is set: the shortest beginning of the file that has it tells."""
        import tomllib

        lines, start = self._text.splitlines(), 0
        for count in range(1, len(lines) + 1):
            try:
                values: Any = tomllib.loads("\n".join(lines[:count]))
            except tomllib.TOMLDecodeError:  # in the middle of a value
                continue
            for key in keys:
                values = values.get(key) if isinstance(values, dict) else None
            if values is not None:
                begun = start
                while begun < count - 1 and not lines[begun].split("#")[0].strip():
                    begun += 1
                return begun + 1
            start = count
        return 1  # it is not set: a default does not go with what is

    def options_for(self, parser: ArgumentParser) -> dict[str, Any]:
        """Values for this parser's options, by destination. Raises Failure."""
        actions = {action.dest: action for action in parser._actions if action.option_strings}
        found = {}
        for keys, value in self.options.items():
            action = actions.get(keys[-1])
            if action is None and len(keys) == 1 and _is_anothers(keys[0]):
                continue  # one file may serve several commands
            if action is None or keys[-1] in ("help", "config"):
                where = f"nor an option of slirp {self._command}"
                self.refuse(keys, f"{shown(keys[-1])}: is neither a field of a network {where}")
            found[action.dest] = self._converted(keys, action, value)
        return found

    def _converted(self, keys: Sequence[str], action: Action, value: Any) -> Any:
        name = keys[-1]
        if action.nargs == 0:
            if action.const is True:
                if isinstance(value, bool):
                    return value
                self.refuse(keys, f"{name}: must be true or false")
            if type(value) is int and value >= 0:  # -v, which counts
                return value
            self.refuse(keys, f"{name}: must be a whole number")
        if isinstance(action.default, list) or type(action).__name__ == "_AppendAction":
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                return value
            self.refuse(keys, f"{name}: must be a list of text")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.refuse(keys, f"{name}: must be text or a number")
        try:
            converted = action.type(str(value)) if callable(action.type) else str(value)
        except ValueError:
            self.refuse(keys, f"{name} {shown(str(value))}: is no number")
        if action.choices is not None and converted not in action.choices:
            self.refuse(keys, f"{name} {shown(str(value))}: is none of {', '.join(action.choices)}")
        return converted


def _is_anothers(name: str) -> bool:
    """Is it an option of some other command?"""
    from importlib import import_module

    from slirp.cli.commands import COMMANDS, make_parser

    for command, (module, _) in COMMANDS.items():
        parser = make_parser(command)
        import_module(module).configure(parser)
        if any(name == action.dest and action.option_strings for action in parser._actions):
            return True
    return False


class Files:
    """The files that a command line names, before anything else is known of it."""

    def __init__(self, arguments: Sequence[str], parser: ArgumentParser) -> None:
        options = {name for action in parser._actions for name in action.option_strings}
        self._config = _path_among(arguments, "--config") if "--config" in options else None
        self._state = _path_among(arguments, "--restore") if "--restore" in options else None

    def __bool__(self) -> bool:
        return self._config is not None or self._state is not None

    def prepare(self, command: str, parser: ArgumentParser) -> None:
        """Give a command's parser the files as its defaults. What a saved state says of the network
        counts less than a configuration, and its forwards are the restored network's to open."""
        fields: dict[str, Any] = {}
        if self._state is not None:
            fields = _fields_of_state(self._state)
        if self._config is not None:
            file = ConfigFile(self._config, command)
            parser.set_defaults(**file.options_for(parser))
            fields |= file.fields
        parser.set_defaults(config_fields=fields)


def _fields_of_state(path: str) -> dict[str, Any]:
    from slirp import statefile
    from slirp.config import Config

    try:
        found = statefile.read(path).get("config")
        fields = dict(found) if isinstance(found, dict) else {}
        fields.pop("forwards", None)
        Config(**fields)
    except statefile.StateError as error:
        raise Failure(f"--restore {str(error).removeprefix('state ')}") from None
    except ConfigError as error:
        raise Failure(f"--restore {path}: {error}") from None
    except OSError as error:
        raise Failure(f"--restore {path}: {error.strerror}") from None
    return fields


def _path_among(arguments: Sequence[str], option: str) -> str | None:
    for at, word in enumerate(arguments):
        if word == "--":
            return None
        if word == option:
            return arguments[at + 1] if at + 1 < len(arguments) else None
        if word.startswith(option + "="):
            return word[len(option) + 1 :]
    return None


def given_among(arguments: Sequence[str], parser: ArgumentParser) -> set[str]:
    """The destinations that a good command line sets; `parser` is spoiled by it."""
    for action in parser._actions:
        action.default = SUPPRESS
    return set(vars(parser.parse_args(arguments)))


def overlaid(values: dict[str, Any], fields: Mapping[str, Any], given: set[str]) -> dict[str, Any]:
    """What slirp.cli.early.Options is made of, with the file's fields where nothing was given."""
    rest = {}
    for name, value in fields.items():
        attribute, convert = _EARLY.get(name, ("", str))
        if not attribute:
            rest[name] = value
        elif not {attribute, _DESTINATIONS.get(attribute, attribute)} & given:
            values[attribute] = convert(value)
    return {**values, "fields": rest}
