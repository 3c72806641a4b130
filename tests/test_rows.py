"""Every row of the contract that our features touch is cited by a test that talks HTTP.

`docs.rows` says how a row is cited, and which tests count.  docs/compatibility.md
shows every row with its tests, or with the reason that stands here.
"""

from docs.rows import cited

ROWS = {*range(1, 137), *range(137, 215)} | {
    *range(215, 226),
    229,
    232,
}
"""What publishing, enqueueing and delivering have to do with, and URL groups; of 236 rows."""

LATER: dict[int, str] = {}
"""Rows that are left to a later issue, and why.  Whoever cites one takes it out of here."""


def test_every_row_is_cited_by_a_test_or_left_to_a_later_issue() -> None:
    found = set(cited())

    assert sorted(ROWS - found - set(LATER)) == []
    assert sorted(found & set(LATER)) == []
    assert max(found) <= 236
    assert len(LATER) <= 8
