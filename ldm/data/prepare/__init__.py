"""Annotations -> the index that training reads. Needs polars."""

from ldm.util import require

require("polars", "train")
