"""Tables as programs and spreadsheets write them -> rows of text."""

from __future__ import annotations

import codecs
import csv
import io

from ldm.storage import Place

DELIMITERS = ",;\t"
END = "end"  # a row after the last one


def read_text(path: Place, errors: str = "strict") -> str:
    """A text file in UTF-8, or in UTF-16 with the mark that Windows writes. Raises OSError, UnicodeDecodeError."""
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if wide else "utf-8-sig", errors)


def read_rows(path: Place, errors: str = "strict") -> list[tuple[int, list[str]]]:
    """(number of the line, cells) of each row of a CSV file that is not blank; cells are as written, spaces included.

    The delimiter is the one of DELIMITERS that the first row has most often. A row `sep=;`, which Excel writes, is
    left out. Raises OSError, UnicodeDecodeError, csv.Error."""
    lines = list(io.StringIO(read_text(path, errors), newline=""))
    start = next((i for i, line in enumerate(lines) if line.strip()), 0)
    delimiter = None
    if lines and lines[start].lower().startswith("sep=") and len(lines[start].strip()) <= 5:
        delimiter = lines[start].rstrip("\r\n")[4:] or ","
        start += 1
    first = lines[start] if start < len(lines) else ""
    delimiter = delimiter or max(DELIMITERS, key=first.count)
    reader = csv.reader([*lines[start:], END], delimiter=delimiter, strict=errors == "strict")
    rows = [(start + reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    if rows.pop()[1] != [END]:  # it became part of a cell, as did all rows before it
        raise csv.Error(f"a quotation mark after line {rows[-1][0] if rows else start} is never closed")
    return rows
