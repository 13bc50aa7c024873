"""The first line of a library's error."""

import pytest

from minirl.errors import first_line


def test_the_first_line_that_says_something():
    assert first_line(ValueError("\n\n a  b.\nmore")) == "a b"
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("\x1b[31mred\x1b[0m\nmore")) == "red"
    assert (
        first_line(ValueError("Validation error for field 'x':\n    TypeError: no int"))
        == "Validation error for field 'x': TypeError: no int"
    )
    with pytest.raises(ValueError) as long:
        int("1" * 5000)
    assert "4300 digits" in first_line(long.value) and "sys." not in first_line(long.value), "advice to programmers"
    assert len(first_line(ValueError("x" * 5000))) == 300
