"""`slirp completion SHELL`: a script that completes commands, options and their values.

Made from the parsers themselves (slirp.cli.definitions). The scripts are static: completing starts
no Python. All three work alike: the words before the cursor say how far down the commands it is;
there, an option that takes a value has its choices or files completed, and everything else the
options and words of the place. Behind `--` it is another command's line.

Does not do: what only a running network knows (ids of flows and forwards).
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from slirp.cli.definitions import Command, Option, commands

DESCRIPTION: Final = "Print a completion script for a shell."
EPILOG: Final = """\
examples:
  slirp completion bash > ~/.local/share/bash-completion/completions/slirp
  slirp completion zsh > ~/.zfunc/_slirp                # with ~/.zfunc in $fpath
  slirp completion fish > ~/.config/fish/completions/slirp.fish
"""


def configure(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("shell", metavar="SHELL", choices=tuple(SHELLS), help="bash, zsh or fish")


def run(args: Namespace) -> int:
    sys.stdout.write(SHELLS[args.shell](commands()))
    return 0


BASH: Final = """\
# Completions of slirp for bash, from `slirp completion bash`
_slirp() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}}
    local path=slirp words= files= i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        if [[ ${{COMP_WORDS[i]}} == -- ]]; then
            if declare -F _command_offset >/dev/null; then _command_offset $((i + 1)); fi
            return
        fi
        case "$path ${{COMP_WORDS[i]}}" in
            {paths}) path="$path ${{COMP_WORDS[i]}}" ;;
        esac
    done
    case "$path $prev" in
{values}
    esac
    case "$path" in
{words}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
    if [[ $files && $cur != -* ]]; then COMPREPLY+=($(compgen -f -- "$cur")); fi
}}
complete -o filenames -F _slirp slirp
"""


def bash(found: list[Command]) -> str:
    """The script for bash."""
    values, words = [], []
    for command in _all(found):
        for option in command.options:
            if option.value:
                names = "|".join(f'"{command.name} {name}"' for name in option.names)
                values.append(f"        {names}) {_bash_values(option)} return ;;")
        here = " ".join([*_names(command), *(c.path[-1] for c in command.commands)])
        here += "".join(f" {choice}" for word in command.words for choice in word.choices)
        files = " files=1" if any(word.is_file for word in command.words) else ""
        words.append(f'        "{command.name}") words="{here}"{files} ;;')
    top = " ".join(command.path[-1] for command in found)
    words.append(f'        slirp) words="{top} --help --version" ;;')
    paths = "|".join(f'"{command.name}"' for command in _all(found))
    return BASH.format(paths=paths, values="\n".join(values), words="\n".join(words))


def _bash_values(option: Option) -> str:
    if option.choices:
        return f'COMPREPLY=($(compgen -W "{" ".join(option.choices)}" -- "$cur"));'
    return 'COMPREPLY=($(compgen -f -- "$cur"));' if option.is_file else ""


ZSH: Final = """\
#compdef slirp
# Completions of slirp for zsh, from `slirp completion zsh`
_slirp() {{
    local where=slirp word i
    local -a found
    for ((i = 2; i < CURRENT; i++)); do
        if [[ $words[i] == -- ]]; then
            shift $i words
            (( CURRENT -= i ))
            _normal
            return
        fi
        case "$where $words[i]" in
            ({paths}) where="$where $words[i]" ;;
        esac
    done
    case "$where $words[CURRENT-1]" in
{values}
    esac
    case "$where" in
{words}
    esac
    _describe -o slirp found
}}
if [[ $funcstack[1] == _slirp ]]; then _slirp "$@"; else compdef _slirp slirp; fi
"""


def zsh(found: list[Command]) -> str:
    """The script for zsh."""
    values, words = [], []
    for command in _all(found):
        for option in command.options:
            if option.value:
                names = "|".join(f'"{command.name} {name}"' for name in option.names)
                values.append(f"        ({names}) {_zsh_values(option)}; return ;;")
        items = [_zsh_item(n, option.meaning) for option in command.options for n in option.names]
        items += [_zsh_item(inner.path[-1], inner.purpose) for inner in command.commands]
        items += [_zsh_item(choice, "") for word in command.words for choice in word.choices]
        files = " _files;" if any(word.is_file for word in command.words) else ""
        words.append(f'        ("{command.name}"){files} found=({" ".join(items)}) ;;')
    items = [_zsh_item(command.path[-1], command.purpose) for command in found]
    words.append(f"        (slirp) found=({' '.join(items)}) ;;")
    paths = "|".join(f'"{command.name}"' for command in _all(found))
    return ZSH.format(paths=paths, values="\n".join(values), words="\n".join(words))


def _zsh_values(option: Option) -> str:
    if option.choices:
        return f"compadd -- {' '.join(option.choices)}"
    return "_files" if option.is_file else f"_message {_quoted(option.value)}"


def _zsh_item(name: str, meaning: str) -> str:
    return _quoted(name.replace(":", r"\:") + (":" + meaning if meaning else ""))


FISH: Final = """\
# Completions of slirp for fish, from `slirp completion fish`
function __slirp_at
    set -l where slirp
    for word in (commandline -opc)[2..-1]
        test "$word" = --; and return 1
        contains -- "$where $word" {paths}; and set where "$where $word"
    end
    test "$where" = "$argv[1]"
end
complete -c slirp -f
{lines}
"""


def fish(found: list[Command]) -> str:
    """The script for fish."""
    lines = [_fish("slirp", f"-a {c.path[-1]} -d {_fish_quoted(c.purpose)}") for c in found]
    for command in _all(found):
        for option in command.options:
            lines.append(_fish(command.name, _fish_option(option)))
        for inner in command.commands:
            what = f"-a {inner.path[-1]} -d {_fish_quoted(inner.purpose)}"
            lines.append(_fish(command.name, what))
        for word in command.words:
            if word.choices:
                lines.append(_fish(command.name, f"-a {_fish_quoted(' '.join(word.choices))}"))
            elif word.is_file:
                lines.append(_fish(command.name, "-F"))
    paths = " ".join(_fish_quoted(command.name) for command in _all(found))
    return FISH.format(paths=paths, lines="\n".join(lines))


def _fish(where: str, what: str) -> str:
    return f"complete -c slirp -n \"__slirp_at '{where}'\" {what}"


def _fish_option(option: Option) -> str:
    words = [
        f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names
    ]
    if option.value:
        words.append("-x" if not option.is_file else "-r -F")
        if option.choices:
            words.append(f"-a {_fish_quoted(' '.join(option.choices))}")
    return " ".join([*words, f"-d {_fish_quoted(option.meaning)}"])


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _quoted(text: str) -> str:
    """For a POSIX shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def _all(found: list[Command]) -> Iterator[Command]:
    for command in found:
        yield from command.all()


def _names(command: Command) -> Iterator[str]:
    return (name for option in command.options for name in option.names)


SHELLS: Final[Mapping[str, Callable[[list[Command]], str]]] = {
    "bash": bash,
    "zsh": zsh,
    "fish": fish,
}
