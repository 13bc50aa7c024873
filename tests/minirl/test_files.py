"""Files of JSON lines that a kill cut in the middle of a line."""

import pytest

from minirl.files import drop_incomplete_line, read_json_lines


@pytest.mark.parametrize(
    ("content", "lines", "remaining"), [(b"a\nbb\nc", 2, b"a\nbb\n"), (b"a\nbb\n", 2, b"a\nbb\n"), (b"abc", 0, b""), (b"", 0, b"")]
)
def test_a_half_written_line_is_cut(tmp_path, content, lines, remaining):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    assert drop_incomplete_line(file) == lines and file.read_bytes() == remaining


def test_a_missing_file_has_no_lines(tmp_path):
    assert drop_incomplete_line(tmp_path / "none") == 0


def test_the_remaining_lines_can_be_read_and_appended_to(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n{"a": 2, "b"')
    assert drop_incomplete_line(file) == 1
    with file.open("a") as more:
        more.write('{"a": 3}\n')
    assert list(read_json_lines(file)) == [{"a": 1}, {"a": 3}]
