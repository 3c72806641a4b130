"""Name look-ups: shared, bounded, in time; and an address is judged when it is connected (S2)."""

import asyncio
import itertools
from ipaddress import ip_network

import pytest

from tests.support.dns_server import dns_server
from tests.support.rude_server import answering_always, free_port, rude_server
from waypost.wire import names as names_module
from waypost.wire.egress import Egress
from waypost.wire.names import NameFault, Names

OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"


async def test_a_name_is_looked_up_once_for_all_who_wait_and_kept():
    async with (
        dns_server({"a.example": ["192.0.2.1"]}) as server,
        Names(nameservers=[server.address]) as names,
    ):
        assert names.known("a.example") is None
        found = await asyncio.gather(*[names.find("a.example") for _ in range(100)])
        assert set(found) == {("192.0.2.1",)}
        assert names.known("a.example") == ("192.0.2.1",)
    assert sorted(server.asked) == [("a.example", "A"), ("a.example", "AAAA")]


async def test_ipv4_comes_first_and_each_address_once():
    addresses = ["2001:db8::1", "192.0.2.2", "2001:db8::2", "192.0.2.1", "192.0.2.2"]
    async with (
        dns_server({"a.example": addresses}) as server,
        Names(nameservers=[server.address]) as names,
    ):
        found = await names.find("a.example")
    assert isinstance(found, tuple)
    assert set(found[:2]) == {"192.0.2.1", "192.0.2.2"}
    assert set(found[2:]) == {"2001:db8::1", "2001:db8::2"}


@pytest.mark.parametrize(("ttl_s", "kept_s"), [(0, 1), (30, 30), (86_400, 60)])
async def test_an_answer_is_kept_as_long_as_its_record_says_within_bounds(
    monkeypatch, ttl_s, kept_s
):
    async with (
        dns_server({"a.example": ["192.0.2.1"]}, ttl_s=ttl_s) as server,
        Names(nameservers=[server.address]) as names,
    ):
        await names.find("a.example")
        looked_up_s = names._loop.time()
        monkeypatch.setattr(names, "_loop", FrozenLoop(looked_up_s + kept_s - 0.5))
        assert names.known("a.example") is not None
        monkeypatch.setattr(names, "_loop", FrozenLoop(looked_up_s + kept_s))
        assert names.known("a.example") is None


class FrozenLoop:
    def __init__(self, time_s: float) -> None:
        self._time_s = time_s

    def time(self) -> float:
        return self._time_s


async def test_no_more_answers_are_kept_than_allowed(monkeypatch):
    monkeypatch.setattr(names_module, "KEPT_MAX", 3)
    hosts = [f"{letter}.example" for letter in "abcde"]
    async with (
        dns_server({host: ["192.0.2.1"] for host in hosts}) as server,
        Names(nameservers=[server.address]) as names,
    ):
        for host in hosts:
            await names.find(host)
        kept = [names.known(host) is not None for host in hosts]
    assert kept == [False, False, True, True, True]


async def test_a_name_that_does_not_exist_is_a_fault_that_says_so(a_sender, a_request):
    async with dns_server({}) as server:
        sender = await a_sender(nameservers=[server.address])
        outcome = await sender.send(a_request("http://user:secret@nope.example/?token=secret"))
    assert outcome.error == "name not found: Domain name not found"
    assert outcome.host_down
    assert not outcome.refused


async def test_a_look_up_that_is_not_answered_ends_at_its_deadline():
    async with (
        dns_server({}, silent=["silent.example"]) as server,
        Names(nameservers=[server.address], look_up_ms_max=100) as names,
    ):
        fault = await names.find("silent.example")
    assert fault == NameFault("name not found: no answer within 0.1 s")


async def test_the_deadline_of_the_exchange_covers_the_look_up(a_sender, a_request):
    async with dns_server({}, silent=["silent.example"]) as server:
        sender = await a_sender(nameservers=[server.address])
        outcome = await sender.send(a_request("http://silent.example/", timeout_ms=100))
    assert outcome.error == "timed out: name look-up"
    assert outcome.host_down


async def test_look_ups_under_way_are_bounded_and_the_rest_wait_in_line():
    silent = [f"silent{number}.example" for number in range(3)]
    async with (
        dns_server({"a.example": ["192.0.2.1"]}, silent=silent) as server,
        Names(nameservers=[server.address], look_ups_max=3, look_up_ms_max=200) as names,
    ):
        waiting = [asyncio.ensure_future(names.find(host)) for host in silent]
        await asyncio.sleep(0)
        last = await names.find("a.example")
        await asyncio.gather(*waiting)
        asked = {name for name, _ in server.asked}
    assert last == NameFault("name not found: no answer within 0.2 s")
    assert asked == set(silent)


async def test_silent_names_do_not_hold_up_others_below_the_bound():
    silent = [f"silent{number}.example" for number in range(100)]
    async with (
        dns_server({"a.example": ["192.0.2.1"]}, silent=silent) as server,
        Names(nameservers=[server.address], look_up_ms_max=2_000) as names,
    ):
        waiting = [asyncio.ensure_future(names.find(host)) for host in silent]
        await asyncio.sleep(0)
        assert await names.find("a.example") == ("192.0.2.1",)
        assert not any(task.done() for task in waiting)
    assert all(isinstance(fault, NameFault) for fault in await asyncio.gather(*waiting))


async def test_one_who_stops_waiting_does_not_stop_the_look_up_for_others():
    async with (
        dns_server({"a.example": ["192.0.2.1"]}) as server,
        Names(nameservers=[server.address]) as names,
    ):
        first = asyncio.ensure_future(names.find("a.example"))
        second = asyncio.ensure_future(names.find("a.example"))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == ("192.0.2.1",)
        assert first.cancelled() or first.cancelling()


async def test_the_hosts_file_is_honoured(a_sender, a_request):
    async with dns_server({}) as names, rude_server(answering_always(OK)) as server:
        sender = await a_sender(nameservers=[names.address])
        outcome = await sender.send(a_request(server.url(host="localhost")))
    assert outcome.delivered
    assert names.asked == []


async def test_the_next_address_is_tried_when_one_is_refused(a_sender, a_request):
    # ::1 has no listener at this port; names prefer IPv4, so the good one is last.
    async with (
        rude_server(answering_always(OK), host="::1") as server,
        dns_server({"a.example": ["127.0.0.1", "::1"]}) as names,
    ):
        sender = await a_sender(nameservers=[names.address])
        outcome = await sender.send(a_request(server.url(host="a.example")))
    assert outcome.delivered


async def test_when_all_addresses_fail_the_last_fault_is_told(a_sender, a_request):
    async with dns_server({"a.example": ["127.0.0.1", "127.0.0.2"]}) as names:
        sender = await a_sender(nameservers=[names.address])
        outcome = await sender.send(a_request(f"http://a.example:{free_port()}/"))
    assert outcome.error == "cannot connect: Connection refused"
    assert outcome.host_down


async def test_of_several_addresses_only_those_that_may_be_reached_are_tried(a_sender, a_request):
    async with (
        rude_server(answering_always(OK)) as server,
        dns_server({"a.example": ["10.0.0.1", "127.0.0.1"]}) as names,
    ):
        sender = await a_sender(nameservers=[names.address])
        outcome = await sender.send(a_request(server.url(host="a.example")))
    assert outcome.delivered


async def test_a_name_that_is_rebound_never_reaches_a_forbidden_address(
    a_sender, a_request, monkeypatch
):
    monkeypatch.setattr(names_module, "KEPT_MS_MIN", 0)
    flip = itertools.cycle([["127.0.0.2"], ["127.0.0.1"]])
    async with (
        rude_server(answering_always(OK)) as inside,
        dns_server({"flip.example": lambda: next(flip)}, ttl_s=0) as names,
    ):
        port = inside.port
        egress = Egress(allow=[ip_network("127.0.0.2/32")])
        sender = await a_sender(egress=egress, nameservers=[names.address])
        outcomes = [
            await sender.send(a_request(f"http://flip.example:{port}/")) for _ in range(200)
        ]
    refused = [outcome for outcome in outcomes if outcome.refused]
    tried = [outcome for outcome in outcomes if not outcome.refused]
    assert refused
    assert tried
    assert all(outcome.error == "cannot connect: Connection refused" for outcome in tried)
    assert inside.connections == 0
