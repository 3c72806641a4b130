"""The built-in API `api/llm`, with a server behind it that speaks OpenAI's API (D9)."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest_asyncio
from msgspec import structs

from tests.support.application import (
    SECOND,
    SETTINGS,
    Application,
    Receiver,
    person,
    receiving,
    serving,
)
from tests.support.llm_server import COMPLETION, KEY, LlmServer, chunks, llm_server

QUESTION = b'{ "model": "gpt-test", "messages": [{"role": "user", "content": "Hello?"}] }'
STREAMED = QUESTION.replace(b"{ ", b'{ "stream": true, ')


@pytest_asyncio.fixture
async def llm() -> AsyncIterator[LlmServer]:
    async with llm_server() as llm:
        yield llm


@pytest_asyncio.fixture
async def told() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@asynccontextmanager
async def asking(llm: LlmServer, *, key: str = KEY, **more: Any) -> AsyncIterator[Application]:
    settings = structs.replace(SETTINGS, llm_base_url=llm.url, llm_api_key=key, **more)
    async with serving(settings) as server:
        yield server


async def answer(told: Receiver, number: int = 1) -> dict[str, Any]:
    """What the `number`-th callback says."""
    found: dict[str, Any] = json.loads((await told.first(number))[-1].body)
    return found


async def test_the_answer_of_the_model_comes_as_a_callback(llm: LlmServer, told: Receiver) -> None:
    """W32, W195: the question arrives byte for byte, with the operator's key and unsigned."""
    async with asking(llm) as server:
        message_id = await server.accepted(
            "api/llm",
            header={"Upstash-Callback": told.url, "Content-Type": "application/json"},
            body=QUESTION,
        )
        said = await answer(told)

        [asked] = llm.asked
        assert asked.target == "/v1/chat/completions"
        assert asked.body == QUESTION
        assert asked.header["authorization"] == f"Bearer {KEY}"
        assert asked.header["content-type"] == "application/json"
        assert asked.header["upstash-message-id"] == message_id
        assert "upstash-signature" not in asked.header
        assert (said["status"], said["url"], said["method"]) == (200, "api/llm", "POST")
        assert json.loads(base64.b64decode(said["body"])) == COMPLETION
        assert base64.b64decode(said["sourceBody"]) == QUESTION
        assert (await told.only()).header["Upstash-Signature"]
        await server.logged(message_id, "DELIVERED")


async def test_a_streamed_answer_is_told_when_it_is_whole(llm: LlmServer, told: Receiver) -> None:
    """W32: the events as they came."""
    async with asking(llm) as server:
        await server.accepted("api/llm", header={"Upstash-Callback": told.url}, body=STREAMED)

        said = await answer(told)

        assert said["header"]["Content-Type"] == ["text/event-stream"]
        assert base64.b64decode(said["body"]) == chunks()


async def test_a_streamed_answer_is_read_up_to_the_cap(llm: LlmServer, told: Receiver) -> None:
    async with asking(llm, response_bytes_max=100) as server:
        message_id = await server.accepted(
            "api/llm", header={"Upstash-Callback": told.url}, body=STREAMED
        )

        said = await answer(told)

        assert base64.b64decode(said["body"]) == chunks()[:100]
        await server.logged(message_id, "DELIVERED")


async def test_a_message_to_the_model_reads_as_one_and_shows_no_key(
    llm: LlmServer, told: Receiver
) -> None:
    """W94: D9; neither the key nor the address is kept or shown."""
    async with asking(llm) as server:
        message_id = await server.accepted(
            "api/llm?upstash-method=PUT&left=over",
            header={"Upstash-Callback": told.url, "Upstash-Forward-X-Own": "1"},
            body=QUESTION,
        )
        await server.logged(message_id, "DELIVERED")
        await told.only()

        shown = await server.message(message_id)

        assert (shown["url"], shown["api"], shown["method"]) == ("api/llm", "llm", "POST")
        assert shown["header"] == {"X-Own": ["1"]}
        everything = json.dumps([shown, await server.log()]) + (await told.only()).body.decode()
        assert KEY not in everything
        assert llm.url not in everything


async def test_it_can_be_enqueued_and_the_queue_waits_for_the_answer(
    llm: LlmServer, told: Receiver
) -> None:
    """W32, W79."""
    told.hold()
    async with asking(llm) as server:
        header = {"Upstash-Callback": told.url}
        ids = []
        for _ in range(2):
            reply = await server.ask(
                "POST", "/v2/enqueue/questions/api/llm", header=header, body=QUESTION
            )
            assert reply.status == 200
            ids.append(reply.json["messageId"])
        await server.logged(ids[0], "DELIVERED")
        await told.only()
        await server.logged(await server.accepted(), "DELIVERED")
        assert await server.states(ids[1]) == ["CREATED"]
        assert (await server.message(ids[1]))["queueName"] == "questions"

        told.let_go()

        await server.logged(ids[1], "DELIVERED")
        assert len(llm.asked) == 2


async def test_a_model_that_is_busy_says_when_to_come_back(llm: LlmServer, told: Receiver) -> None:
    """W193, W196: by OpenAI's fields, and each attempt is told of."""
    llm.refusals = [(429, {"x-ratelimit-reset-requests": "2s"}), (500, {})]
    async with asking(llm) as server:
        message_id = await server.accepted(
            "api/llm",
            header={"Upstash-Callback": told.url, "Upstash-Retry-Delay": "1000"},
            body=QUESTION,
        )
        await server.logged(message_id, "RETRY")
        await told.first(1)
        server.clock.advance(2 * SECOND - 1)
        await server.logged(await server.accepted(), "DELIVERED")
        assert len(llm.asked) == 1
        server.clock.advance(1)
        await server.logged(message_id, "RETRY", times=2)
        await told.first(2)
        server.clock.advance(SECOND)
        await server.logged(message_id, "DELIVERED")

        assert [(await answer(told, number))["status"] for number in (1, 2, 3)] == [429, 500, 200]


async def test_a_wrong_key_of_the_operators_is_told_as_any_failure(
    llm: LlmServer, told: Receiver
) -> None:
    """W196, W197."""
    async with asking(llm, key="sk-wrong") as server:
        message_id = await server.accepted(
            "api/llm",
            header={
                "Upstash-Callback": told.url,
                "Upstash-Retries": "0",
                "Upstash-Forward-Authorization": f"Bearer {KEY}",
            },
            body=QUESTION,
        )

        said = await answer(told)
        dead = await server.dead_letter(message_id)

        assert said["status"] == 401
        assert b"invalid_api_key" in base64.b64decode(said["body"])
        assert (dead["api"], dead["url"]) == ("llm", "api/llm")
        assert "sk-wrong" not in json.dumps([said, dead])


async def test_without_a_key_of_the_operators_the_publishers_own_counts(
    llm: LlmServer, told: Receiver
) -> None:
    async with asking(llm, key="") as server:
        await server.accepted(
            "api/llm",
            header={
                "Upstash-Callback": told.url,
                "Upstash-Forward-Authorization": f"Bearer {KEY}",
            },
            body=QUESTION,
        )

        assert (await answer(told))["status"] == 200


async def test_a_callback_is_required(llm: LlmServer) -> None:
    """W32: the answer would go nowhere."""
    async with asking(llm) as server:
        for header in ({}, {"Upstash-Failure-Callback": "https://example.com/"}):
            reply = await server.publish("api/llm", header=header)
            assert reply.status == 400
            assert reply.json["error"].startswith("Upstash-Callback: ")
        assert await server.log() == []


async def test_what_is_not_configured_is_refused_and_names_the_setting(
    server: Application, told: Receiver
) -> None:
    """W32, W230: also other names."""
    for destination in ("api/llm", "api/email", "api/llm2"):
        reply = await server.publish(destination, header={"Upstash-Callback": told.url})
        assert reply.status == 400
        assert "llm_base_url" in reply.json["error"]
    assert await server.log() == []


async def test_the_egress_policy_does_not_apply_to_this_one_address(
    tmp_path: Path, told: Receiver
) -> None:
    """D9: what an operator has set is reached, and by nobody under another name."""
    async with llm_server("127.0.0.2") as llm:
        settings = structs.replace(
            SETTINGS,
            database=f"sqlite:///{tmp_path / 'llm.db'}",
            egress_allow=("127.0.0.1/32",),
            llm_base_url=llm.url,
            llm_api_key=KEY,
        )
        token = await person(settings, "acme")
        async with serving(settings, dev=False, token=token) as server:
            header = {"Upstash-Callback": told.url}
            for destination in (llm.url + "/chat/completions", told.url):
                reply = await server.publish(
                    destination, header={"Upstash-Callback": llm.url}, body=QUESTION
                )
                assert reply.status == 400
                assert "egress policy" in reply.json["error"]

            await server.accepted("api/llm", header=header, body=QUESTION)

            assert (await answer(told))["status"] == 200
            assert len(llm.asked) == 1
