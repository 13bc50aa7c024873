"""Tests of the data, with a small real tokenizer (`chatml`) and a writer of the reference's files (`reference_writer`)."""
