"""Pages and parts of pages that scripts write: each script prints to its place, or checks with --check that the place is up to date."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def write_or_check(page: Path, content: str) -> int:
    """Write `content` to `page`, or with --check on the command line compare the two. Returns the exit code."""
    current = page.read_text(encoding="utf-8") if page.is_file() else ""
    if "--check" not in sys.argv[1:]:
        if current != content:
            page.write_text(content, encoding="utf-8")
        return 0
    if current != content:
        print(f"{page.relative_to(ROOT)} is out of date; run `make docs` and commit what it changes", file=sys.stderr)
        return 1
    return 0


def replace_between(text: str, name: str, content: str) -> str:
    """`text` with everything between `<!-- name: begin -->` and `<!-- name: end -->` replaced by `content`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    _, end_marker, after = rest.partition(end)
    if not end_marker:
        raise SystemExit(f"the markers {begin} and {end} are missing; put them back where the generated part belongs")
    return f"{before}{begin}\n{content}\n{end}{after}"
