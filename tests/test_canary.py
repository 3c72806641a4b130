"""No secret gets into a log, an error or a metric (D33).

A real server, at log level debug, is given secrets in every place that takes
one: tokens, bodies, forwarded fields, signing keys, and the userinfo and query
of URLs.  It is led through success, failure, retries, refusals, bad input and
faults of its own.  Whatever it says is searched for each of them, but for the
answers whose purpose is to show a message.
"""

import asyncio
import base64
import json
import secrets
import ssl
import sys
from pathlib import Path

import pytest
import trustme

from tests.support.dns_server import dns_server
from tests.support.program import Server, eventually, running, waypost
from tests.support.raw_http import exchange
from tests.support.receiver import Receiver, Reply
from tests.support.rude_server import answering_always, rude_server
from waypost.cli.faults import TRY_AGAIN
from waypost.domain.dev_users import DEV_USERS

DATABASE = "--database=sqlite:///waypost.db"

PLANTED = """
import os
from waypost.services.publishing import Publishing
from waypost.wire.sender import HttpSender

publish, send, init = Publishing.publish, HttpSender.send, HttpSender.__init__

async def faulty_publish(self, tenant, incoming):
    if incoming.destination.endswith(b"/fault"):
        url = (incoming.destination + b"?" + incoming.query).decode()
        raise RuntimeError(f"cannot publish to {url} for {dict(incoming.header)[b'authorization']}")
    return await publish(self, tenant, incoming)

async def faulty_send(self, request):
    if "/deadly" in request.url:
        raise RuntimeError(f"cannot send to {request.url!r}")
    return await send(self, request)

def asking(self, **given):
    init(self, **given | {"nameservers": [os.environ["NAMESERVER"]]})

Publishing.publish, HttpSender.send, HttpSender.__init__ = faulty_publish, faulty_send, asking

from waypost.cli.main import main
main()
"""
"""Waypost, with two faults in it that speak of what they were given, and a name server."""


class Canaries:
    """Secrets, by the place that each is in."""

    def __init__(self) -> None:
        self._places: dict[str, str] = {}

    def new(self, place: str) -> str:
        """A new secret, in letters that nothing else is written in."""
        return self.know(place, "canary" + secrets.token_hex(10))

    def know(self, place: str, secret: str) -> str:
        self._places[secret] = place
        return secret

    def found_in(self, text: bytes) -> set[str]:
        """The places of the secrets that a text holds, as they are, cut short or in base64."""
        return {
            place
            for secret, place in self._places.items()
            if secret[:20].encode() in text or base64.b64encode(secret.encode())[:-4] in text
        }


class Driver:
    """Asks a server, and keeps every answer that is not meant to show a message."""

    def __init__(self, server: Server, canaries: Canaries, token: str) -> None:
        self.server = server
        self.canaries = canaries
        self.token = token
        self.answers: list[tuple[str, bytes]] = []

    def url(self, base: str) -> str:
        """A URL with secrets in its userinfo and its query."""
        scheme, _, rest = base.partition("://")
        user, password, value = map(self.canaries.new, ("user", "password", "query of a URL"))
        return f"{scheme}://{user}:{password}@{rest}?key={value}"

    def ask(
        self, method: str, path: str, *, status: int, token: str = "", body: str = "", **header: str
    ) -> bytes:
        """Ask what must be answered with this status."""
        got, answer = self.server.call(
            method, path, token=token or self.token, body=body.encode(), **header
        )
        self.answers.append((f"{method} {path}", answer))
        assert got == status, (method, path, header, answer)
        return answer

    def publish(self, base: str, *, status: int = 200, **header: str) -> bytes:
        """Publish secrets to a URL with secrets."""
        new = self.canaries.new
        header = {
            "Upstash_Forward_Authorization": f"Bearer {new('forwarded authorization')}",
            "Upstash_Forward_X_Secret": new("forwarded field"),
            **header,
        }
        path = "/v2/publish/" + self.url(base)
        return self.ask("POST", path, status=status, body=new("body"), **header)

    def ask_the_llm(self, callback: str) -> None:
        """Ask with a key that the provider does not take."""
        self.ask(
            "POST",
            "/v2/publish/api/llm",
            status=200,
            body=self.canaries.new("body"),
            Upstash_Callback=callback,
            Upstash_Retries="0",
        )

    def until_failed(self, message_id: str) -> None:
        """Wait until a message has failed; what is answered here is meant to show it."""
        path = f"/v2/events?messageId={message_id}&state=FAILED"
        eventually(lambda: b"FAILED" in self.server.call("GET", path, token=self.token)[1])

    def raw(self, *pieces: bytes) -> None:
        """Say what no client would; all that is answered is kept."""
        port = int(self.server.url.rpartition(":")[2])
        [answer] = asyncio.run(exchange(port, *pieces))
        assert answer.status >= 400
        self.answers.append((repr(pieces), repr(answer).encode()))


def deliver(driver: Driver, receiver: Receiver, elsewhere: list[str]) -> None:
    """Success, a retry, and every kind of failure, with secrets in what is answered too."""
    secret = driver.canaries.new("body of an answer").encode()
    header = {"X-Secret": driver.canaries.new("field of an answer")}
    well = receiver.answers("/well", Reply(200, secret, header))
    again = receiver.answers("/again", Reply(500, secret, header), Reply(200, secret, header))
    never = receiver.answers("/never", Reply(500, secret, header))
    asked = Reply(489, secret, header | {"Upstash-NonRetryable-Error": "true"})
    refusing = receiver.answers("/refusing", asked)

    told = receiver.answers("/told", Reply(500, secret, header), Reply(200, secret, header))

    driver.publish(
        well,
        Upstash_Redact_Fields="body, headers",
        Upstash_Callback=driver.url(told),
        Upstash_Callback_Retry_Delay="1",
        Upstash_Callback_Forward_X_Secret=driver.canaries.new("field forwarded to a callback"),
    )
    driver.publish(again, Upstash_Retry_Delay="1")
    receiver.wait("/well")
    receiver.wait("/again", 2)
    receiver.wait("/told", 2)
    receiver.answers("/v1/chat/completions", Reply(401, secret, header))
    driver.ask_the_llm(driver.url(told))
    receiver.wait("/told", 3)
    failing = [
        never,
        refusing,
        well.replace("http:", "https:"),
        "http://127.0.0.1:1/closed",
        "http://nobody.example/",
        *elsewhere,
    ]
    for url in failing:
        message_id = json.loads(driver.publish(url, Upstash_Retries="0"))["messageId"]
        driver.until_failed(message_id)


def be_wrong(driver: Driver) -> None:
    """Bad input of every kind, and questions that have no answer."""
    new = driver.canaries.new
    url = "http://127.0.0.1:9/hook"
    for base, wrong in (
        ("http://169.254.169.254/latest", {}),
        ("http://127.0.0.1:nothing/", {}),
        ("http://127.0.0.1:9\\/", {}),
        ("ftp://127.0.0.1/", {}),
        (url, {"Upstash_Callback": driver.url("http://169.254.169.254/latest")}),
        (url, {"Upstash_Failure_Callback": driver.url("ftp://127.0.0.1/")}),
        (url, {"Upstash_Callback": url, "Upstash_Callback_Forward_A": new("field") + "\x7f"}),
        (url, {"Upstash_Redact_Fields": new("redaction")}),
        (url, {"Upstash_Delay": "soon"}),
        (url, {"Upstash_Retries": "1000000"}),
        (url, {"Upstash_Retry_Delay": "nonsense("}),
        (url, {"Upstash_Forward_A(B": new("forwarded field")}),
        (url, {"Upstash_Forward_A": new("forwarded field") + "a" * 9_000}),
        (url, {"Upstash_Forward_A": new("forwarded field") + "\x7f"}),
        (url, {f"Upstash_Forward_A{n}": new("forwarded field") for n in range(120)}),
    ):
        driver.publish(base, status=400, **wrong)
    driver.ask("POST", f"/v2/publish/{url}", status=413, body=new("large body") * 5_000)
    for method, path, status in (
        ("GET", f"/v2/none?a={new('query')}", 404),
        ("PUT", f"/v2/publish/{driver.url(url)}", 405),
        ("POST", f"/v2/schedules/{driver.url(url)}", 400),
        ("POST", f"/v2/publish/{driver.url(url).replace('//', '/', 1)}", 400),
        ("GET", f"/v2/events?count=x&a={new('query')}", 400),
        ("GET", f"/v2/messages/msg_x?a={new('query')}", 404),
    ):
        driver.ask(method, path, status=status, body=new("body"))
    for status in [401] * 20 + [429] * 3:
        wrong_token = new("wrong token")
        path = f"/v2/publish/{driver.url(url)}&qstash_token={wrong_token}"
        driver.ask("POST", path, status=status, token=wrong_token, body=new("body"))

    line = f"POST /v2/publish/{driver.url(url)} HTTP/1.1\r\nHost: localhost\r\n".encode()
    for rest in (
        b"Authorization Bearer %b\r\n\r\n",
        b"Authorization: Bearer \x00%b\r\n\r\n",
        b"Host: %b\r\n\r\n",
        b"Content-Length: %b\r\n\r\n",
        b"Transfer-Encoding: %b\r\n\r\n",
        b"X: %b" + b"a" * 70_000 + b"\r\n\r\n",
    ):
        driver.raw(line, rest % new("malformed request").encode())
    token = f"Authorization: Bearer {driver.token}\r\n".encode()
    chunk = b"Transfer-Encoding: chunked\r\n\r\n%b\r\n" % new("malformed body").encode()
    driver.raw(line, token, chunk)
    driver.raw(new("malformed request").encode() + b" / HTTP/1.1\r\n\r\n")


def make_tenant(cwd: Path) -> tuple[str, list[str]]:
    """A tenant of a database there: its token and its keys."""
    made = waypost("tenant", "create", "acme", DATABASE, cwd=cwd).stdout
    token = waypost("token", "create", "acme", DATABASE, cwd=cwd).stdout.strip()
    return token, [line.partition("=")[2] for line in made.splitlines()]


def drive(
    command: str,
    *flags: str,
    canaries: Canaries,
    token: str,
    elsewhere: list[str],
    nameserver: str,
    cwd: Path,
) -> tuple[Driver, bytes]:
    """Run a server, lead it through everything and kill it; all answers, and its stdout."""
    with (
        Receiver() as receiver,
        running(
            *(command, "--port", "0"),
            *flags,
            *("--llm-base-url", f"{receiver.url}/v1"),
            cwd=cwd,
            environ={"NAMESERVER": nameserver, "WAYPOST_LLM_API_KEY": canaries.new("llm key")},
            program=(sys.executable, "-c", PLANTED),
        ) as server,
    ):
        driver = Driver(server, canaries, token)
        deliver(driver, receiver, elsewhere)
        be_wrong(driver)
        fault = driver.publish("http://127.0.0.1:9/fault", status=500)
        assert b"see log entry" in fault
        for path in ("/metrics", "/readyz", "/healthz"):
            driver.ask("GET", f"{path}?a={canaries.new('query')}", status=200)
        driver.publish("http://127.0.0.1:9/deadly")
        assert server.wait() == 1
        assert server.process.stdout is not None
        return driver, server.said.encode() + server.process.stdout.read()


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize("command", ["dev", "serve"])
async def test_no_secret_gets_into_a_log_an_error_or_a_metric(
    command: str, log_format: str, tmp_path: Path
) -> None:
    """D33; T13."""
    canaries = Canaries()
    if command == "dev":
        user = DEV_USERS[0]
        token, keys = user.token, [user.current, user.next]
        flags = ["--memory"]
    else:
        token, keys = await asyncio.to_thread(make_tenant, tmp_path)
        flags = [DATABASE, "--egress-allow", "127.0.0.0/8"]

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    garbage = canaries.new("malformed answer").encode()
    async with (
        dns_server({"evil.example": ["169.254.169.254"]}) as names,
        rude_server(answering_always(b"HTTP/1.1 200 OK\r\n\r\n"), tls=context) as tls,
        rude_server(answering_always(b"%b\r\n\r\n" % garbage)) as no_http,
        rude_server(answering_always(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % garbage)) as no_field,
    ):
        driver, stdout = await asyncio.to_thread(
            drive,
            command,
            *flags,
            *("--log-level", "debug", "--log-format", log_format),
            *("--body-bytes-max", "50KB"),
            nameserver=names.address,
            canaries=canaries,
            token=token,
            elsewhere=["http://evil.example/", tls.url(), no_http.url(), no_field.url()],
            cwd=tmp_path,
        )
    stderr = (tmp_path / "stderr.log").read_bytes()

    assert all(key.startswith("sig_") for key in keys)
    assert stderr.count(b"message_failed") >= 9
    assert b"request_fault" in stderr
    assert b"loop_fault" in stderr
    if command == "dev":  # stdout is where it tells its token and keys
        assert canaries.found_in(stdout) == set()
    canaries.know("token", token)
    for key in keys:
        canaries.know("signing key", key)
    if command == "serve":
        assert canaries.found_in(stdout) == set()
    assert canaries.found_in(stderr) == set()
    for asked, answer in driver.answers:
        assert canaries.found_in(answer) == set(), asked


def test_a_setting_that_is_refused_does_not_tell_a_password(tmp_path: Path) -> None:
    """D33: nor does a start that fails."""
    canaries = Canaries()
    database = f"postgres://{canaries.new('user')}:{canaries.new('password')}@db.example/waypost"

    ended = waypost("serve", "--database", database, cwd=tmp_path)

    assert ended.returncode == TRY_AGAIN
    assert canaries.found_in((ended.stdout + ended.stderr).encode()) == set()
