"""The commands and snippets of the documents, for the tests that run them."""

from __future__ import annotations

import re

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    """The code blocks of a language, of all pages, each once."""
    found = [block for page in PAGES for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.S)]
    return list(dict.fromkeys(found))


def commands() -> list[str]:
    """The lines of all ```bash blocks, each once, without comments."""
    lines = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def commands_of(*scripts: str) -> list[str]:
    """The commands that run one of these files, for instance "scripts/demo.py"."""
    return [command for command in commands() if command.startswith("python ") and command.split()[1] in scripts]


def snippet(opening: str) -> str:
    """The one ```python block that begins with these words."""
    (found,) = [block for block in blocks("python") if block.startswith(opening)]
    return found
