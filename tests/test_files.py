"""Walks of folders: links are followed, circles are not, and what is left out is named."""

import os
import sys

import pytest

from ldm.files import sha256_of, walk
from ldm.images import pictures_below
from ldm.util import UserError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")


@pytest.fixture
def place(tmp_path):
    """photos: a.png, train -> another disk's folder with b.png and sub/c.PNG, d.png -> that disk's b.png"""
    photos, disk = tmp_path / "photos", tmp_path / "disk"
    (disk / "sub").mkdir(parents=True)
    photos.mkdir()
    for path in (photos / "a.png", disk / "b.png", disk / "sub/c.PNG"):
        path.write_bytes(path.name.encode())
    (photos / "train").symlink_to(disk)
    (photos / "d.png").symlink_to(disk / "b.png")
    return photos


def names(walked):
    return [str(path.relative_to(walked.folder)) for path in walked.files]


def test_links_are_followed(place):
    found = walk(place)
    assert names(found) == ["a.png", "d.png", "train/b.png", "train/sub/c.PNG"]
    assert not found.left_out and not found.others
    assert names(pictures_below(place)) == names(found)
    assert found.summary("pictures") == f"{place}: 4 pictures found"


@pytest.mark.parametrize("target", ["photos", ".", "disk", "disk/sub"], ids=["top", "above", "linked", "own"])
def test_circles_end(target, place, tmp_path):
    """A link inside the linked folder: to the walk's folder, to one above it, to the linked folder or its own."""
    (tmp_path / "disk/sub/link").symlink_to(tmp_path / target)
    found = walk(place)
    assert names(found)[:4] == ["a.png", "d.png", "train/b.png", "train/sub/c.PNG"]
    assert found.left_out == {"links that lead back to a folder above them": ["train/sub/link"]}


def test_two_links_to_one_folder_are_both_followed(place, tmp_path):
    (place / "val").symlink_to(tmp_path / "disk")
    assert {"train/b.png", "val/b.png"} <= set(names(walk(place)))


def test_what_is_left_out_is_named(place):
    (place / ".hidden").mkdir()
    (place / ".hidden/e.png").write_bytes(b"e")
    (place / "._a.png").write_bytes(b"e")
    (place / "notes.txt").write_bytes(b"e")
    (place / "gone.png").symlink_to(place / "nowhere")
    os.mkfifo(place / "pipe.png")
    found = pictures_below(place)
    assert names(found) == ["a.png", "d.png", "train/b.png", "train/sub/c.PNG"]
    assert found.left_out == {
        "hidden folders": [".hidden"],
        "hidden files": ["._a.png"],
        "broken links": ["gone.png"],
        "special files": ["pipe.png"],
    }
    assert found.others == {".txt": 1}
    for words in ("4 pictures found", "broken links (1: gone.png)", "files of other endings (1 .txt)"):
        assert words in found.summary("pictures")
    assert ".hidden/e.png" in names(walk(place, hidden=True))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_folders_that_cannot_be_read_are_named(place, tmp_path):
    (tmp_path / "disk/sub").chmod(0)
    assert walk(place).left_out == {"folders that cannot be read": ["train/sub"]}
    (tmp_path / "disk/sub").chmod(0o755)


def test_a_folder_without_pictures_says_what_it_has(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"contains no pictures .*1 \.heic"):
        pictures_below(tmp_path)


def test_the_hash_of_a_folder_includes_linked_folders(place, tmp_path):
    before = sha256_of(place)
    (tmp_path / "disk/sub/c.PNG").write_bytes(b"another")
    assert sha256_of(place) != before
