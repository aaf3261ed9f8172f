"""What all commands share: the program's name, a parser, and one sentence with exit code 2 for a user's mistake."""

from __future__ import annotations

import argparse
import difflib
import functools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ldm.util import UserError, UserNote


def program() -> str:
    """The program's name in usage and errors, such as `inference.py` or `paint-by-example edit`."""
    name = Path(sys.argv[0]).name
    name = {"__main__.py": "python -m ldm"}.get(name, name)
    return " ".join([name, *sys.argv[1:2]]) if name in ("paint-by-example", "python -m ldm") else name


class CommandParser(argparse.ArgumentParser):
    """Reports a wrong flag in one sentence, without the usage of all others; takes --a-b for --a_b."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = [self._known(word) for word in (sys.argv[1:] if args is None else args)]
        opt, surplus = self.parse_known_args(words, namespace)
        flags = [word.partition("=")[0] for word in surplus if word.startswith("-")]
        if flags:
            near = difflib.get_close_matches(flags[0], self._option_string_actions, 1)
            self.error(f"unknown flag {flags[0]}" + (f": did you mean {near[0]}?" if near else ""))
        if surplus:
            self.error(f"{' '.join(surplus)} belongs to no flag")
        return opt

    def _known(self, word: str) -> str:
        flag, equals, value = word.partition("=")
        underscored = "--" + flag[2:].replace("-", "_")
        known = self._option_string_actions
        return underscored + equals + value if flag[:2] == "--" and flag not in known and underscored in known else word

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; --help lists the flags\n")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """1, "picture" -> "1 picture"; 2000, "picture" -> "2,000 pictures"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def command_parser(description: str | None) -> argparse.ArgumentParser:
    """An empty parser with the program's name, which prints the description with its own line breaks."""
    return CommandParser(program(), None, description, formatter_class=argparse.RawDescriptionHelpFormatter)


@contextmanager
def _notes_as_lines() -> Iterator[None]:
    """UserNotes of this block are one line each on stderr, without the place in the code that they come from."""
    show_warning = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if issubclass(category, UserNote):
            print(f"{program()}: note: {message}", file=sys.stderr)
        else:
            show_warning(message, category, *place, **options)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = show_warning


def command(main: Callable[..., None]) -> Callable[..., None]:
    """Decorator of a command's main: a UserError becomes one line on stderr and exit code 2; Ctrl-C and SIGTERM end it
    with 130 and 143 and leave nothing half-written."""

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that temporary files are removed
        try:
            with _notes_as_lines():
                main(*args, **kwargs)
        except (UserError, MemoryError) as error:
            words = (
                "the memory is full: ask for fewer or smaller pictures"
                if isinstance(error, MemoryError)
                else str(error)
            )
            print(f"{program()}: error: {' '.join(words.split())}", file=sys.stderr)
            sys.exit(2)
        except BrokenPipeError:  # the reader of the output, such as head, has stopped
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return run
