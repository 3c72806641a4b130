"""Claims about built-in APIs."""

import pytest

from waypost.domain.apis import Api, authorized, check_api, destination_of, llm
from waypost.domain.errors import Invalid


@pytest.mark.parametrize("base_url", ["https://llm.example/v1", "https://llm.example/v1/"])
def test_the_llm_is_below_its_base(base_url):
    assert llm(base_url, "sk-1") == Api("https://llm.example/v1/chat/completions", "sk-1")
    assert llm("", "") is None


def test_the_key_is_not_in_what_is_printed_of_an_api():
    assert "sk-1" not in repr(llm("https://llm.example/v1", "sk-1"))


@pytest.mark.parametrize("name", ["Authorization", "authorization"])
def test_the_operators_key_takes_the_place_of_any_other(name):
    header = [("A", "1"), (name, "Bearer theirs"), ("B", "2")]

    assert authorized(header, "sk-1") == [
        ("A", "1"),
        ("B", "2"),
        ("Authorization", "Bearer sk-1"),
    ]
    assert authorized(header, "") == header


@pytest.mark.parametrize(
    ("name", "llm_known", "called_back", "says"),
    [
        ("email", True, True, "there is no API named api/email"),
        ("llm", False, True, "set llm_base_url"),
        ("llm", True, False, "Upstash-Callback: "),
    ],
)
def test_what_cannot_be_published_to_an_api_is_said(name, llm_known, called_back, says):
    with pytest.raises(Invalid, match=says):
        check_api(name, llm_known=llm_known, called_back=called_back)


def test_an_api_is_written_as_its_destination():
    check_api("llm", llm_known=True, called_back=True)
    assert destination_of("llm") == "api/llm"
