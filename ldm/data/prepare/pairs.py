"""Pictures and their annotations, paired by name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ldm.data.prepare.annotations import Problems
from ldm.files import walk
from ldm.images import picture_endings
from ldm.util import UserError

NO_BOX = "annotation files without a box"


def find_files(
    folder: Path, name: str, kinds: Iterable[str], problems: Problems, expected: Iterable[str]
) -> list[Path]:
    """The files of these endings below a folder. name: of what they are, in the plural; what is left out is added to
    `problems`. expected: endings that are not worth a word, since pictures and annotations may share a folder.

    Raises UserError: no folder."""
    if not folder.is_dir():
        raise UserError(f"{name} {folder} is not a folder: name the one that contains them")
    found = walk(folder, set(kinds))
    for ending in expected:
        found.others.pop(ending, None)
    problems.found.append(found.summary(name))
    for reason, paths in found.left_out.items():
        problems.add(reason, (os.path.join(folder, path) for path in paths))
    return found.files


def add_unannotated(images: Path, annotations: Path, named: set[str], problems: Problems) -> None:
    """Add the pictures in the folder that the annotations, a file, do not name to `problems`. Raises UserError: no
    folder."""
    named = {os.path.normpath(path) for path in named}
    found = map(str, find_files(images, "images", picture_endings(), problems, [annotations.suffix.lower()]))
    problems.add("pictures without an annotation", (file for file in found if file not in named))


def _by_name(
    folder: Path, name: str, kinds: Iterable[str], problems: Problems, expected: Iterable[str]
) -> dict[Path, Path]:
    """Path in the folder without its extension -> file. Of several files with the same name the last is used, and the
    repetition added to `problems`. Raises UserError: no folder."""
    found: dict[Path, Path] = {}
    for file in find_files(folder, name, kinds, problems, expected):
        key = file.relative_to(folder).with_suffix("")
        if key in found:
            problems.add("files of the same name as another", [str(file)])
        found[key] = file
    return found


def pair_by_name(
    images: Path, annotations: Path, extensions: Iterable[str], problems: Problems
) -> Iterator[tuple[str, Path]]:
    """(picture, annotation file) of the same name in the same subfolder; one without the other is a problem.

    Raises UserError: a folder does not exist."""
    pictures = _by_name(images, "images", picture_endings(), problems, extensions)
    files = _by_name(annotations, "annotations", extensions, problems, picture_endings())
    files.pop(Path("classes"), None)
    problems.add("pictures without an annotation", (str(pictures[key]) for key in pictures if key not in files))
    problems.add("annotations without a picture", (str(files[key]) for key in files if key not in pictures))
    return ((str(pictures[key]), files[key]) for key in pictures if key in files)
