"""What pg_waldump says of a server's WAL, in the shapes that its versions have."""

from __future__ import annotations

import subprocess
from fnmatch import fnmatch

import pytest

from harmony_pulumi.capabilities.site import Beyond, Fork
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.postgresql import wal

TABLE = "1663/5/16384"
# As PostgreSQL 15 wrote it.
OLDER = """
rmgr: Heap        len (rec/tot):     61/    61, tx:        725, lsn: 0/01524DD8, prev 0/01524D60, desc: INSERT+INIT off 1 flags 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: Btree       len (rec/tot):     90/    90, tx:        725, lsn: 0/01524E18, prev 0/01524DD8, desc: NEWROOT lev 0, blkref #0: rel 1663/5/16389 blk 1, blkref #2: rel 1663/5/16389 blk 0
rmgr: Transaction len (rec/tot):     34/    34, tx:        725, lsn: 0/01524EB8, prev 0/01524E78, desc: COMMIT 2026-11-25 02:38:45.108162 UTC
rmgr: Heap        len (rec/tot):     69/    69, tx:        727, lsn: 0/01525088, prev 0/01525060, desc: HOT_UPDATE off 1 xmax 727 flags 0x20 ; new off 5 xmax 0, blkref #0: rel 1663/5/16384 blk 0
rmgr: Heap        len (rec/tot):     54/    54, tx:        727, lsn: 0/015250F8, prev 0/015250D0, desc: DELETE off 2 flags 0x00 KEYS_UPDATED , blkref #0: rel 1663/5/16384 blk 0
rmgr: Transaction len (rec/tot):     34/    34, tx:        727, lsn: 0/01525130, prev 0/015250F8, desc: COMMIT 2026-11-25 02:38:45.125795 UTC
rmgr: Heap        len (rec/tot):     61/    61, tx:        729, lsn: 0/01525158, prev 0/01525130, desc: INSERT off 6 flags 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: Heap        len (rec/tot):     61/    61, tx:        730, lsn: 0/015251D8, prev 0/01525198, desc: INSERT off 7 flags 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: Transaction len (rec/tot):     46/    46, tx:        729, lsn: 0/01525258, prev 0/01525218, desc: COMMIT 2026-11-25 02:38:45.196841 UTC; subxacts: 730
rmgr: Heap        len (rec/tot):     61/    61, tx:        731, lsn: 0/01525288, prev 0/01525258, desc: INSERT off 8 flags 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: Transaction len (rec/tot):    242/   242, tx:        731, lsn: 0/01525308, prev 0/015252C8, desc: PREPARE gid p: 2026-11-25 02:38:45.199698 UTC
rmgr: Transaction len (rec/tot):     42/    42, tx:          0, lsn: 0/01525400, prev 0/01525308, desc: COMMIT_PREPARED 731: 2026-11-25 02:38:45.212901 UTC
rmgr: Heap        len (rec/tot):     61/    61, tx:        732, lsn: 0/01525430, prev 0/01525400, desc: INSERT off 9 flags 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: Transaction len (rec/tot):     34/    34, tx:        732, lsn: 0/015254B0, prev 0/01525470, desc: ABORT 2026-11-25 02:38:45.219739 UTC
rmgr: Standby     len (rec/tot):     42/    42, tx:        733, lsn: 0/015254D8, prev 0/015254B0, desc: LOCK xid 733 db 5 rel 16391
rmgr: Heap2       len (rec/tot):     82/    82, tx:        734, lsn: 0/0153B5E8, prev 0/0153B450, desc: MULTI_INSERT 2 tuples flags 0x02, blkref #0: rel 1663/5/16384 blk 0
rmgr: Transaction len (rec/tot):    405/   405, tx:        734, lsn: 0/0153B6C0, prev 0/0153B680, desc: COMMIT 2026-11-25 02:38:45.232836 UTC; inval msgs: catcache 80 catcache 79
pg_waldump: error: error in WAL record at 0/153B6C0: invalid record length at 0/153B858: wanted 24, got 0
"""  # noqa: E501
# The same shapes as PostgreSQL 16 to 18 have them.
NEWER = """
rmgr: Heap        len (rec/tot):     61/   241, tx:        725, lsn: 0/01524DD8, prev 0/01524D60, desc: INSERT+INIT off: 1, flags: 0x00, blkref #0: rel 1663/5/16384 blk 0 FPW
rmgr: Btree       len (rec/tot):     90/    90, tx:        725, lsn: 0/01524E18, prev 0/01524DD8, desc: NEWROOT level: 0, blkref #0: rel 1663/5/16389 blk 1, blkref #2: rel 1663/5/16389 blk 0
rmgr: Transaction len (rec/tot):     34/    34, tx:        725, lsn: 0/01524EB8, prev 0/01524E78, desc: COMMIT 2026-11-25 02:38:45.108162 UTC
rmgr: Heap        len (rec/tot):     69/    69, tx:        727, lsn: 0/01525088, prev 0/01525060, desc: HOT_UPDATE old_xmax: 727, old_off: 1, old_infobits: [], flags: 0x20, new_xmax: 0, new_off: 5, blkref #0: rel 1663/5/16384 blk 0
rmgr: Heap        len (rec/tot):     54/    54, tx:        727, lsn: 0/015250F8, prev 0/015250D0, desc: DELETE xmax: 727, off: 2, infobits: [KEYS_UPDATED], flags: 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: Transaction len (rec/tot):     34/    34, tx:        727, lsn: 0/01525130, prev 0/015250F8, desc: COMMIT 2026-11-25 02:38:45.125795 UTC
rmgr: Heap        len (rec/tot):     61/    61, tx:        729, lsn: 0/01525158, prev 0/01525130, desc: INSERT off: 6, flags: 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: Heap        len (rec/tot):     61/    61, tx:        730, lsn: 0/015251D8, prev 0/01525198, desc: INSERT off: 7, flags: 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: Transaction len (rec/tot):     46/    46, tx:        729, lsn: 0/01525258, prev 0/01525218, desc: COMMIT 2026-11-25 02:38:45.196841 UTC; subxacts: 730
rmgr: Heap        len (rec/tot):     61/    61, tx:        731, lsn: 0/01525288, prev 0/01525258, desc: INSERT off: 8, flags: 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: Transaction len (rec/tot):    242/   242, tx:        731, lsn: 0/01525308, prev 0/015252C8, desc: PREPARE gid p: 2026-11-25 02:38:45.199698 UTC
rmgr: Transaction len (rec/tot):     42/    42, tx:          0, lsn: 0/01525400, prev 0/01525308, desc: COMMIT_PREPARED 731: 2026-11-25 02:38:45.212901 UTC
rmgr: Heap        len (rec/tot):     61/    61, tx:        732, lsn: 0/01525430, prev 0/01525400, desc: INSERT off: 9, flags: 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: Transaction len (rec/tot):     34/    34, tx:        732, lsn: 0/015254B0, prev 0/01525470, desc: ABORT 2026-11-25 02:38:45.219739 UTC
rmgr: Standby     len (rec/tot):     42/    42, tx:        733, lsn: 0/015254D8, prev 0/015254B0, desc: LOCK xid 733 db 5 rel 16391
rmgr: Heap2       len (rec/tot):     82/    82, tx:        734, lsn: 0/0153B5E8, prev 0/0153B450, desc: MULTI_INSERT ntuples: 2, flags: 0x02, blkref #0: rel 1663/5/16384 blk 0
rmgr: Transaction len (rec/tot):    405/   405, tx:        734, lsn: 0/0153B6C0, prev 0/0153B680, desc: COMMIT 2026-11-25 02:38:45.232836 UTC; inval msgs: catcache 80 catcache 79
pg_waldump: error: error in WAL record at 0/153B6C0: invalid record length at 0/153B858: expected at least 24, got 0
"""  # noqa: E501
BEGIN, END = 0x01524DD8, 0x0153B6C0 + 405


def digest(text: str, status: str = "ended 1\n") -> str:
    done = subprocess.run(
        ["awk", wal.DIGEST], input=text + status, capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout


def beyond(text: str, lsn: str = "0/1524DD8") -> Beyond:
    return wal.beyond(lsn, digest(text))


@pytest.mark.parametrize("text", [OLDER, NEWER])
def test_what_was_committed_is_listed_with_what_it_changed(text: str) -> None:
    found = beyond(text)
    assert found["bytes"] == END - BEGIN
    assert [(each["xid"], each["lsn"], each["changes"]) for each in found["transactions"]] == [
        (725, "0/01524EB8", {f"INSERT {TABLE}": 1}),
        (727, "0/01525130", {f"HOT_UPDATE {TABLE}": 1, f"DELETE {TABLE}": 1}),
        (729, "0/01525258", {f"INSERT {TABLE}": 2}),
        (731, "0/01525400", {f"INSERT {TABLE}": 1}),
        (734, "0/0153B6C0", {f"MULTI_INSERT {TABLE}": 1}),
    ]
    assert [each["committed_at"] for each in found["transactions"]] == [
        "2026-11-25 02:38:45.108162 UTC",
        "2026-11-25 02:38:45.125795 UTC",
        "2026-11-25 02:38:45.196841 UTC",
        "2026-11-25 02:38:45.212901 UTC",
        "2026-11-25 02:38:45.232836 UTC",
    ]


def test_where_nothing_was_written_nothing_is_found() -> None:
    for said in ("", "pg_waldump: error: could not find a valid record after 0/153B6C0\n"):
        assert beyond(said, "0/153B6C0") == {"bytes": 0, "transactions": []}


@pytest.mark.parametrize(
    "said",
    [
        'pg_waldump: error: could not find file "000000010000000000000001": No such file or directory',
        "pg_waldump: fatal: could not open file",
        'pg_waldump: error: could not find any WAL file in directory "/srv/orders/data/pg_wal"',
    ],
)
def test_wal_that_could_not_be_read_is_not_taken_for_none(said: str) -> None:
    with pytest.raises(SiteError, match="pg_waldump: "):
        beyond(f"{OLDER}\n{said}\n")


@pytest.mark.parametrize("status", ["", "ended 127\n", "ended 137\n"])
def test_a_list_whose_writer_did_not_come_to_its_end_is_not_taken_for_whole(status: str) -> None:
    for text in ("", OLDER):
        with pytest.raises(SiteError, match="did not come to the end of the WAL"):
            wal.beyond("0/1524DD8", digest(text, status))


def test_a_history_file_says_where_each_timeline_ended() -> None:
    text = "1\t0/5000060\tno recovery target specified\n\n2\t1/2A\tbefore 2026-11-25 02:38:45+00\n"
    assert wal.history(3, text) == [
        Fork(timeline=1, lsn="0/5000060"),
        Fork(timeline=2, lsn="1/2A"),
        Fork(timeline=3, lsn=""),
    ]
    assert wal.history(1, "") == [Fork(timeline=1, lsn="")]
    assert wal.history_file(26) == "0000001A.history"


THROUGH = [Fork(timeline=1, lsn="0/50"), Fork(timeline=2, lsn="0/70"), Fork(timeline=5, lsn="")]


def test_what_was_written_past_a_fork_begins_there_and_where_each_later_timeline_does() -> None:
    assert wal.past(Fork(timeline=1, lsn="0/40"), THROUGH) == [
        Fork(timeline=1, lsn="0/40"),
        Fork(timeline=2, lsn="0/50"),
        Fork(timeline=5, lsn="0/70"),
    ]
    # On a timeline that ends at the fork, nothing was.
    assert wal.past(Fork(timeline=1, lsn="0/50"), THROUGH) == [
        Fork(timeline=2, lsn="0/50"),
        Fork(timeline=5, lsn="0/70"),
    ]
    assert wal.past(Fork(timeline=5, lsn="0/90"), THROUGH) == [Fork(timeline=5, lsn="0/90")]
    assert wal.past(Fork(timeline=3, lsn="0/90"), THROUGH) == []


def test_the_segments_from_a_place_on_are_those_of_its_timelines() -> None:
    mb = 1024 * 1024
    names = [
        "000000010000000000000001",
        "000000010000000000000002",
        "000000010000000000000003.partial",
        "000000020000000000000003",
        "000000020000000100000000",
        "000000030000000000000009",
        "00000002.history",
        "00000003.history",
        "archive_status",
        "000000010000000000000002.00000028.backup",
    ]
    begins = [Fork(timeline=1, lsn="0/2000060"), Fork(timeline=2, lsn="0/3000000")]
    assert wal.segments(names, begins, 16 * mb) == [
        "000000010000000000000002",
        "000000010000000000000003.partial",
        "00000002.history",
        "000000020000000000000003",
        "000000020000000100000000",
    ]
    # With other segments, the same LSN is in another file: one of 64 MB has 64 in each 4 GB.
    assert wal.segments(names, [Fork(timeline=2, lsn="0/FC000000")], 64 * mb) == [
        "00000002.history",
        "000000020000000100000000",
    ]
    assert wal.segments(names, [], 16 * mb) == []


def test_a_reader_of_wal_is_told_the_first_and_the_last_segment_of_a_timeline() -> None:
    size = 16 * 1024 * 1024
    begin = Fork(timeline=10, lsn="0/9000028")
    assert fnmatch("0000000A0000000000000009", wal.of_timeline(begin))
    assert not fnmatch("0000000A.history", wal.of_timeline(begin))
    assert not fnmatch("0000000B0000000000000009", wal.of_timeline(begin))
    names = ["0000000A000000000000000B", "0000000A0000000000000008", "0000000A0000000000000009"]
    listed = "".join(f"{size} {name}\n" for name in names)
    assert wal.span(begin, listed) == ("0000000A0000000000000009", "0000000A000000000000000B")
    assert wal.span(Fork(timeline=10, lsn="0/BFFFFFF"), listed) == ("0000000A000000000000000B",) * 2
    # The name of the last one of a timeline that ended: pg_waldump cannot go on to it, and says so.
    assert wal.span(begin, f"{listed}{size} 0000000A000000000000000C.partial")[1] == "0000000A000000000000000C.partial"
    for nothing in ("", f"{size} 0000000A0000000000000008\n"):
        with pytest.raises(ValueError, match=r"has no WAL from 0/9000028 on timeline 10"):
            wal.span(begin, nothing)
