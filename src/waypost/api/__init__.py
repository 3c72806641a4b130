"""The door for programs: the QStash v2 API over ASGI."""
