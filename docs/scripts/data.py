"""Writes docs/data.md, the reference of data formats, columns and message fields, from the tables that the readers use."""

import sys

from docs.scripts.generated import ROOT, write_or_check
from minirl.data.hub_rows import FORM
from minirl.data.messages import MESSAGE_FIELDS
from minirl.data.record_files import FORMATS
from minirl.data.records import COLUMNS

PAGE = """# Data

<!-- `make docs` writes this page from the readers in minirl/data; edit docs/scripts/data.py and the tables there instead. -->

`data.train` (one source or a list), `data.validation`, `data.test` and the sets of `stages.evaluate` name sources of instruction records.
`corpus.source` names plain text. Data are read strictly: every column of a record is used, or named in `data.ignore_columns`, or the
command ends before any model is loaded, with one sentence that names the file, the line and the column. A column whose value is null counts
as absent.

## Sources

| source | is read as |
|---|---|
{sources}

The ending of a name decides, in capitals or not. `.gz` behind it means that the file is compressed with gzip. A file that cannot be read
ends the command with a sentence that says which format it was taken for, why, and what its first bytes look like.

A hub data set has one of these forms: {form}.
Without a split it is `train`; a split may be a part, such as `train[:10%]`. An example is `openai/gsm8k:main/train`.

## Columns of a record

A record is a list of messages, or a prompt with or without a response. Names in one row of the table mean the same; a record may have one
of them.

| column | what happens to it |
|---|---|
{columns}
| any other | Refused, unless `data.ignore_columns` names it. |

These are the usual forms:

| form | columns |
|---|---|
| chat | `messages` |
| ShareGPT | `conversations` with `from` and `value`, `system`, `tools` |
| Alpaca | `instruction`, `input`, `output`, `system`, `history` |
| Dolly | `instruction`, `context`, `response`; `data.ignore_columns: [category]` |
| TRL | `prompt` and `completion`, both texts or both lists of messages |
| question and answer | `question`, `answer`, `system_prompt` |

## Fields of a message

| field | what happens to it |
|---|---|
{fields}
| any other | Refused, unless `data.ignore_columns` names it. |

Only turns of the assistant are learnt. A user's turn must come first, after at most one system prompt. A field that is passed to the
chat template must change the rendered text: if the template leaves it out, the record is refused. `template: alpaca` takes no such fields.
The reference of an answer is its content; an answer that only calls tools has its rendered text as reference.

## Plain text

A corpus has the text in the column `text`. Its other columns are not read. A `.txt` or `.txt.gz` file is one document.
"""


def page() -> str:
    sources = [f"`*{ending}` | {format.name}. {format.note}" for ending, format in FORMATS.items()]
    sources += [
        "`*.bin`, a directory | Token ids of the reference code: `train_0.bin` with `train_0.idx`, used id by id, without the template.",
        "`embedded:NAME` | Data of installed packages: `embedded:chatterbot`, `embedded:wordnet`, `embedded:reasoning_gym`.",
        "`owner/name` | A data set of the Hugging Face hub, if no such file exists.",
    ]
    columns = [f"{', '.join(f'`{name}`' for name in names)} | {meaning}" for names, meaning in COLUMNS.items()]
    fields = [f"{', '.join(f'`{name}`' for name in names)} | {meaning}" for names, meaning in MESSAGE_FIELDS.items()]
    form = ", ".join(f"`{part}`" for part in FORM.replace(" or ", ", ").split(", "))
    return PAGE.format(sources=_rows(sources), form=form, columns=_rows(columns), fields=_rows(fields))


def _rows(rows: list[str]) -> str:
    return "\n".join(f"| {row} |" for row in rows)


def main() -> int:
    return write_or_check(ROOT / "docs" / "data.md", page())


if __name__ == "__main__":
    sys.exit(main())
