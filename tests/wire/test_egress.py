"""Which addresses may be reached: the table, the spellings, the disguises (S1, T1-T3, T7)."""

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.rude_server import answering_always, rude_server
from waypost.domain.addresses import is_localhost, literal_address
from waypost.wire.egress import Egress

STRICT = Egress()

FORBIDDEN = [
    # this host, private, loopback, link-local, metadata
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.254",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "192.168.255.255",
    # protocol assignments, documentation, benchmarking, multicast, reserved
    "192.0.0.1",
    "192.0.0.8",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    # IPv6
    "::",
    "::1",
    "fc00::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "100::1",
    "5f00::1",
    "4000::1",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "3ffe::1",
    "3fff::1",
    # IPv6 in disguise
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:100.64.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a00:1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2600::5efe:7f00:1",
    "2600::200:5efe:a00:1",
]

GOOD = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.215.14",
    "100.63.255.255",
    "100.128.0.1",
    "172.15.255.255",
    "172.32.0.1",
    "192.0.1.1",
    "223.255.255.255",
    "::ffff:8.8.8.8",
    "2606:4700:4700::1111",
    "2a00:1450:4001:800::200e",
]

LOOPBACK_SPELLINGS = [
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "127.0.0.1.",
    "2130706433",
    "017700000001",
    "0x7f000001",
    "0X7F.1",
    "0x7f.0x0.0x0.0x1",
    "0177.0.0.1",
    "0177.1",
    "000000177.0.0.01",
    "127.0x000000000000000001",
    "①②⑦.⓪.⓪.①",
    "１２７.０.０.１",
    "127。0。0。1",
    "127．0｡0．1",
    "127.⒈",
    "%31%32%37.0.0.1",
    "𝟏𝟐𝟕.𝟎.𝟎.𝟏",
    "[::1]",
    "::1",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::FFFF:7F00:1]",
    "[::ffff:7f00:0001]",
    "[::1%25lo]",
    "[::1%lo]",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "a.b.localhost",
    "ｌｏｃａｌｈｏｓｔ",
    "%6cocalhost",
]

METADATA_SPELLINGS = [
    "169.254.169.254",
    "169.254.43518",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "[::ffff:a9fe:a9fe]",
    "[fe80::1%25eth0]",
]

NAMES = [
    "example.com",
    "localhost.example.com",
    "notlocalhost",
    "127.0.0.1.example.com",
    "1.2.3.4.5",
    "256.1.1.1",
    "1.2.3.256",
    "1.2.65536",
    "1.16777216",
    "4294967296",
    "08.0.0.1",
    "0xg.1",
    "1..2",
    ".1",
    "-1",
    "+1",
    "1_0",
    "1e3",
    "١٢٧.0.0.1",  # Arabic digits: int() reads them, no socket library does
    "",
    "[::1",
    "::g",
    "9" * 5_000,
]


def test_the_table_is_as_long_as_it_claims_to_be():
    assert len(FORBIDDEN) >= 42
    assert len(GOOD) == 12


@pytest.mark.parametrize("address", FORBIDDEN)
def test_a_forbidden_address_is_refused_and_the_policy_named(address):
    text = STRICT.refusal(address, 80)
    assert text is not None
    assert text.startswith("egress policy: ")
    host = f"[{address}]" if ":" in address else address
    assert STRICT.refusal_of_host(host, 80) == text


@pytest.mark.parametrize("address", GOOD)
def test_a_good_address_may_be_reached(address):
    assert STRICT.refusal(address, 443) is None
    assert STRICT.refusal_of_host(f"[{address}]" if ":" in address else address, 443) is None


@pytest.mark.parametrize("host", LOOPBACK_SPELLINGS)
def test_loopback_is_refused_in_every_spelling_unless_allowed(host):
    assert "loopback" in (STRICT.refusal_of_host(host, 80) or "")
    assert Egress.for_development().refusal_of_host(host, 80) is None


@pytest.mark.parametrize("host", METADATA_SPELLINGS)
def test_cloud_metadata_is_refused_in_every_spelling_even_in_development(host):
    assert "link-local" in (Egress.for_development().refusal_of_host(host, 80) or "")


@pytest.mark.parametrize("host", NAMES)
def test_an_ordinary_name_has_no_verdict_until_it_is_connected(host):
    assert literal_address(host) is None
    assert not is_localhost(host)
    assert STRICT.refusal_of_host(host, 80) is None


@settings(max_examples=500)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=20, max_size=20))
def test_an_ipv4_address_in_ipv6_is_judged_alike_or_refused(numbers):
    for number in numbers:
        plain = STRICT.refusal(str(IPv4Address(number)), 80)
        assert STRICT.refusal(str(IPv6Address(0xFFFF << 32 | number)), 80) == plain
        for embedded in (
            number,  # IPv4-compatible
            0xFFFF << 48 | number,  # IPv4-translated
            0x64FF9B << 96 | number,  # NAT64
            0x2002 << 112 | number << 80,  # 6to4
            0x20010000 << 96 | number ^ 0xFFFFFFFF,  # Teredo
            0x26001234 << 96 | 0x5EFE << 32 | number,  # ISATAP
            0x26001234 << 96 | 0x2005EFE << 32 | number,
        ):
            assert STRICT.refusal(str(IPv6Address(embedded)), 80) is not None


@settings(max_examples=500)
@given(st.integers(0, 2**32 - 1), st.data())
def test_every_spelling_of_an_address_is_read_as_that_address(number, data):
    def spelt(value: int) -> str:
        pattern = data.draw(st.sampled_from(["{}", "0x{:x}", "0X{:08X}", "0{:o}"]))
        return pattern.format(value)

    count = data.draw(st.integers(1, 4))
    heads = [number >> (24 - 8 * place) & 255 for place in range(count - 1)]
    last = number & (256 ** (5 - count) - 1)
    host = ".".join(map(spelt, [*heads, last])) + data.draw(st.sampled_from(["", "."]))
    folded = host.translate(
        data.draw(st.sampled_from([{}, str.maketrans("0123456789.", "０１２３４５６７８９。")]))
    )
    assert literal_address(folded) == IPv4Address(number)


def test_what_is_allowed_is_allowed_and_its_neighbours_are_not():
    egress = Egress(allow=[ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")])
    assert egress.refusal("10.1.2.3", 80) is None
    assert egress.refusal("::ffff:10.1.2.3", 80) is None
    assert egress.refusal("fd00:1::5", 80) is None
    assert egress.refusal("10.2.0.1", 80) is not None
    assert egress.refusal("fd00:2::5", 80) is not None
    assert egress.refusal("127.0.0.1", 80) is not None


@pytest.mark.parametrize(
    ("own", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("::1", "::1"),
        ("::1", "::"),
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "127.9.9.9"),
        ("::", "127.0.0.1"),
        ("::", "::1"),
        ("10.0.0.5", "10.0.0.5"),
    ],
)
def test_our_own_address_is_refused_even_where_it_is_allowed(own, address):
    egress = Egress(allow=[ip_network("0.0.0.0/0"), ip_network("::/0")], own=[(own, 8080)])
    assert "own address" in (egress.refusal(address, 8080) or "")
    assert egress.refusal(address, 8081) is None
    assert egress.refusal("10.0.0.6", 8080) is None


async def test_a_refused_destination_is_an_outcome_and_no_connection(a_sender, a_request):
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    sender = await a_sender(egress=STRICT)
    async with rude_server(answering_always(ok)) as server:
        for host in LOOPBACK_SPELLINGS:
            if ":" in host and not host.startswith("["):
                continue
            outcome = await sender.send(a_request(server.url(host=host)))
            assert outcome.error is not None
            if not host.startswith(("ｌ", "%6c")):  # no address, and no name either
                assert outcome.refused, host
                assert "egress policy" in outcome.error
            assert not outcome.host_down
    assert server.connections == 0


async def test_a_connection_that_ends_on_this_machine_at_our_port_is_refused(a_sender, a_request):
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    class BlindToItself(Egress):
        def _is_own(self, address: object, port: int) -> bool:
            return False

    async with rude_server(answering_always(ok)) as server:
        egress = BlindToItself.for_development(own=[("0.0.0.0", server.port)])
        sender = await a_sender(egress=egress)
        outcome = await sender.send(a_request(server.url()))
    assert outcome.refused
    assert server.requests == []
