"""The home of the command: its parts and its help."""

import re
import sys
from collections.abc import Sequence

from cyclopts import App

from waypost import __version__
from waypost.cli import people
from waypost.cli.backup import backup
from waypost.cli.copying import copy
from waypost.cli.egress import egress
from waypost.cli.faults import FAULTS, line_of, status_of
from waypost.cli.migrate import migrate
from waypost.cli.nodes import nodes
from waypost.cli.serve import dev, serve

EXAMPLES = """\
Examples:

    waypost dev
    waypost dev --port 9000 --memory
    waypost tenant create acme --database sqlite:///waypost.db
    waypost token create acme --read-only --database sqlite:///waypost.db
    waypost serve --database sqlite:///waypost.db --listen-host 0.0.0.0
    waypost serve --database postgresql://waypost@db.example/waypost
    waypost nodes --database postgresql://waypost@db.example/waypost
    waypost migrate --check --database postgresql://waypost@db.example/waypost
    waypost backup copy.db --database sqlite:///waypost.db
    waypost copy sqlite:///waypost.db postgresql://waypost@db.example/waypost
    waypost egress check https://hooks.example.com/x --tenant acme

Every setting is a flag, a WAYPOST_* variable and a key of the --config file.

What is wrong is one line on stderr. The exit status is 75 where it may mend
itself (a port that is taken, a database that is away, locked or open
elsewhere, a full disk, an I/O error), and 2 where it does not.
"""

app = App(
    name="waypost",
    version=__version__,
    help="A durable HTTP message queue that speaks the QStash v2 API.",
    help_epilogue=EXAMPLES,
    help_format="plaintext",
)
app.command(dev, help_epilogue="Example: waypost dev --port 9000 --fresh")
app.command(serve, help_epilogue="Example: waypost serve --database sqlite:////srv/waypost.db")
app.command(people.tenants)
app.command(people.tokens)
app.command(egress)
app.command(nodes, help_epilogue="Example: waypost nodes --database postgresql://db/waypost")
app.command(
    migrate, help_epilogue="Example: waypost migrate --check --database postgresql://db/waypost"
)
app.command(backup, help_epilogue="Example: waypost backup copy.db --database sqlite:///waypost.db")
app.command(
    copy,
    help_epilogue="Example: waypost copy sqlite:///waypost.db postgresql://waypost@db.example/waypost",
)


def main() -> None:
    """Run the command that `sys.argv` asks for, and exit."""
    try:
        status = app(
            with_two_dashes(sys.argv[1:]),
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except FAULTS as fault:
        sys.stderr.write(line_of(fault))
        sys.exit(status_of(fault))
    sys.exit(status)


def with_two_dashes(words: Sequence[str]) -> list[str]:
    """Flags as the QStash dev server also takes them, `-port 8080`, the way we do."""
    return ["-" + word if re.match(r"-[a-z][a-z-]", word) else word for word in words]
