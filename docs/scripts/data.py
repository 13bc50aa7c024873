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

## Chat templates

`template: chat` renders each record with the tokenizer's own chat template. The prompt of an answer is what the template renders before it,
with the invitation to answer. What it adds for the answer is learnt, through the first end token. Prompt and answer are
tokenised apart, an answer without the space that SentencePiece tokenizers put before every text.

- **Arguments.** `data.template_arguments` reach the template wherever it is rendered, such as Qwen3's `{{enable_thinking: false}}`. A
  name that the template does not contain is an error. Templates that print today's date (Llama 3.1) take `date_string`; without it, the
  prompts of a run that is resumed on another day differ.
- **Several turns.** All learnt turns of a record are one sequence if the prompt of each begins with the turns before it, as they were
  learnt. A template may rewrite earlier turns: Qwen3 drops their thoughts, Mistral moves the system prompt to the last one. Then each
  learnt turn is an example of its own, with the prompt that the model would meet, in every split and evaluation set; the turns before
  it are not learnt there. Each example goes to the split of its own prompt. The report counts the additional examples as `turns_apart`.
- **Thoughts.** A record's thought is in its content, between tags such as `<think>` and `</think>`, or in a field such as
  `reasoning_content`. It is learnt also where the template drops thoughts from answers, as those of R1's distilled models do.
- **An invitation that opens a thought** (R1, QwQ: it ends with `<think>`) stays as it is, so the prompt ends inside the thought. The
  thought, `</think>` and the answer are learnt. A record without a thought closes it at once: `\\n</think>\\n\\n` is learnt before its
  answer. The report counts such examples as `thoughts_closed`. Hybrid templates (Qwen3) put an empty thought before such answers
  themselves.
- **A prompt that closes the thought** (`enable_thinking: false`) has no place for a record's thought: the record is refused.
- **Marks.** Where the template marks the assistant's text with `{{% generation %}}`, only marked text is learnt, as transformers'
  `return_assistant_tokens_mask` says; and the end token after it, without which the student would never learn to stop.
- **Refused**, with one sentence that names the record: a template that raises any error; one whose invitation is not how its answers
  begin, unless it has marks (the sentence shows both renderings); one that closes answers with no end token; one that renders nothing
  of a turn, such as a system prompt or a tool's answer.

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
