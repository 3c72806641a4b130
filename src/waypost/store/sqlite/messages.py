"""The home of a message as it is kept: its facts, and its body.

The messages of a fan-out share a body, kept under the number of the first; a
callback has a report in its place, from which its body is built.  There is no
row for an empty body.
"""

import apsw
import msgspec

from waypost.domain import callbacks
from waypost.domain.callbacks import Report
from waypost.domain.message import Message
from waypost.store.sqlite.database import query

FACTS_AND_BODY = "m.facts, (SELECT bytes FROM body WHERE number = coalesce(m.body, m.number))"
"""The columns that `whole` reads, of `message m`."""

decode_message = msgspec.json.Decoder(Message).decode
_decode_report = msgspec.json.Decoder(Report).decode


def one(db: apsw.Connection, tenant: str, message_id: str) -> tuple[Message, bytes] | None:
    """A message and its body; see `Reader.message`."""
    found = query(
        db,
        f"SELECT {FACTS_AND_BODY} FROM message m WHERE tenant = ? AND id = ?",
        (tenant, message_id),
    ).fetchone()
    return None if found is None else whole(db, *found)


def source_number(db: apsw.Connection, callback: Message) -> int:
    """The number of the message that a callback is about."""
    [number] = query(
        db, "SELECT source FROM message WHERE tenant = ? AND id = ?", (callback.tenant, callback.id)
    ).fetchone()
    return int(number)


def whole(db: apsw.Connection, facts: bytes, kept: bytes | None) -> tuple[Message, bytes]:
    """A message and its body, from the columns of `FACTS_AND_BODY`."""
    message = decode_message(facts)
    if message.callback_of is None:
        return message, kept or b""
    assert kept is not None, message.id
    source = one(db, message.tenant, message.callback_of)
    assert source is not None, message.id  # it is kept for as long as its callbacks are
    return message, callbacks.body(_decode_report(kept), *source)
