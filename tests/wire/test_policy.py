"""The policy file: what may stand in it, which rule decides, for whom; nothing slips by."""

import random
from collections import Counter
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.dns_server import dns_server
from tests.support.rude_server import Peer, rude_server
from waypost.wire import names as names_module
from waypost.wire.egress import FORBIDDEN, METADATA, Egress
from waypost.wire.policy import RULES_MAX, PolicyFault, read_rules

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PUBLIC = "93.184.215.14"


def policy(text: str, **more) -> Egress:
    return Egress(rules=read_rules(text), **more)


def reaches(egress: Egress, address: str, *, port: int = 443, host: str = "", tenant: str = ""):
    return egress.refusal(address, port, host=host, tenant=tenant) is None


def test_a_policy_of_no_rules_is_the_default():
    egress = policy("# nothing yet\n")
    assert reaches(egress, PUBLIC)
    assert not reaches(egress, "10.0.0.1")


def test_the_first_rule_that_fits_decides():
    allowing = "[[rule]]\naction = 'allow'\nnetworks = ['10.1.0.0/16']\n"
    denying = "[[rule]]\naction = 'deny'\nnetworks = ['10.0.0.0/8']\n"
    assert reaches(policy(allowing + denying), "10.1.0.1")
    assert not reaches(policy(denying + allowing), "10.1.0.1")
    assert (
        policy(denying + allowing).verdict("10.1.0.1", 80).by == "rule 1: deny networks 10.0.0.0/8"
    )


def test_all_that_a_rule_names_must_fit():
    egress = policy(
        """
        [[rule]]
        action = "deny"
        hosts = ["a.example", "b.example"]
        networks = ["93.184.0.0/16"]
        ports = [443, "8000-8999"]
        tenants = ["acme"]
        """
    )
    fits = {"port": 8443, "host": "b.example", "tenant": "acme"}
    assert not reaches(egress, PUBLIC, **fits)
    assert reaches(egress, "1.1.1.1", **fits)
    assert reaches(egress, PUBLIC, **(fits | {"port": 9000}))
    assert reaches(egress, PUBLIC, **(fits | {"host": "c.example"}))
    assert reaches(egress, PUBLIC, **(fits | {"tenant": "other"}))
    assert reaches(egress, PUBLIC, **(fits | {"tenant": ""}))


def test_a_list_of_hosts_to_which_all_must_go_ends_with_a_deny_of_everything():
    egress = policy(
        """
        [[rule]]
        action = "allow"
        hosts = ["*.good.example"]
        [[rule]]
        action = "deny"
        """
    )
    assert reaches(egress, PUBLIC, host="a.good.example")
    assert not reaches(egress, PUBLIC, host="a.bad.example")
    assert not reaches(egress, "10.0.0.1", host="a.good.example")
    assert egress.refusal_of_host("a.bad.example", 443) == (
        "egress policy: rule 2 denies this destination"
    )
    assert egress.refusal_of_host("A.Good.Example.", 443) is None


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("a.example", ["a.example"], ["x.a.example", "ba.example", "a.example.org", "1.1.1.1", ""]),
        ("*.a.example", ["x.a.example", "y.x.a.example"], ["a.example", "xa.example", "x.a.examp"]),
        ("*.Example.", ["a.example"], ["example"]),
    ],
)
def test_a_star_stands_for_every_name_below_and_not_for_the_name(pattern, fits, fits_not):
    egress = policy(f"[[rule]]\naction = 'deny'\nhosts = ['{pattern}']\n")
    assert [host for host in fits if reaches(egress, PUBLIC, host=host)] == []
    assert [host for host in fits_not if not reaches(egress, PUBLIC, host=host)] == []


@given(st.sampled_from([network for network, _ in FORBIDDEN]), st.integers(0))
def test_a_host_alone_opens_no_address_that_is_forbidden(network, place):
    egress = policy("[[rule]]\naction = 'allow'\nhosts = ['in.example']\n")
    address = network[place % network.num_addresses]
    assert not reaches(egress, str(address), host="in.example")


def test_a_rule_that_opens_nothing_here_leaves_the_word_to_the_next():
    egress = policy(
        """
        [[rule]]
        action = "allow"
        hosts = ["in.example"]
        [[rule]]
        action = "allow"
        networks = ["10.0.0.0/8"]
        [[rule]]
        action = "deny"
        """
    )
    assert reaches(egress, "10.0.0.1", host="in.example")
    assert reaches(egress, PUBLIC, host="in.example")
    assert not reaches(egress, PUBLIC, host="out.example")


def test_a_host_and_a_network_together_open_the_network_to_that_host_alone():
    egress = policy(
        "[[rule]]\naction='allow'\nhosts=['in.example']\nnetworks=['10.0.0.0/8', 'fd00::/8']\n"
    )
    assert reaches(egress, "10.0.0.1", host="in.example")
    assert reaches(egress, "::ffff:10.0.0.1", host="in.example")
    assert reaches(egress, "fd00::1", host="in.example")
    assert not reaches(egress, "10.0.0.1", host="out.example")
    assert not reaches(egress, "192.168.0.1", host="in.example")


@pytest.mark.parametrize("address", sorted(map(str, METADATA)))
def test_cloud_metadata_is_opened_by_its_very_address_and_by_no_wider_network(address):
    wide = Egress(allow=[ip_network("0.0.0.0/0"), ip_network("::/0")])
    assert not reaches(wide, address)
    assert "cloud metadata" in wide.verdict(address, 80).by
    assert reaches(policy(f"[[rule]]\naction='allow'\nnetworks=['{address}']\n"), address)
    assert reaches(Egress(allow=[ip_network(address)]), address)
    assert not reaches(policy("[[rule]]\naction='allow'\nhosts=['m.example']\n"), address)


@pytest.mark.parametrize("number", [int(IPv4Address("169.254.169.254"))])
def test_cloud_metadata_in_disguise_is_not_opened_by_a_network_either(number):
    wide = Egress(allow=[ip_network("0.0.0.0/0"), ip_network("::/0")])
    for embedded in (
        number,
        0xFFFF << 32 | number,
        0xFFFF << 48 | number,
        0x64FF9B << 96 | number,
        0x64FF9B0001 << 80 | number,
        0x2002 << 112 | number << 80,
        0x20010000 << 96 | number ^ 0xFFFFFFFF,
        0x26001234 << 96 | 0x5EFE << 32 | number,
        0xFE80 << 112 | number,
        # RFC 6052: prefixes of 32 to 64 bits, one byte after the 64th bit left out
        0x64FF9B01 << 96 | number << 64,
        0x64FF9B0100 << 88 | number >> 8 << 64 | (number & 0xFF) << 48,
        0x64FF9B0001 << 80 | number >> 16 << 64 | (number & 0xFFFF) << 40,
        0x64FF9B000100 << 72 | number >> 24 << 64 | (number & 0xFFFFFF) << 32,
        0x64FF9B00010000 << 72 | number << 24,
    ):
        assert not reaches(wide, str(IPv6Address(embedded)))
    assert reaches(wide, "64:ff9b::a00:1")


def test_egress_allow_comes_after_the_file_and_may_be_narrowed_by_it():
    text = "[[rule]]\naction = 'deny'\nnetworks = ['10.1.0.0/16']\n"
    egress = policy(text, allow=[ip_network("10.0.0.0/8")])
    assert reaches(egress, "10.2.0.1")
    assert egress.verdict("10.2.0.1", 80).by == "egress_allow: allow networks 10.0.0.0/8"
    assert not reaches(egress, "10.1.0.1")


def test_our_own_address_is_refused_whatever_the_file_says():
    text = "[[rule]]\naction = 'allow'\nnetworks = ['10.0.0.5/32']\n"
    egress = policy(text, own=[("10.0.0.5", 8080)])
    assert not reaches(egress, "10.0.0.5", port=8080)
    assert reaches(egress, "10.0.0.5", port=8081)


def test_a_name_is_refused_when_published_only_where_no_address_of_it_could_be_reached():
    egress = policy(
        """
        [[rule]]
        action = "deny"
        networks = ["1.0.0.0/8"]
        [[rule]]
        action = "allow"
        tenants = ["acme"]
        networks = ["10.0.0.0/8"]
        [[rule]]
        action = "deny"
        ports = [25]
        """
    )
    assert "rule 3" in (egress.refusal_of_host("a.example", 25) or "")
    assert egress.refusal_of_host("a.example", 25, "acme") is None  # it may be in 10.0.0.0/8
    assert egress.refusal_of_host("a.example", 80) is None
    assert "rule 1" in (egress.refusal_of_host("0x01.1", 80) or "")
    assert egress.refusal_of_host("10.0.0.1", 80, "acme") is None
    assert egress.refusal_of_host("10.0.0.1", 80, "other") is not None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[rule", "not TOML"),
        ("rules = []", "there is no key rules; a policy is a list of [[rule]]"),
        ("rule = 'allow'", "rule is not a list of [[rule]]"),
        ("[rule]\naction = 'allow'", "rule is not a list of [[rule]]"),
        ("[[rule]]", "rule 1: action is missing"),
        ("[[rule]]\naction = 'permit'", "rule 1: action = 'permit'; it is"),
        ("[[rule]]\naction = ['allow']", "rule 1: action = ['allow']"),
        (
            "[[rule]]\naction = 'deny'\nhost = ['a']",
            "rule 1: there is no key host; is hosts meant?",
        ),
        ("[[rule]]\naction = 'deny'\nx = 1", "there is no key x; there are action, hosts"),
        ("[[rule]]\naction = 'deny'\nhosts = 'a'", "rule 1: hosts is not a list of at least one"),
        ("[[rule]]\naction = 'deny'\nports = []", "rule 1: ports is not a list of at least one"),
        ("[[rule]]\naction = 'deny'\nhosts = [1]", "rule 1: hosts = 1 is not text"),
        ("[[rule]]\naction = 'deny'\nhosts = ['*']", "is neither a host name nor"),
        ("[[rule]]\naction = 'deny'\nhosts = ['a.*.b']", "is neither a host name nor"),
        ("[[rule]]\naction = 'deny'\nhosts = ['*a.b']", "is neither a host name nor"),
        ("[[rule]]\naction = 'deny'\nhosts = ['ü.de']", "is neither a host name nor"),
        ("[[rule]]\naction = 'deny'\nhosts = ['10.0.0.1']", "addresses go into networks"),
        ("[[rule]]\naction = 'deny'\nhosts = ['*.1']", "addresses go into networks"),
        ("[[rule]]\naction = 'deny'\nhosts = ['::1']", "addresses go into networks"),
        ("[[rule]]\naction = 'deny'\nhosts = ['https://a.b']", "has no scheme, port or path"),
        ("[[rule]]\naction = 'deny'\nhosts = ['a.b:80']", "has no scheme, port or path"),
        ("[[rule]]\naction = 'deny'\nnetworks = ['10.0.0.1/8']", "= '10.0.0.1/8' is not a network"),
        ("[[rule]]\naction = 'deny'\nnetworks = ['a.b']", "= 'a.b' is not a network"),
        ("[[rule]]\naction = 'deny'\nnetworks = [10]", "= 10 is not text"),
        ("[[rule]]\naction = 'deny'\nnetworks = ['::ffff:10.0.0.0/104']", "IPv4 inside IPv6"),
        ("[[rule]]\naction = 'deny'\nports = [0]", "= 0 is not within 1 to 65535"),
        ("[[rule]]\naction = 'deny'\nports = ['9-8']", "= '9-8' is not within 1 to 65535"),
        ("[[rule]]\naction = 'deny'\nports = [65536]", "= 65536 is not within"),
        ("[[rule]]\naction = 'deny'\nports = [true]", "= True is neither a port nor a range"),
        ("[[rule]]\naction = 'deny'\nports = ['http']", "= 'http' is neither a port nor a range"),
        ("[[rule]]\naction = 'deny'\ntenants = ['']", "is not the name of a tenant"),
        ("[[rule]]\naction = 'deny'\n" * (RULES_MAX + 1), f"more than {RULES_MAX} rules"),
    ],
)
def test_a_wrong_file_is_refused_and_the_fault_named(text, says):
    with pytest.raises(PolicyFault) as caught:
        read_rules(text)
    assert says in str(caught.value)


def test_every_fault_of_a_file_is_told_at_once():
    with pytest.raises(PolicyFault) as caught:
        read_rules(
            "[[rule]]\naction = 'deny'\n[[rule]]\naction = 'let'\nports = [0, 80, 'x']\n"
            "[[rule]]\nnetworks = ['10/8']\n"
        )
    assert [fault.partition(" = ")[0] for fault in caught.value.faults] == [
        "rule 2: action",
        "rule 2: ports",
        "rule 2: ports",
        'rule 3: action is missing; it is "allow" or "deny"',
        "rule 3: networks",
    ]


# What really goes out.


class Here:
    """A server on every address of this machine, which counts by address."""

    def __init__(self) -> None:
        self.connections: Counter[str] = Counter()
        self.reached: Counter[str] = Counter()
        self.port = 0

    async def script(self, peer: Peer) -> None:
        address = peer._writer.get_extra_info("sockname")[0]
        self.connections[address] += 1
        while True:
            await peer.read_request()
            self.reached[address] += 1
            await peer.send(OK)


@pytest.fixture
async def here() -> AsyncIterator[Here]:
    server = Here()
    async with rude_server(server.script, host="0.0.0.0") as listening:
        server.port = listening.port
        yield server


@pytest.mark.parametrize(
    ("text", "reached"),
    [
        ("networks = ['127.0.0.2']", {"127.0.0.2"}),
        ("hosts = ['flip.example']\nnetworks = ['127.0.0.2/32']", {"127.0.0.2"}),
        ("hosts = ['flip.example']", set()),
    ],
    ids=["by network", "by host and network", "by host alone"],
)
async def test_of_200_posts_to_a_name_that_flips_none_reaches_the_forbidden_address(
    a_sender, a_request, here, monkeypatch, text, reached
):
    monkeypatch.setattr(names_module, "KEPT_MS_MIN", 0)
    coin = random.Random(0)
    addresses = ["127.0.0.2", "127.0.0.3"]

    def flips() -> list[str]:
        return coin.choice([addresses[:1], addresses[1:], addresses, addresses[::-1]])

    async with dns_server({"flip.example": flips}, ttl_s=0) as names:
        egress = policy(f"[[rule]]\naction = 'allow'\n{text}\n")
        sender = await a_sender(egress=egress, nameservers=[names.address])
        url = f"http://flip.example:{here.port}/"
        outcomes = [await sender.send(a_request(url)) for _ in range(200)]
    refused = sum(outcome.refused for outcome in outcomes)
    assert set(here.connections) == reached
    assert refused + here.reached.total() == 200
    assert refused
    assert all(outcome.delivered or outcome.refused for outcome in outcomes)


async def test_a_tenant_is_not_given_the_idle_connection_that_another_may_use(
    a_sender, a_request, here
):
    egress = policy("[[rule]]\naction = 'allow'\ntenants = ['acme']\nnetworks = ['127.0.0.2/32']\n")
    sender = await a_sender(egress=egress)

    async def sent(tenant: str):
        return await sender.send(a_request(f"http://127.0.0.2:{here.port}/", tenant=tenant))

    assert (await sent("acme")).delivered
    for other in ("other", "", "ACME"):
        outcome = await sent(other)
        assert outcome.refused
        assert outcome.error is not None
        assert "egress policy" in outcome.error
    assert (await sent("acme")).delivered
    assert here.connections == {"127.0.0.2": 1}
    assert here.reached == {"127.0.0.2": 2}


async def test_a_host_is_not_given_the_idle_connection_that_another_may_use(
    a_sender, a_request, here
):
    egress = policy("[[rule]]\naction='allow'\nhosts=['in.example']\nnetworks=['127.0.0.2/32']\n")
    names = {"in.example": ["127.0.0.2"], "out.example": ["127.0.0.2"]}
    async with dns_server(names) as server:
        sender = await a_sender(egress=egress, nameservers=[server.address])
        outcomes = [
            await sender.send(a_request(f"http://{host}:{here.port}/"))
            for host in ("in.example", "out.example", "In.Example.", "127.0.0.2")
        ]
    assert [outcome.delivered for outcome in outcomes] == [True, False, True, False]
    assert [outcome.refused for outcome in outcomes] == [False, True, False, True]
    assert here.connections == {"127.0.0.2": 1}


async def test_what_the_operator_trusts_lends_its_connection_to_nobody_else(
    a_sender, a_request, here
):
    sender = await a_sender(egress=Egress())
    url = f"http://127.0.0.2:{here.port}/"
    outcomes = [
        await sender.send(a_request(url, trusted=trusted)) for trusted in (True, False, True)
    ]
    assert [outcome.delivered for outcome in outcomes] == [True, False, True]
    assert outcomes[1].refused
    assert here.connections == {"127.0.0.2": 1}
