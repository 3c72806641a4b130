"""Chat completions with the SDK that still has them: npm's; PyPI's left them out with 3.0."""

import json

import pytest

from tests.compat.conftest import LLM_KEY
from tests.support.llm_server import COMPLETION, WORDS, chunks
from tests.support.receiver import Reply

MODEL = "/v1/chat/completions"
RATES = {
    f"x-ratelimit-{what}-{of}": value
    for what, value in (("limit", "60"), ("remaining", "0"), ("reset", "6ms"))
    for of in ("requests", "tokens")
}


def test_the_javascript_sdk_asks_and_is_answered(javascript, receiver):
    """W229: what it says to itself does not go out."""
    answer = json.dumps(COMPLETION).encode()
    receiver.answers(MODEL, Reply(200, answer, {"Content-Type": "application/json"}))
    before = len(receiver.got(MODEL))

    assert javascript("chat.mjs", {"stream": False}) == {"said": [COMPLETION, COMPLETION]}

    created, prompted = receiver.got(MODEL)[before:]
    assert created.header["authorization"] == f"Bearer {LLM_KEY}"
    assert json.loads(created.body) == {
        "model": "gpt-test",
        "stream": False,
        "messages": [{"role": "user", "content": "Hello?"}],
    }
    assert json.loads(prompted.body)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
    ]


def test_the_javascript_sdk_reads_a_stream(javascript, receiver):
    """W229."""
    receiver.answers(MODEL, Reply(200, chunks(), {"Content-Type": "text/event-stream"}))

    said = javascript("chat.mjs", {"stream": True})

    assert said == {"said": ["".join(WORDS)] * 2}


@pytest.mark.parametrize("stream", [False, True])
def test_the_javascript_sdk_hears_of_an_exceeded_rate(javascript, receiver, stream):
    """W229: with an error of its own for this."""
    receiver.answers(MODEL, Reply(429, b"{}", RATES))

    said = javascript("chat.mjs", {"stream": stream})

    assert said["name"] == "QstashChatRatelimitError"
    assert said["status"] == 429
    for value in ("60", "0", "6ms"):
        assert f'"{value}"' in said["message"]


def test_the_javascript_sdk_hears_what_the_model_refuses(javascript, receiver):
    """W229."""
    receiver.answers(MODEL, Reply(500, b'{"error": "overloaded"}'))

    said = javascript("chat.mjs", {"stream": False})

    assert (said["name"], said["status"]) == ("QstashError", 500)
    assert said["message"] == '{"error": "overloaded"}'
