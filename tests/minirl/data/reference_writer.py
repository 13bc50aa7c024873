"""Writes tokenised files as the reference does, value by value, sharing no code with the reader.

Sources: microsoft/LMOps at c994e3d, minillm/tools/process_data_dolly.py and minillm/data_utils/indexed_dataset.py
(MMapIndexedDatasetBuilder and its Index.writer).
"""

import json
import struct
from pathlib import Path

SEPARATORS = {"H": 65535, "i": 2**31 - 1}  # the largest value of the type separates prompt and response
CODES = {"H": 8, "i": 4}  # uint16 and int32 among fairseq's dtypes


def write_indexed(path: Path, records: list[list[int]], kind: str = "H") -> Path:
    """Writes `path`, the .bin, and its index. kind: "H" for uint16, "i" for int32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    offset, offsets = 0, []
    with path.open("wb") as data:
        for record in records:
            data.write(b"".join(struct.pack(f"<{kind}", token) for token in record))
            offsets.append(offset)
            offset += len(record) * struct.calcsize(kind)
    with path.with_suffix(".idx").open("wb") as index:
        index.write(b"MMIDIDX\x00\x00")
        index.write(struct.pack("<Q", 1))
        index.write(struct.pack("<B", CODES[kind]))
        index.write(struct.pack("<Q", len(records)))
        index.write(struct.pack("<Q", 1))
        for record in records:
            index.write(struct.pack("<i", len(record)))
        for offset in offsets:
            index.write(struct.pack("<q", offset))
        index.write(struct.pack("<q", 0))  # the documents: a single one, which begins at the first record
    return path


def write_split(directory: Path, split: str, rows: list[dict], tokenizer, *, kind: str = "H", only_prompt: bool = False) -> None:
    """Writes `<split>_0.bin`, its index and `<split>.jsonl` from rows with instruction, input and output."""
    records, texts = [], []
    for row in rows:
        preamble = "Below is an instruction that describes a task"
        if row["input"]:
            preamble += ", paired with an input that provides further context"
        input_block = f"\n\n### Input:\n{row['input']}" if row["input"] else ""
        prompt = (
            f"{preamble}. Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{row['instruction']}{input_block}\n\n### Response:\n"
        )
        prompt_tokens = tokenizer.encode(prompt, add_special_tokens=False)
        full = tokenizer.encode(prompt + row["output"], add_special_tokens=False) + [tokenizer.eos_token_id]
        records.append(prompt_tokens if only_prompt else [*prompt_tokens, SEPARATORS[kind], *full[len(prompt_tokens) :]])
        texts.append({"instruction": row["instruction"], "prompt": prompt, "input": row["input"], "output": row["output"]})
    write_indexed(directory / f"{split}_0.bin", records, kind)
    (directory / f"{split}.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
