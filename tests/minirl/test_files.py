"""What a kill leaves of a file of lines."""

import pytest

from minirl.files import drop_incomplete_line, read_json_lines


@pytest.mark.parametrize(
    ("text", "lines", "left"), [(b"a\nbb\nc", 2, b"a\nbb\n"), (b"a\nbb\n", 2, b"a\nbb\n"), (b"abc", 0, b""), (b"", 0, b"")]
)
def test_a_half_written_line_is_cut(tmp_path, text, lines, left):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(text)
    assert drop_incomplete_line(file) == lines and file.read_bytes() == left


def test_no_file_has_no_lines(tmp_path):
    assert drop_incomplete_line(tmp_path / "none") == 0


def test_what_is_left_can_be_read_and_appended_to(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n{"a": 2, "b"')
    assert drop_incomplete_line(file) == 1
    with file.open("a") as more:
        more.write('{"a": 3}\n')
    assert list(read_json_lines(file)) == [{"a": 1}, {"a": 3}]
