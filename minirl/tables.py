"""Table: results with a title and columns, printed in the terminal and written as Markdown."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """The first column is text, all others are numbers. rows: the cells as text, one tuple of `columns` cells a row."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        """The table as Markdown with its title as a heading; ends with an empty line."""
        lines = [self.columns, ("---", *["---:"] * (len(self.columns) - 1)), *self.rows]
        return "\n".join([f"## {self.title}", "", *(f"| {' | '.join(cells)} |" for cells in lines), ""])
