"""What became of a message, asked of the server over HTTP until it has ended."""

from tests.support.program import Server, eventually

ENDS = {"DELIVERED", "FAILED", "CANCELED"}


def history(server: Server, message_id: str) -> list[str]:
    """The states of a message, oldest first, once it has ended."""
    eventually(lambda: server.states(message_id)[0] in ENDS)
    return server.states(message_id)[::-1]
