"""What a server's write-ahead log says, as pg_waldump shows it, and where its timelines went. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from harmony_pulumi.capabilities.site import Beyond, Fork, Transaction
from harmony_pulumi.errors import SiteError
from harmony_pulumi.orchestration.failover import lsn_bytes

# WAL may have millions of records; only what is asked for leaves the host: a line for each commit, the number of each
# kind of change by transaction and relation, and the last record.
DIGEST = r"""
/^pg_waldump: / { print "said " $0 }
/^ended [0-9]+$/ { print }
/^rmgr: / { xid = $0; sub(/.*tx: +/, "", xid); sub(/,.*/, "", xid)
  lsn = $0; sub(/.*lsn: /, "", lsn); sub(/,.*/, "", lsn)
  total = $0; sub(/.*len \(rec\/tot\): +[0-9]+\/ */, "", total); sub(/,.*/, "", total)
  last = lsn " " total }
/^rmgr: Heap/ && match($0, /rel [0-9]+\/[0-9]+\/[0-9]+/) {
  where = substr($0, RSTART + 4, RLENGTH - 4)
  what = $0; sub(/.*desc: /, "", what); sub(/[ +].*/, "", what)
  if (what ~ /^(INSERT|MULTI_INSERT|UPDATE|HOT_UPDATE|DELETE)$/) changes[xid " " what " " where]++ }
/^rmgr: Transaction/ && /desc: COMMIT/ {
  text = $0; sub(/.*desc: COMMIT/, "", text); print "commit " xid " " lsn " " text }
END { for (key in changes) print "change " key " " changes[key]; print "last " last }
"""
_END = re.compile("error in WAL record at|could not find a valid record after")
"""How pg_waldump ends, in PostgreSQL 13 to 18, where there is no more WAL."""
_COMMIT = re.compile(r"(?:_PREPARED (?P<prepared>\d+):)? *(?P<at>\d{4}-\d\d-\d\d [^;]+)")
_SUBTRANSACTIONS = re.compile(r"subxacts: ([\d ]+)")


def beyond(lsn: str, digest: str) -> Beyond:
    """Return what was written past an LSN, of the digest of the records there.

    The numbers of changes are those of records: one record may have several rows (MULTI_INSERT).

    Raises:
        SiteError: there is WAL that could not be read; the message is pg_waldump's.
    """
    lines = [line.partition(" ")[::2] for line in digest.splitlines()]
    # At the end of WAL it ends with 1. Anything else, or no word of its end, and what it said may not be all.
    if [text for kind, text in lines if kind == "ended"] not in (["0"], ["1"]):
        raise SiteError(f"pg_waldump did not come to the end of the WAL: {digest.strip()[-300:] or 'it said nothing'}")
    if said := [text for kind, text in lines if kind == "said" and not _END.search(text)]:
        raise SiteError("; ".join(said))
    changes: dict[int, Counter[str]] = {}
    for kind, text in lines:
        if kind == "change":
            xid, what, where, count = text.split()
            changes.setdefault(int(xid), Counter())[f"{what} {where}"] += int(count)
    commits = [_transaction(text, changes) for kind, text in lines if kind == "commit"]
    size = 0
    for last, total in (text.split() for kind, text in lines if kind == "last" and text):
        size = lsn_bytes(last) + int(total) - lsn_bytes(lsn)
    return {"bytes": size, "transactions": commits}


def _transaction(text: str, changes: Mapping[int, Mapping[str, int]]) -> Transaction:
    xid, lsn, said = text.split(" ", 2)
    found = _COMMIT.match(said)
    own = int(found["prepared"] or xid) if found else int(xid)
    below = _SUBTRANSACTIONS.search(said)
    counts = Counter[str]()
    for number in (own, *map(int, below[1].split() if below else ())):
        counts.update(changes.get(number, {}))
    return {"xid": own, "committed_at": found["at"].strip() if found else said, "lsn": lsn, "changes": dict(counts)}


def history(timeline: int, text: str) -> list[Fork]:
    """Return the timelines of a history file, and the one that it belongs to, last."""
    ended: list[Fork] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0].isdigit():
            ended.append(Fork(timeline=int(words[0]), lsn=words[1]))
    return [*ended, Fork(timeline=timeline, lsn="")]


def history_file(timeline: int) -> str:
    """Return the name of a timeline's history file: PostgreSQL, "Timelines"."""
    return f"{timeline:08X}.history"


def past(fork: Fork, through: Sequence[Fork]) -> list[Fork]:
    """Return the beginnings of what a server wrote past a fork, one for each of its timelines from there on."""
    begins: list[Fork] = []
    is_past = False
    for before, one in zip((None, *through), through, strict=False):
        if one["timeline"] == fork["timeline"]:
            is_past = True
            if one["lsn"] != fork["lsn"]:  # Else its next timeline begins there, and this one's file may be gone.
                begins.append(fork)
        elif is_past and before:
            begins.append(Fork(timeline=one["timeline"], lsn=before["lsn"]))
    return begins


def segments(names: Sequence[str], begins: Sequence[Fork], segment_bytes: int) -> list[str]:
    """Return which files of pg_wal have what was written from these places on; each timeline in its own files."""
    first: Mapping[int, int] = {begin["timeline"]: lsn_bytes(begin["lsn"]) // segment_bytes for begin in begins}
    found: list[str] = []
    for name in sorted(names):
        if re.fullmatch("[0-9A-F]{24}(\\.partial)?", name):
            timeline, number = int(name[:8], 16), _number(name[8:24], segment_bytes)
            if timeline in first and number >= first[timeline]:
                found.append(name)
        elif name.endswith(".history") and int(name[:8], 16) in first:
            found.append(name)
    return found


def of_timeline(begin: Fork) -> str:
    """Return the pattern of the names that a timeline's segments have."""
    return f"{begin['timeline']:08X}[0-9A-F]*"


def span(begin: Fork, listed: str) -> tuple[str, str]:
    """Return the first and the last segment from an LSN on, of a timeline's segments, listed as sizes and names.

    Raises:
        ValueError: there is none; the message goes on after the folder's name.
    """
    sizes = {name: int(size) for size, name in (line.split() for line in listed.splitlines())}
    # All have one size, the empty ones that are made in advance, too.
    if found := segments(list(sizes), [begin], max(sizes.values(), default=1)):
        return found[0], found[-1]
    msg = f"has no WAL from {begin['lsn']} on timeline {begin['timeline']}"
    raise ValueError(msg)


def _number(name: str, segment_bytes: int) -> int:
    return int(name[:8], 16) * (2**32 // segment_bytes) + int(name[8:], 16)
