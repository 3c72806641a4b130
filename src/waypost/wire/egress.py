"""The home of egress policy: which addresses may be reached.

Pure.  The networks are frozen here on purpose.  `ipaddress.is_global` is not a
filter: it lets disguises through (NAT64, 6to4, `::127.0.0.1`), and its answers
change with the Python version.

The rule, in order:

1. our own listen addresses are refused, even where allowed (D22);
2. an IPv4-mapped IPv6 address is judged as the IPv4 address in it;
3. what the operator allows may be reached;
4. IPv4 in the table below, IPv6 outside 2000::/3 or in the table, and IPv6
   with an IPv4 address in its interface part (ISATAP) are refused.

A name has no verdict here.  It is judged when it is connected to, by the
address that will be connected: anything else can be rebound in between.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from waypost.domain.addresses import Address, is_localhost, literal_address

Network = IPv4Network | IPv6Network

FORBIDDEN: tuple[tuple[Network, str], ...] = tuple(
    (ip_network(network), what)
    for network, what in (
        ("0.0.0.0/8", "this host"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "cloud metadata"),  # Azure's, the one that has a public number
        ("169.254.0.0/16", "link-local or cloud metadata"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "protocol assignment"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "this host"),
        ("::1/128", "loopback"),
        ("::/96", "IPv4-compatible"),
        ("64:ff9b::/96", "NAT64"),
        ("64:ff9b:1::/48", "NAT64"),
        ("100::/64", "discard"),
        ("5f00::/16", "segment routing"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
        ("2001::/32", "Teredo"),
        ("2001::/23", "protocol assignment"),  # benchmarking, ORCHID, AMT, drone ids
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("3ffe::/16", "6bone"),
        ("3fff::/20", "documentation"),
    )
)
"""What may not be reached, and what it is called; the first that fits gives the name."""

LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
"""What `dev` allows besides."""

_GLOBAL_V6 = IPv6Network("2000::/3")
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)

VERDICTS_KEPT = 8_192
"""Verdicts remembered per policy; a policy never changes, so they hold for its life."""


class Egress:
    """One policy, built from values and never changed.

    `allow` names networks that may be reached although the table forbids them.
    `own` are the addresses that this server listens on; `0.0.0.0` and `::`
    stand for every address of this machine.
    """

    def __init__(
        self, *, allow: Sequence[Network] = (), own: Iterable[tuple[str, int]] = ()
    ) -> None:
        self._allow = tuple(allow)
        self._own = frozenset((_unmapped(ip_address(host)), port) for host, port in own)
        self._own_ports = frozenset(port for _, port in self._own)
        self._own_ports_everywhere = frozenset(
            port for address, port in self._own if address.is_unspecified
        )
        self._verdict = lru_cache(VERDICTS_KEPT)(self._judge)
        self._verdict_of_host = lru_cache(VERDICTS_KEPT)(self._judge_host)

    @classmethod
    def for_development(
        cls, *, allow: Sequence[Network] = (), own: Iterable[tuple[str, int]] = ()
    ) -> "Egress":
        """The policy of `dev`: loopback may be reached."""
        return cls(allow=(*LOOPBACK, *allow), own=own)

    def refusal(self, address: str, port: int) -> str | None:
        """Why `address` may not be reached at `port`, or None if it may.

        The text names the policy and the kind of network, not the address: who
        publishes a name need not learn what it resolves to in here.
        """
        return self._verdict(address, port)

    def refusal_of_host(self, host: str, port: int) -> str | None:
        """Why a URL's host is refused when it is published (D10), or None.

        Addresses in any spelling and `localhost` have a verdict now.  Other
        names have none: they are judged when connecting.
        """
        return self._verdict_of_host(host, port)

    def refusal_here(self, port: int) -> str | None:
        """Why a connection that turned out to end on this very machine is refused, or None.

        A server that listens on `0.0.0.0` cannot list its addresses; a
        connection whose two ends have one address has found one of them.
        """
        return _OWN if port in self._own_ports_everywhere else None

    def _judge_host(self, host: str, port: int) -> str | None:
        if is_localhost(host):
            return self.refusal("127.0.0.1", port)
        address = literal_address(host)
        return None if address is None else self.refusal(str(address), port)

    def _judge(self, address: str, port: int) -> str | None:
        judged = _unmapped(ip_address(address))
        if self._is_own(judged, port):
            return _OWN
        for network in self._allow:
            if judged in network:
                return None
        for network, what in FORBIDDEN:
            if judged in network:
                return f"egress policy: {what} addresses ({network}) may not be reached"
        if isinstance(judged, IPv6Address):
            if judged not in _GLOBAL_V6:
                return f"egress policy: IPv6 addresses outside {_GLOBAL_V6} may not be reached"
            if (int(judged) >> 32) & 0xFFFF_FFFF in _ISATAP:
                return "egress policy: ISATAP addresses may not be reached"
        return None

    def _is_own(self, address: Address, port: int) -> bool:
        if port not in self._own_ports:
            return False
        if (address, port) in self._own:
            return True
        # To connect to the unspecified address is to connect to loopback, and
        # to listen on it is to listen on loopback too.
        here = address.is_loopback or address.is_unspecified
        return here and any(
            own.is_unspecified or (own.is_loopback and address.is_unspecified)
            for own, own_port in self._own
            if own_port == port
        )


_OWN = "egress policy: this server's own address may not be reached"


def _unmapped(address: Address) -> Address:
    """The IPv4 address in an IPv4-mapped one; the zone of an IPv6 address falls away."""
    if isinstance(address, IPv4Address):
        return address
    return address.ipv4_mapped or IPv6Address(int(address))
