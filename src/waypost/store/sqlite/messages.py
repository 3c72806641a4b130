"""The home of a message as it is kept: its facts, and its body."""

import apsw
import msgspec

from waypost.domain.message import Message
from waypost.store.sqlite.database import query

decode_message = msgspec.json.Decoder(Message).decode


def one(db: apsw.Connection, tenant: str, message_id: str) -> tuple[Message, bytes] | None:
    """A message and its body; see `Reader.message`."""
    found = query(
        db, "SELECT number, facts FROM message WHERE tenant = ? AND id = ?", (tenant, message_id)
    ).fetchone()
    return None if found is None else (decode_message(found[1]), body_of(db, found[0]))


def body_of(db: apsw.Connection, number: int) -> bytes:
    """The bytes of a message; there is no row for an empty body."""
    found = query(db, "SELECT bytes FROM body WHERE number = ?", (number,)).fetchone()
    return b"" if found is None else bytes(found[0])
