"""Tests of the data, with a small tokenizer (`chatml`) and a writer of the reference's files."""
