"""Several sources of instruction data, taken together."""

from collections.abc import Callable

from minirl.config.data import SourceConfig
from minirl.records import Conversation


def read_sources(
    sources: list[SourceConfig], limit: int | None, read: Callable[[str, int | None], list[Conversation]]
) -> dict[str, list[Conversation]]:
    """The records of each source, its first ones where it has a limit or a share. limit: of any source; read: from name and limit.

    With shares the source that has the fewest records for its share gives all of them, and the others what goes with that: of 300 and
    1,000 records at shares 0.75 and 0.25, 300 and 100.
    """
    found = {one.source: read(one.source, min((n for n in (one.limit, limit) if n), default=None)) for one in sources}
    shares = {one.source: one.share for one in sources if one.share}
    if not shares:
        return found
    whole = min(len(found[name]) / share for name, share in shares.items())
    return {name: records[: max(1, round(shares[name] * whole))] for name, records in found.items()}
