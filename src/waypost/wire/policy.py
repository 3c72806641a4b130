"""The home of egress rules: what the operator's policy file says, as values.

Pure.  A file is read to rules in order, or to every fault that it has:

    [[rule]]
    action = "allow"                    # or "deny"
    hosts = ["*.corp.example"]          # a name, or every name below one
    networks = ["10.20.0.0/16"]         # the address that is connected
    ports = [443, "8000-8999"]
    tenants = ["acme"]

What a rule leaves out, it does not ask; what it names must all fit.  Which rule
decides, and what holds where none does, is `egress`'s.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from msgspec import Struct

from waypost.domain.addresses import Address, literal_address

Network = IPv4Network | IPv6Network

RULES_MAX = 1_000
"""Rules in one file: each is asked in turn, about each new pair of a host and an address."""


class PolicyFault(Exception):
    """Why a policy file is not used: every fault in it, each naming its rule."""

    def __init__(self, *faults: str) -> None:
        self.faults = faults
        super().__init__("; ".join(faults))


class Rule(Struct, frozen=True, kw_only=True):
    """One rule.  `name` is what to call it; an empty tuple asks nothing.

    `hosts` are in lower case, those that begin with `*` cut to the dot behind
    it: `.corp.example` stands for every name below `corp.example`.
    """

    name: str
    allow: bool
    hosts: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    ports: tuple[range, ...] = ()
    tenants: tuple[str, ...] = ()

    def concerns(self, *, host: str, port: int, tenant: str) -> bool:
        """Whether all that it names fits, but for the address."""
        return (
            (not self.tenants or tenant in self.tenants)
            and (not self.ports or any(port in ports for ports in self.ports))
            and (not self.hosts or any(_fits(host, pattern) for pattern in self.hosts))
        )

    def holds(self, address: Address) -> bool:
        """Whether `address` is in one of its networks, or it names none."""
        return not self.networks or any(address in network for network in self.networks)

    def names(self, address: Address) -> bool:
        """Whether one of its networks is this very address, and no other."""
        return any(
            network.num_addresses == 1 and network.network_address == address
            for network in self.networks
        )

    def __str__(self) -> str:
        asked = {
            "hosts": [f"*{host}" if host.startswith(".") else host for host in self.hosts],
            "networks": [str(network) for network in self.networks],
            "ports": [
                f"{ports[0]}" if len(ports) == 1 else f"{ports[0]}-{ports[-1]}"
                for ports in self.ports
            ],
            "tenants": self.tenants,
        }
        said = "; ".join(f"{kind} {', '.join(items)}" for kind, items in asked.items() if items)
        return f"{self.name}: {'allow' if self.allow else 'deny'} {said or 'everything'}"


def read_rules(text: str) -> tuple[Rule, ...]:
    """The rules of a policy file, in its order.  Raises PolicyFault with every fault there is."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyFault(f"not TOML: {error}") from None
    faults = [
        f"there is no key {key}; a policy is a list of [[rule]]" for key in found if key != "rule"
    ]
    entries = found.get("rule", [])
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise PolicyFault(*faults, "rule is not a list of [[rule]]: each begins with that line")
    if len(entries) > RULES_MAX:
        raise PolicyFault(*faults, f"it has more than {RULES_MAX} rules")
    rules = [
        _rule(f"rule {number}", entry, faults) for number, entry in enumerate(entries, start=1)
    ]
    if faults:
        raise PolicyFault(*faults)
    return tuple(rules)


_ACTIONS = {"allow": True, "deny": False}
_LABELS = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def _fits(host: str, pattern: str) -> bool:
    return host.endswith(pattern) if pattern.startswith(".") else host == pattern


def _rule(name: str, entry: Mapping[str, Any], faults: list[str]) -> Rule:
    """Read one entry; what is wrong with it goes to `faults`, and then the rule is not used."""
    keys = ("action", *_READERS)
    for key in entry:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            meant = f"; is {near[0]} meant?" if near else f"; there are {', '.join(keys)}"
            faults.append(f"{name}: there is no key {key}{meant}")
    action = entry.get("action")
    if not isinstance(action, str) or action not in _ACTIONS:
        shown = "is missing" if action is None else f"= {action!r}"
        faults.append(f'{name}: action {shown}; it is "allow" or "deny"')
    asked = {
        key: tuple(_items(f"{name}: {key}", entry[key], read, faults))
        for key, read in _READERS.items()
        if key in entry
    }
    return Rule(name=name, allow=action == "allow", **asked)


def _items(
    where: str, items: object, read: Callable[[object], Any], faults: list[str]
) -> Iterable[Any]:
    # An empty list is most likely a slip, and would ask nothing: the rule would hold everywhere.
    if not isinstance(items, list) or not items:
        faults.append(f"{where} is not a list of at least one; leave it out to ask nothing")
        return
    for item in items:
        try:
            yield read(item)
        except ValueError as error:
            faults.append(f"{where} = {item!r} {error}")


def _read_host(item: object) -> str:
    if not isinstance(item, str):
        raise ValueError("is not text")
    pattern = item.lower().removesuffix(".")
    name = pattern.removeprefix("*.")
    if literal_address(name) is not None:
        raise ValueError("is an address; addresses go into networks")
    if "/" in name or ":" in name:
        raise ValueError("is not a host name; it has no scheme, port or path")
    if _LABELS.fullmatch(name) is None:
        raise ValueError('is neither a host name nor "*." and one')
    return pattern.removeprefix("*")


def _read_network(item: object) -> Network:
    if not isinstance(item, str):
        raise ValueError("is not text")
    try:
        network = ip_network(item)
    except ValueError as error:
        raise ValueError(f"is not a network: {error}") from None
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise ValueError("is IPv4 inside IPv6; write the IPv4 network, which fits both")
    return network


def _read_ports(item: object) -> range:
    found = _PORTS.fullmatch(str(item)) if type(item) in (int, str) else None
    if found is None:
        raise ValueError('is neither a port nor a range such as "8000-8999"')
    low = int(found[1])
    high = int(found[2] or low)
    if not 0 < low <= high < 65_536:
        raise ValueError("is not within 1 to 65535, from low to high")
    return range(low, high + 1)


def _read_tenant(item: object) -> str:
    if not isinstance(item, str) or not item:
        raise ValueError("is not the name of a tenant")
    return item


_READERS: dict[str, Callable[[object], Any]] = {
    "hosts": _read_host,
    "networks": _read_network,
    "ports": _read_ports,
    "tenants": _read_tenant,
}
