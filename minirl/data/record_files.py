"""Rows of data files: JSON lines, JSON, CSV, TSV and Parquet, also compressed with gzip.

FORMATS says which name means which format. A file that cannot be read is an InputError that names the format, and why it was assumed.
"""

import codecs
import csv
import gzip
import io
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from minirl.data.values import distinct, printable, printable_list, reason_of, type_name, without_nulls
from minirl.errors import InputError

Row = tuple[str, dict[str, Any]]  # its origin ("train.jsonl line 3") and its columns
Numbered = Iterator[tuple[str, dict[str, Any]]]  # where in the file ("line 3") and the columns


class Format(NamedTuple):
    """A file format. read: the rows of an opened file. note: what a reader of the documentation should know."""

    name: str
    read: Callable[[IO[bytes]], Numbered]
    note: str


class BadRow(Exception):
    """A row that cannot be read; its text follows the file's name: "line 3 is not valid JSON: ..."."""


def read_file(path: Path) -> Iterator[Row]:
    """The rows of a data file. Raises InputError for a file that is missing or not what its name says."""
    try:
        with open_file(path) as file:
            for where, columns in recognise_file(path).read(file):
                yield f"{path} {where}", columns
    except BadRow as error:
        raise InputError(f"{printable(path, 300)} {error}{describe_assumption(path)}") from None
    except Exception as error:  # a damaged file makes its reader fail in many ways
        raise unreadable(path, error) from None


def recognise_file(path: Path) -> Format | None:
    """The format that belongs to the ending of a file's name, without .gz; None if there is none. Case does not matter."""
    name, ending = path.name.lower().removesuffix(".gz"), _ending(path)
    return FORMATS.get(ending) if name != ending else None


def open_file(path: Path) -> IO[bytes]:
    """Opens a file for reading; one whose name ends in .gz is decompressed. Raises OSError and ValueError as `open` does.

    A pipe or a device is refused: opening a pipe waits for its writer, perhaps for ever, and a run reads its files again when it resumes.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # `open` refuses a directory in better words
        raise ValueError("it is a pipe or a device, so write its content to a file")
    return gzip.open(path, "rb") if _is_gzip(path) else path.open("rb")


def unreadable(path: Path, error: Exception) -> InputError:
    """The sentence for a file whose reading failed with `error`."""
    if isinstance(error, OSError) and error.strerror:
        return InputError(f"cannot read the data file {printable(path, 300)}: {error.strerror}; check its path")
    problem = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "not readable"
    return InputError(f"{printable(path, 300)} is {problem}: {reason_of(error)}{describe_assumption(path)}")


def describe_assumption(path: Path) -> str:
    """As which format a file was read and why, in brackets; empty if the path names no such file."""
    format = recognise_file(path)
    name = format.name if format else "plain text" if _ending(path) == ".txt" else None
    if name is None:
        return ""
    gzipped = _is_gzip(path)
    looks = looks_like(path)
    why = f"because its name ends in {_ending(path)}{'.gz' * gzipped}"
    return f" (it was read as {name}{' in gzip' * gzipped}, {why}{'; ' + looks if looks else ''})"


def _ending(path: Path) -> str:
    return "." + path.name.lower().removesuffix(".gz").rpartition(".")[2]


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


SIGNATURES = {
    b"version https://git-lfs": "its content is a git-lfs pointer, so fetch the file itself with git lfs pull",
    b"PAR1": "its content is a Parquet file",
    b"\x1f\x8b": "its content is compressed with gzip, so let its name end in .gz",
    b"PK\x03\x04": "its content is a zip archive or a spreadsheet, so unpack it or export it as CSV",
    b"\x28\xb5\x2f\xfd": "its content is compressed with zstd, so decompress it",
    b"ARROW1": "its content is an Arrow file, so convert it to Parquet",
    b"<!doctype html": "its content is a web page, so the download failed",
    b"<html": "its content is a web page, so the download failed",
    b"\0" * 8: "its content is zeros, so the disk was full or the copy failed",
    codecs.BOM_UTF16_LE: "its content is UTF-16 text, so convert it to UTF-8",
    codecs.BOM_UTF16_BE: "its content is UTF-16 text, so convert it to UTF-8",
}


def looks_like(path: Path) -> str | None:
    """What the first bytes of a file, or of what it compresses, say, if its name says something else."""
    ending = _ending(path)
    expected = (b"PAR1",) if ending == ".parquet" else ()
    if not _is_gzip(path):
        return _described(_start(path, open), ending, expected)
    return _described(_start(path, open), ending, (b"\x1f\x8b",)) or _described(_start(path, gzip.open), ending, expected)


def _start(path: Path, opened: Callable[..., IO[bytes]]) -> bytes:
    """The first bytes after white space, in lower case; none if the file cannot be read."""
    with suppress(Exception):  # the reader of the whole file reports what is wrong with it
        if path.is_file():  # opening a pipe would wait for its writer
            with opened(path, "rb") as file:
                return file.read(64).lstrip().lower()
    return b""


def _described(start: bytes, ending: str, expected: tuple[bytes, ...]) -> str | None:
    if start.startswith(b"[") and ending not in (".json", ".txt"):
        return "its content begins like a JSON array, so let its name end in .json"
    signs = (sign for sign in SIGNATURES if sign not in expected and start.startswith(sign.lower()))
    return next((SIGNATURES[sign] for sign in signs), None)


# --- formats ---


def _json_lines(file: IO[bytes]) -> Numbered:
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            where = f"line {number}"
            yield where, _object(_parse_json(line, where), where)


def _json_file(file: IO[bytes]) -> Numbered:
    """An array of objects; anything that does not begin like an array is read as JSON lines."""
    content = file.read().removeprefix(codecs.BOM_UTF8)
    if not content.lstrip().startswith(b"["):
        _refuse_single_object(content)
        yield from _json_lines(io.BytesIO(content))
        return
    for number, value in enumerate(_parse_json(content, "as a whole"), start=1):
        yield f"record {number}", _object(value, f"record {number}")


def _refuse_single_object(content: bytes) -> None:
    """Raises BadRow for a file that is one object with the records inside, or one record on several lines."""
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        return
    if not isinstance(whole, dict) or not whole:
        return
    holds_records = all(isinstance(value, list | dict) for value in whole.values()) and not any(map(_is_messages, whole.values()))
    if holds_records or b"\n" in content.strip():
        raise BadRow(
            f"holds one object with {printable_list(whole)} instead of an array of records; write [{{...}}, {{...}}] with one object for "
            "each record, or each record on a line of its own"
        )


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) and ("role" in item or "from" in item) for item in value)


def _parse_json(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode(), object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:  # ValueError: malformed, not UTF-8, or a number of more than 4,300 digits
        raise BadRow(f"{where} is not valid JSON: {reason_of(error)}") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRow(f"{where} holds {type_name(value)}; it must be a JSON object with the columns of one record")
    return value


def _check_column_names(names: list[str], separator: str) -> None:
    if len(set(names)) < len(names):
        raise BadRow(f"line 1 names a column twice: {', '.join(map(printable, names))}; each column needs a name of its own")
    for other, word in ((";", "semicolons"), ("\t", "tabs"), (",", "commas"), ("|", "vertical bars")):
        if len(names) == 1 and other != separator and other in names[0]:
            advice = "let its name end in .tsv" if other == "\t" else "let its name end in .csv" if other == "," else "save it with commas"
            raise BadRow(f"line 1 names one column, {printable(names[0])}, which looks as if {word} separated several; {advice}")
    if any("\0" in name for name in names):
        raise BadRow("line 1 has NUL characters, so it is no text; copy or download it again")


def _separated(separator: str) -> Callable[[IO[bytes]], Numbered]:
    def rows(file: IO[bytes]) -> Numbered:
        csv.field_size_limit(2**31 - 1)  # the default refuses cells of more than 131,072 characters
        reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), delimiter=separator, strict=True)
        try:
            names = next(filter(None, reader), [])  # blank lines above the names, as elsewhere, are skipped
            _check_column_names(names, separator)
            for cells in reader:
                where = f"line {reader.line_num}"
                if not cells:
                    continue
                if len(cells) != len(names):
                    raise BadRow(
                        f"{where} has {len(cells)} cells, and the first line names {len(names)} columns; quote the cells that need it"
                    )
                yield where, {name: cell or None for name, cell in zip(names, cells, strict=True)}
        except csv.Error as error:
            raise BadRow(f"line {reader.line_num} is not valid CSV: {reason_of(error)}") from None

    return rows


def _parquet(file: IO[bytes]) -> Numbered:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    names = table.schema_arrow.names
    if len(set(names)) < len(names):
        raise BadRow(f"names a column twice: {', '.join(map(printable, names))}; each column needs a name of its own")
    rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", {name: without_nulls(value) for name, value in row.items()}


JSON_LINES = Format("JSON lines", _json_lines, "One JSON object a line. Blank lines are skipped.")
FORMATS = {
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".json": Format("JSON", _json_file, "An array of JSON objects; a file that does not begin with `[` is read as JSON lines."),
    ".csv": Format(
        "CSV", _separated(","), 'Separated by commas, quoted with `"`; the first line names the columns. An empty cell is null.'
    ),
    ".tsv": Format("TSV", _separated("\t"), "As CSV, separated by tabs."),
    ".parquet": Format("Parquet", _parquet, "Nulls inside objects are taken as absent."),
}
