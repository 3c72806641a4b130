"""A running Waypost on each engine, one receiver and the clients of both SDKs, for all tests of
this folder."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from qstash import AsyncQStash, QStash

from tests.compat import node
from tests.support.databases import Databases
from tests.support.lacking import LACKING
from tests.support.postgres import SHIPPED
from tests.support.program import DEV_TOKEN, Server, running
from tests.support.receiver import Receiver
from waypost.domain.dev_users import DEV_USERS

LLM_KEY = "sk-operator"


@pytest.fixture(scope="session", params=["sqlite", SHIPPED])
def database(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    databases: Callable[[str], Databases],
) -> Iterator[str]:
    """Where the program keeps what it is given: every test is run with both engines."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('database') / 'compat.db'}"
        return
    with databases(request.param).lending() as lend, asyncio.Runner() as runner:
        yield runner.run(lend())


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory, receiver: Receiver, database: str
) -> Iterator[Server]:
    """The real program on a port of its own; `api/llm` is the receiver's `/v1`."""
    cwd = tmp_path_factory.mktemp("waypost")
    words = ["--database", database, "--llm-base-url", receiver.url + "/v1"]
    environ = {"WAYPOST_LLM_API_KEY": LLM_KEY}
    with running("dev", "--port", "0", *words, cwd=cwd, environ=environ) as server:
        server.until("running at .*\n")
        yield server


@pytest.fixture(scope="session")
def receiver(database: str) -> Iterator[Receiver]:
    """One for each engine: the paths that tests publish to are the same."""
    with Receiver() as receiver:
        yield receiver


class Blocking:
    """The asyncio client, called as if it were the other: a call is run to its end."""

    def __init__(self, target: object, runner: asyncio.Runner) -> None:
        self._target = target
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not inspect.iscoroutinefunction(found):
            return Blocking(found, self._runner)
        return lambda *args, **kwargs: self._runner.run(found(*args, **kwargs))


@pytest.fixture(scope="session", params=["sync", "asyncio"])
def clients(request: pytest.FixtureRequest, server: Server) -> Iterator[Callable[[str], Any]]:
    """The client of the Python SDK for a token; every test is run with both kinds.

    One client a token is kept, as programs do; to make one takes httpx 0.1 s.
    """
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        made: dict[str, Any] = {}

        def client(token: str) -> Any:
            if token not in made and request.param == "sync":
                made[token] = QStash(token, retry=False, base_url=server.url)
            elif token not in made:
                asking = AsyncQStash(token, retry=False, base_url=server.url)
                made[token] = Blocking(asking, runner)
            return made[token]

        yield client
        for one in made.values():
            http = one.http._client
            http.close() if request.param == "sync" else http.aclose()


@pytest.fixture
def client(clients: Callable[[str], Any]) -> Any:
    return clients(DEV_TOKEN)


@pytest.fixture
def kind(request: pytest.FixtureRequest, clients: object) -> str:
    """Which client it is, for names that must not be shared."""
    kind: str = request.node.callspec.params["clients"]
    return kind


@pytest.fixture(scope="session")
def _npm_sdk() -> None:
    lacking = node.lacking()
    if lacking:
        pytest.skip(f"{LACKING}{lacking}: the npm SDK is not tested")
    node.install()


@pytest.fixture
def javascript(_npm_sdk: None, server: Server) -> Callable[..., Any]:
    """Runs a program of `js/` against the server: what it said."""

    def run(program: str, given: object = None, *, token: str = DEV_TOKEN) -> Any:
        environ = {"QSTASH_URL": server.url, "QSTASH_TOKEN": token}
        said, _ = node.run(program, given, environ=environ)
        return said

    return run


@pytest.fixture(scope="session")
def js_receiver(_npm_sdk: None) -> Iterator[tuple[str, node.Listening]]:
    """A destination on node, its URL and what it says."""
    user = DEV_USERS[0]
    environ = {
        "QSTASH_CURRENT_SIGNING_KEY": user.current,
        "QSTASH_NEXT_SIGNING_KEY": user.next,
    }
    with node.listening("receiver.mjs", environ=environ) as heard:
        yield heard.next()["url"], heard
