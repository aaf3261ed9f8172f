"""Fixtures of the tests of data."""

import pytest

from tests.data.annotations import PUBLISHED, picture


@pytest.fixture
def published(tmp_path):
    (tmp_path / "annotations").mkdir()
    for name, content in PUBLISHED["csv"].items():
        (tmp_path / "annotations" / name).write_text(content)
    for name, size in PUBLISHED["image_sizes_wh"].items():
        picture(tmp_path / "images" / name, size)
    return tmp_path


@pytest.fixture
def two(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / "photos" / name, (100, 80))
    return tmp_path / "photos"
