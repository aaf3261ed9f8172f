"""The command that `pip install` brings."""

from __future__ import annotations

import pytest

import ldm
from ldm.cli import main as dispatcher

NAMES = [name for commands in dispatcher.COMMANDS.values() for name in commands]


def call(monkeypatch, capsys, *argv: str) -> tuple[int, str, str]:
    """`paint-by-example *argv` in this process -> (exit code, stdout, stderr)."""
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/paint-by-example", *argv])
    code = 0
    try:
        dispatcher.main()
    except SystemExit as stop:
        code = stop.code or 0
    return code, *capsys.readouterr()


@pytest.mark.parametrize("argv", [(), ("--help",)])
def test_the_command_lists_its_commands(monkeypatch, capsys, argv):
    code, out, _ = call(monkeypatch, capsys, *argv)
    assert code == 0
    assert all(f"\n  {name} " in out for name in NAMES)
    assert max(map(len, out.splitlines())) <= 100


def test_version(monkeypatch, capsys):
    assert call(monkeypatch, capsys, "--version") == (0, f"paint-by-example {ldm.__version__}\n", "")


@pytest.mark.parametrize(("name", "cure"), [("edti", "did you mean edit"), ("zzz", "--help lists the commands")])
def test_an_unknown_command_is_one_sentence_with_a_cure(monkeypatch, capsys, name, cure):
    code, out, err = call(monkeypatch, capsys, name)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and repr(name) in err and cure in err
