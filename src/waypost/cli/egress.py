"""The home of `waypost egress`: what the egress policy says of a URL, and why.

It reads the settings that `serve` would, asks the same name servers and the
same policy, and connects to nothing.
"""

import asyncio
import sys
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from waypost import assembly
from waypost.cli.flags import Given, with_settings
from waypost.cli.tables import WIDTH_PIPED
from waypost.domain.addresses import literal_address, plain_host
from waypost.domain.destination import checked_url, origin_of
from waypost.settings import Settings
from waypost.wire.egress import Verdict
from waypost.wire.names import NameFault, Names
from waypost.wire.proxy import Proxy

egress = App(
    name="egress",
    help="Explain where messages may be delivered to.",
    help_epilogue="Example: waypost egress check https://hooks.example.com/x --tenant acme",
)


@egress.command(
    name="check",
    help_epilogue="Example: waypost egress check http://10.0.0.5/ --egress-policy policy.toml",
)
@with_settings(
    (
        "listen_host",
        "listen_port",
        "nameservers",
        "egress_allow",
        "egress_policy",
        "egress_proxy",
    )
)
def check(
    given: Given,
    url: Annotated[str, Parameter(help="Where a message would go.")],
    /,
    *,
    tenant: Annotated[str, Parameter(help="Whose message it would be.", show_default=False)] = "",
) -> int:
    """Say whether `waypost serve` would deliver to a URL, and which rule decides.

    The exit status is 0 if it would, 1 if not, 2 if that cannot be said.
    """
    settings = given.settings()
    origin = origin_of(checked_url(url.encode("utf-8")))
    policy = assembly.egress_of(
        settings, dev=False, own=(settings.listen_host, settings.listen_port)
    )
    console = Console(width=None if sys.stdout.isatty() else WIDTH_PIPED, highlight=False)

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    say(f"{origin.key}, for {f'tenant {tenant}' if tenant else 'a tenant that no rule names'}\n")
    literal = literal_address(origin.host)
    host = plain_host(origin.host) if literal is None else str(literal)
    at_door = policy.verdict_of_host(origin.host, origin.port, tenant)
    if at_door is not None and at_door.refusal is not None:
        _show(console, [(host, at_door)])
        say(f"\nNot delivered: to publish to it is answered with 400, {at_door.refusal}.")
        return 1
    found = (host,) if literal is not None else asyncio.run(_addresses(settings, host))
    if isinstance(found, NameFault):
        say(f"{found.why}\n\nNot delivered: an attempt fails, and is tried again.")
        return 1
    verdicts = [
        (address, policy.verdict(address, origin.port, host=host, tenant=tenant))
        for address in found
    ]
    _show(console, verdicts)
    allowed = sum(verdict.refusal is None for _, verdict in verdicts)
    if not allowed:
        say(
            "\nNot delivered: a message for it is accepted, for a name is judged when it is "
            "connected to,\nand goes to the dead letter queue at its first attempt."
        )
        return 1
    way = f" through the proxy {Proxy(settings.egress_proxy)}" if settings.egress_proxy else ""
    which = "" if allowed == len(verdicts) else ", to the allowed addresses only"
    say(f"\nDelivered{way}{which}.")
    return 0


async def _addresses(settings: Settings, host: str) -> tuple[str, ...] | NameFault:
    async with Names(nameservers=settings.nameservers) as names:
        return await names.find(host)


def _show(console: Console, verdicts: list[tuple[str, Verdict]]) -> None:
    table = Table("ADDRESS", "VERDICT", "DECIDED BY", box=None, pad_edge=False)
    for address, verdict in verdicts:
        word = Text("allowed", "green") if verdict.refusal is None else Text("forbidden", "red")
        table.add_row(address, word, Text(verdict.by))
    console.print(table)
