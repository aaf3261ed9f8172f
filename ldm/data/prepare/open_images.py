"""OpenImages' annotations, in the published layout -> Boxes."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import polars as pl

from ldm.data.index import split_folders
from ldm.data.prepare.annotations import NO_TEXT, PAIRS, Boxes, Problems, is_text, reason_of, with_used_pairs
from ldm.images import picture_endings
from ldm.util import UserError

ANNOTATION_FILES = {  # split -> file in annotations/
    "train": "oidv6-train-annotations-bbox.csv",
    "validation": "validation-annotations-bbox.csv",
    "test": "test-annotations-bbox.csv",
}


def read_open_images(dataset_dir: Path, split: str) -> Boxes:
    """The published layout: annotations/<csv of the split>, images/{train_0 ... train_f,validation,test}/<id>.jpg.

    The CSV may have columns more, those of PAIRS, with a reference's path relative to dataset_dir. Reads it once: that
    of training has 14.6 million rows. Raises UserError: it is missing or damaged."""
    columns = {"ImageID": pl.String, "LabelName": pl.String}
    columns |= dict.fromkeys(("XMin", "YMin", "XMax", "YMax"), pl.Float64)
    table = _read_csv(dataset_dir / "annotations" / ANNOTATION_FILES[split], columns)
    nameless = table["ImageID"].is_null()
    table = table.filter(~nameless) if nameless.any() else table
    problems = Problems()
    problems.add("rows without an ImageID", ["annotations"] * int(nameless.sum()))
    pictures = pl.concat(
        pl.DataFrame({"path": _file_names(folder, problems)}, schema={"path": pl.String})
        .sort("path")
        .select(
            pl.col("path").str.replace(r"\.[^.]*$", "").alias("ImageID"),
            pl.format("images/{}/{}", pl.lit(folder.name), "path").alias("path"),
        )
        for folder in split_folders(dataset_dir / "images", split)
    )
    pictures = pictures.filter(pl.col("path").str.extract(r"(\.[^.]*)$").str.to_lowercase().is_in(picture_endings()))
    once = pictures.unique("ImageID", keep="first", maintain_order=True)
    problems.add("pictures of the same name as another", pictures.join(once, on="path", how="anti")["path"])
    pictures = once.with_row_index("picture")
    # Rows of one picture follow each other: one look-up per run of rows takes a tenth of the time.
    run = table["ImageID"].rle_id()
    runs = pl.DataFrame({"ImageID": table["ImageID"].filter(run.diff().fill_null(1) > 0)})
    problems.add("pictures without an annotation", pictures.join(runs, on="ImageID", how="anti")["path"])
    problems.add(
        "annotated pictures without a file", runs.unique().join(pictures, on="ImageID", how="anti")["ImageID"].sort()
    )
    runs = runs.join(pictures, on="ImageID", how="left", maintain_order="left")
    table = table.select(
        runs["picture"].gather(run),
        pl.col("XMin").alias("x0"),
        pl.col("YMin").alias("y0"),
        pl.col("XMax").alias("x1"),
        pl.col("YMax").alias("y1"),
        pl.col("LabelName").replace(_class_names(dataset_dir)).alias("label"),
        *(name for name in PAIRS if name in table.columns),
    )
    table = with_used_pairs(table)
    return Boxes(pictures["path"], table.drop_nulls("picture"), True, problems)


def _file_names(folder: Path, problems: Problems) -> list[str]:
    """The files in a folder; adds those whose name an index cannot hold to `problems`."""
    names = os.listdir(folder)
    wrong = [name for name in names if not is_text(name)]
    problems.add(NO_TEXT, wrong)
    return [name for name in names if name not in wrong] if wrong else names


def _class_names(dataset_dir: Path) -> dict[str, str]:
    """/m/... -> name of the class, from class-descriptions-boxable.csv; empty if there is no such file."""
    path = dataset_dir / "annotations" / "class-descriptions-boxable.csv"
    if not path.is_file():
        return {}
    with open(path, newline="", errors="replace") as file:
        return {row[0]: row[1] for row in csv.reader(file) if len(row) > 1}


def _read_csv(path: Path, columns: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    """These columns of a CSV with a header, and of PAIRS; text in a column of numbers becomes null."""
    try:
        header = pl.scan_csv(path, glob=False, infer_schema=False).collect_schema()
        columns = columns | {name: kind for name, kind in PAIRS.items() if name in header}
        return pl.read_csv(path, columns=list(columns), schema_overrides=columns, ignore_errors=True, glob=False)
    except FileNotFoundError as error:
        raise UserError(f"annotations {path} do not exist: see dataset/README.md for the layout") from error
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"annotations {path} cannot be read ({reason_of(error)}): download them again") from error
