"""The door for people: the `waypost` command."""
