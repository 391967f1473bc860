"""The page of every command and option, docs/commands.md, written from the parser.

python -m mrisr.cli.reference > docs/commands.md
"""

from __future__ import annotations

import argparse

from mrisr.cli.main import EXIT_CODES, build_parser

HEAD = """# Every command

Written from the parser (`python -m mrisr.cli.reference`); `mrisr COMMAND --help` prints the same on your machine.
Outputs are checked before the work starts, written beside their place and renamed when all are complete; what exists
is replaced with `--force` only. Errors are one line, `mrisr: error: ...`.

## Exit codes

| exit code | meaning |
|---|---|
"""


def page() -> str:
    """docs/commands.md."""
    codes = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    return "\n\n".join([HEAD + codes, *_commands(build_parser())]) + "\n"


def _commands(parser: argparse.ArgumentParser, level: int = 2) -> list[str]:
    """A section for each command of `parser`, in order; for a command of commands, theirs below it."""
    sections = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                sections.append(_section(command, level))
                sections += _commands(command, level + 1)
    return sections


def _section(command: argparse.ArgumentParser, level: int) -> str:
    parts = [f"{'#' * level} {command.prog}", _text(command.description or "", command.prog)]
    for group in command._action_groups:
        rows = [_row(a, command.prog) for a in group._group_actions if not _left_out(a)]
        if rows:
            title = "" if group.title in ("positional arguments", "options") else f"*{group.title}*\n\n"
            parts.append(title + "\n".join(["| option | what it does |", "|---|---|", *rows]))
    return "\n\n".join(part for part in parts if part)


def _left_out(action: argparse.Action) -> bool:
    return action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction | argparse._SubParsersAction)


def _row(action: argparse.Action, prog: str) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`"
    value = "" if action.nargs == 0 or not action.option_strings else f" {_value(action)}"
    needed = " (needed)" if action.required and action.option_strings else ""
    return f"| {names}{value}{needed} | {_text(action.help or '', prog, action)} |"


def _value(action: argparse.Action) -> str:
    if action.choices:
        return "`" + "`, `".join(str(choice) for choice in action.choices) + "`"
    names = action.metavar or action.dest.upper()
    name = " ".join(names) if isinstance(names, tuple) else names
    return f"`{name} ...`" if action.nargs in ("+", "*") else f"`{name}`"


def _text(text: str, prog: str, action: argparse.Action | None = None) -> str:
    facts = {**(vars(action) if action else {}), "prog": prog}
    filled = text % facts if "%" in text else text
    return " ".join(filled.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    print(page(), end="")
