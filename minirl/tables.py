"""A table of results, printed in the terminal and written as Markdown."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """The first column is text, all others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        """With its title as a heading; ends with an empty line."""
        lines = [self.columns, ("---", *["---:"] * (len(self.columns) - 1)), *self.rows]
        return "\n".join([f"## {self.title}", "", *(f"| {' | '.join(cells)} |" for cells in lines), ""])
