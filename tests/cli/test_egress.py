"""`waypost egress check`: what it says of a URL, how it ends; and a start with a wrong policy."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.dns_server import DnsServer, dns_server
from tests.support.program import DEADLINE_S, Ended, running, waypost

POLICY = """
[[rule]]
action = "deny"
ports = [25]

[[rule]]
action = "allow"
tenants = ["acme"]
networks = ["10.20.0.0/16"]

[[rule]]
action = "deny"
hosts = ["*.evil.example"]
"""

NAMES = {
    "good.example": ["93.184.215.14"],
    "mixed.example": ["93.184.215.14", "10.20.0.1"],
    "in.example": ["10.20.0.1"],
}


@contextmanager
def names_served() -> Iterator[str]:
    """A name server in a thread, for the command has a loop of its own."""
    started, ended = threading.Event(), asyncio.Event()
    found: list[tuple[asyncio.AbstractEventLoop, DnsServer]] = []

    async def serve() -> None:
        async with dns_server(NAMES) as server:
            found.append((asyncio.get_running_loop(), server))
            started.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert started.wait(DEADLINE_S)
        yield found[0][1].address
    finally:
        found[0][0].call_soon_threadsafe(ended.set)
        thread.join(DEADLINE_S)


@pytest.fixture(scope="module")
def nameserver() -> Iterator[str]:
    with names_served() as address:
        yield address


@pytest.fixture
def check(tmp_path: Path, nameserver: str):
    (tmp_path / "policy.toml").write_text(POLICY)

    def run(*words: str, **environ: str) -> Ended:
        environ = {
            "WAYPOST_EGRESS_POLICY": "policy.toml",
            "WAYPOST_NAMESERVERS": nameserver,
            **environ,
        }
        return waypost("egress", "check", *words, cwd=tmp_path, environ=environ)

    return run


def lines(ended: Ended) -> list[str]:
    return [line.rstrip() for line in ended.stdout.splitlines()]


def test_each_address_is_shown_with_the_rule_that_decided(check):
    ended = check("https://mixed.example/x")

    assert ended.returncode == 0
    assert lines(ended) == [
        "https://mixed.example:443, for a tenant that no rule names",
        "",
        "ADDRESS        VERDICT    DECIDED BY",
        "93.184.215.14  allowed    default: a public address",
        "10.20.0.1      forbidden  default: private addresses (10.0.0.0/8)",
        "",
        "Delivered, to the allowed addresses only.",
    ]


def test_a_tenant_has_its_own_verdict(check):
    without, with_one = check("http://in.example"), check("http://in.example", "--tenant", "acme")

    assert (without.returncode, with_one.returncode) == (1, 0)
    assert "dead letter queue" in without.stdout
    assert "rule 2: allow networks 10.20.0.0/16; tenants acme" in with_one.stdout


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://good.example:25/", "rule 1: deny ports 25"),
        ("http://a.evil.example/", "rule 3: deny hosts *.evil.example"),
        ("http://0x7f.1/", "default: loopback addresses (127.0.0.0/8)"),
        ("http://[::1]/", "default: loopback addresses (::1/128)"),
        ("http://169.254.169.254/", "cloud metadata, which only a rule with its very address"),
        ("http://127.0.0.1:8080/", "always: an address that this server listens on"),
        ("http://localhost:8080/", "always: an address that this server listens on"),
    ],
)
def test_what_is_refused_when_it_is_published_is_explained(check, url: str, says: str):
    ended = check(url)

    assert ended.returncode == 1
    assert says in ended.stdout
    assert "answered with 400, egress policy: " in ended.stdout


def test_a_name_that_is_not_found_is_not_forbidden_and_not_delivered(check):
    ended = check("https://nope.example/")

    assert ended.returncode == 1
    assert "name not found" in ended.stdout
    assert "tried again" in ended.stdout


def test_neither_userinfo_nor_query_nor_the_proxys_password_is_shown(check):
    ended = check(
        "https://me:hush@good.example/x?token=hush",
        WAYPOST_EGRESS_PROXY="http://me:hush@proxy.example:3128",
    )

    assert ended.returncode == 0
    assert "Delivered through the proxy http://proxy.example:3128." in ended.stdout
    assert "hush" not in ended.stdout + ended.stderr


@pytest.mark.parametrize("url", ["ftp://x/", "good.example", "http://", "http://x:99999/"])
def test_a_url_that_cannot_be_published_to_ends_with_status_2(check, url: str):
    ended = check(url)

    assert ended.returncode == 2
    assert "invalid destination url" in ended.stderr


WRONG = "[[rule]]\naction = 'deny'\nports = [0]\n[[rule]]\naction = 'allow'\nhost = ['a']\n"


@pytest.mark.parametrize(
    "words", [("dev", "--memory", "--port", "0"), ("egress", "check", "http://1.1.1.1/")]
)
def test_a_wrong_policy_stops_the_start_and_every_entry_that_is_wrong_is_named(
    tmp_path: Path, words: tuple[str, ...]
):
    (tmp_path / "wrong.toml").write_text(WRONG)

    ended = waypost(*words, "--egress-policy", "wrong.toml", cwd=tmp_path)

    assert ended.returncode == 2
    assert "egress_policy wrong.toml: rule 1: ports = 0 is not within 1 to 65535" in ended.stderr
    assert "rule 2: there is no key host; is hosts meant?" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


def test_a_server_refuses_by_its_policy_file(tmp_path: Path):
    (tmp_path / "policy.toml").write_text(POLICY)
    words = ("dev", "--memory", "--port", "0", "--egress-policy", "policy.toml")

    with running(*words, cwd=tmp_path) as server:
        status, body = server.call("POST", "/v2/publish/http://a.evil.example/", body=b"x")

    assert status == 400
    assert b"egress policy: rule 3 denies this destination" in body
