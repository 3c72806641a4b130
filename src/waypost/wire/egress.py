"""The home of egress policy: which addresses may be reached.

Pure.  The networks are frozen here on purpose.  `ipaddress.is_global` is not a
filter: it lets disguises through (NAT64, 6to4, `::127.0.0.1`), and its answers
change with the Python version.

The rule, in order:

1. our own listen addresses are refused, even where allowed (D22);
2. an IPv4-mapped IPv6 address is judged as the IPv4 address in it;
3. the first of the operator's rules that fits decides;
4. IPv4 in the table below, IPv6 outside 2000::/3 or in the table, and IPv6
   with an IPv4 address in its interface part (ISATAP) are refused.

What the fourth forbids, only a rule that allows its network can open.  One that
allows a host and no network is passed over there: whoever owns a name says
where it points, and could point it in here.  Cloud metadata is opened only by
its very address, for a wide network is seldom meant to hold it.

A name has no verdict here, unless a rule denies it wherever it leads.  It is
judged when it is connected to, by the address that will be connected: anything
else can be rebound in between.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from msgspec import Struct

from waypost.domain.addresses import Address, is_localhost, literal_address, plain_host
from waypost.wire.policy import Network, Rule

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

METADATA: frozenset[Address] = frozenset(
    ip_address(address)
    for address in (
        "100.100.100.200",
        "168.63.129.16",
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "192.0.0.192",
        "fd00:ec2::23",
        "fd00:ec2::254",
        "fd20:ce::254",
    )
)
"""Where clouds hand out a machine's credentials.  All are in the table above too."""

_GLOBAL_V6 = IPv6Network("2000::/3")
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)

VERDICTS_KEPT = 8_192
"""Verdicts remembered per policy; a policy never changes, so they hold for its life."""


class Verdict(Struct, frozen=True):
    """Whether an address may be reached.

    `refusal` is None where it may.  The text names the policy and the kind of
    network, not the address: who publishes a name need not learn what it
    resolves to in here.  `by` is what decided, for who wrote the policy.
    """

    refusal: str | None
    by: str


class Egress:
    """One policy, built from values and never changed.

    `rules` are asked in order, and after them `allow`: networks that may be
    reached although the table forbids them.  `own` are the addresses that this
    server listens on; `0.0.0.0` and `::` stand for every address of this
    machine.
    """

    def __init__(
        self,
        *,
        rules: Sequence[Rule] = (),
        allow: Sequence[Network] = (),
        own: Iterable[tuple[str, int]] = (),
    ) -> None:
        allowed = (Rule(name="egress_allow", allow=True, networks=tuple(allow)),) if allow else ()
        self._rules = (*rules, *allowed)
        self._own = frozenset((_unmapped(ip_address(host)), port) for host, port in own)
        self._own_ports = frozenset(port for _, port in self._own)
        self._own_ports_everywhere = frozenset(
            port for address, port in self._own if address.is_unspecified
        )
        self.tenants = frozenset(tenant for rule in rules for tenant in rule.tenants)
        """Those of whom a rule speaks.  To all others the policy is the same."""
        self._by_host = any(rule.hosts for rule in rules)
        self._verdict = lru_cache(VERDICTS_KEPT)(self._judge)
        self._verdict_of_host = lru_cache(VERDICTS_KEPT)(self._judge_host)

    @classmethod
    def for_development(
        cls,
        *,
        rules: Sequence[Rule] = (),
        allow: Sequence[Network] = (),
        own: Iterable[tuple[str, int]] = (),
    ) -> "Egress":
        """The policy of `dev`: loopback may be reached."""
        return cls(rules=rules, allow=(*LOOPBACK, *allow), own=own)

    def verdict(self, address: str, port: int, *, host: str = "", tenant: str = "") -> Verdict:
        """Whether `tenant` may reach `address` at `port`, found as `host`: a name in lower case."""
        return self._verdict(
            address,
            port,
            host if self._by_host else "",
            tenant if tenant in self.tenants else "",
        )

    def refusal(self, address: str, port: int, *, host: str = "", tenant: str = "") -> str | None:
        """Why `verdict` is that it may not be reached, or None if it may."""
        return self.verdict(address, port, host=host, tenant=tenant).refusal

    def verdict_of_host(self, host: str, port: int, tenant: str = "") -> Verdict | None:
        """What can be said of a URL's host when it is published (D10); None is nothing yet.

        Addresses in any spelling and `localhost` have a verdict now, and so has
        a name that is denied wherever it leads.  Others have none: they are
        judged when connecting.
        """
        return self._verdict_of_host(host, port, tenant if tenant in self.tenants else "")

    def refusal_of_host(self, host: str, port: int, tenant: str = "") -> str | None:
        """Why a URL's host is refused when it is published, or None."""
        verdict = self.verdict_of_host(host, port, tenant)
        return None if verdict is None else verdict.refusal

    def refusal_here(self, port: int) -> str | None:
        """Why a connection that turned out to end on this very machine is refused, or None.

        A server that listens on `0.0.0.0` cannot list its addresses; a
        connection whose two ends have one address has found one of them.
        """
        return _OWN if port in self._own_ports_everywhere else None

    def _judge_host(self, host: str, port: int, tenant: str) -> Verdict | None:
        name = plain_host(host)
        if is_localhost(host):
            return self.verdict("127.0.0.1", port, host=name, tenant=tenant)
        address = literal_address(host)
        if address is not None:
            return self.verdict(str(address), port, host=str(address), tenant=tenant)
        for rule in self._rules:
            if rule.concerns(host=name, port=port, tenant=tenant):
                if rule.allow:  # some address of it, perhaps
                    return None
                if not rule.networks:
                    return Verdict(_denial(rule), str(rule))
        return None

    def _judge(self, address: str, port: int, host: str, tenant: str) -> Verdict:
        judged = _unmapped(ip_address(address))
        if self._is_own(judged, port):
            return Verdict(_OWN, "always: an address that this server listens on")
        forbidden = _forbidden(judged)
        for rule in self._rules:
            if not rule.concerns(host=host, port=port, tenant=tenant) or not rule.holds(judged):
                continue
            if not rule.allow:
                return Verdict(_denial(rule), str(rule))
            if forbidden is None or (
                rule.networks and (not _is_metadata(judged) or rule.names(judged))
            ):
                return Verdict(None, str(rule))
        if forbidden is None:
            return Verdict(None, "default: a public address")
        return Verdict(
            f"egress policy: {forbidden} may not be reached",
            f"default: {_METADATA if _is_metadata(judged) else forbidden}",
        )

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
_METADATA = "cloud metadata, which only a rule with its very address can allow"


def _denial(rule: Rule) -> str:
    return f"egress policy: {rule.name} denies this destination"


def _forbidden(address: Address) -> str | None:
    """What the default calls an address that it forbids, or None for a public one."""
    for network, what in FORBIDDEN:
        if address in network:
            return f"{what} addresses ({network})"
    if isinstance(address, IPv6Address):
        if address not in _GLOBAL_V6:
            return f"IPv6 addresses outside {_GLOBAL_V6}"
        if (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
            return "ISATAP addresses"
    return None


def _is_metadata(address: Address) -> bool:
    """Whether a forbidden address is one of cloud metadata, or is IPv6 with one inside.

    IPv6 carries IPv4 in its last 32 bits, in the places of 6to4 and Teredo, or behind
    a prefix of 32 to 64 bits, with a gap of one byte after the 64th bit (RFC 6052).
    """
    if address in METADATA:
        return True
    if isinstance(address, IPv4Address):
        return False
    inside = [IPv4Address(int(address) & 0xFFFF_FFFF), address.sixtofour]
    inside += address.teredo or ()
    without_gap = address.packed[:8] + address.packed[9:]
    inside += [IPv4Address(without_gap[at : at + 4]) for at in range(4, 9)]
    return not METADATA.isdisjoint(inside)


def _unmapped(address: Address) -> Address:
    """The IPv4 address in an IPv4-mapped one; the zone of an IPv6 address falls away."""
    if isinstance(address, IPv4Address):
        return address
    return address.ipv4_mapped or IPv6Address(int(address))
