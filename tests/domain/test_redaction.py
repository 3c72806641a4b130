"""Claims about redaction: what is asked for, what it hides, and how that reads."""

from hashlib import sha256

import pytest

from waypost.domain.errors import Invalid
from waypost.domain.redaction import (
    Redaction,
    of_callback,
    parse_redaction,
    shown_body,
    shown_header,
)


def _hidden(secret: bytes) -> str:
    return f"REDACTED:{sha256(secret).hexdigest()}"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("body", Redaction(body=True)),
        ("Body", Redaction(body=True)),
        ("header", Redaction(every_field=True)),
        ("headers", Redaction(every_field=True)),
        ("header[Authorization]", Redaction(fields=["Authorization"])),
        ("headers[x-api-key]", Redaction(fields=["X-Api-Key"])),
        ("header[ A ]", Redaction(fields=["A"])),
        ("body,header", Redaction(body=True, every_field=True)),
        (
            "body, header[A] ,headers[B],header[a],",
            Redaction(body=True, fields=["A", "B"]),
        ),
        ("header,header[A]", Redaction(every_field=True, fields=["A"])),
    ],
)
def test_what_is_asked_for(text, read):
    """W69, W70, A12."""
    assert parse_redaction(text) == read


@pytest.mark.parametrize(
    "text",
    [
        ",", " , ", "url", "bodyy", "body header", "body;header", "true", "header[", "header[]",
        "header[a b]", "header[a]b", "header[é]", "header[a,b]", "body[a]", "header[[a]]", "*",
        "header[" + "a" * 300 + "]",
        ",".join(f"header[a{n}]" for n in range(101)),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(text):
    """A secret that is misspelled would be shown."""
    with pytest.raises(Invalid):
        parse_redaction(text)


def test_a_body_that_is_hidden_reads_as_its_hash():
    """W74."""
    assert shown_body(Redaction(body=True), b"\xffsecret") == _hidden(b"\xffsecret").encode()


@pytest.mark.parametrize("redaction", [None, Redaction(every_field=True)])
def test_a_body_that_is_not_hidden_is_shown(redaction):
    assert shown_body(redaction, b"plain") == b"plain"


def test_there_is_nothing_to_hide_of_no_body():
    assert shown_body(Redaction(body=True), b"") == b""


HEADER = {"Authorization": ["Bearer a", "\xc3\xa9"], "X": ["x"]}


def test_every_value_of_every_field_is_hidden_by_itself():
    """W69, W74: the hash is that of the bytes."""
    assert shown_header(Redaction(every_field=True), HEADER) == {
        "Authorization": [_hidden(b"Bearer a"), _hidden("é".encode())],
        "X": [_hidden(b"x")],
    }


def test_the_fields_that_are_named_are_hidden():
    """W70."""
    assert shown_header(Redaction(fields=["Authorization", "Other"]), HEADER) == {
        "Authorization": [_hidden(b"Bearer a"), _hidden("é".encode())],
        "X": ["x"],
    }


@pytest.mark.parametrize("redaction", [None, Redaction(body=True)])
def test_a_header_that_is_not_hidden_is_shown(redaction):
    assert shown_header(redaction, HEADER) == HEADER


def test_a_callback_hides_what_it_was_asked_to_and_all_that_tells_of_its_source():
    own = Redaction(fields=["A", "B"])

    assert of_callback(None, None) is None
    assert of_callback(own, None) == own
    assert of_callback(None, Redaction(fields=["B"])) == Redaction(body=True, fields=["B"])
    assert of_callback(own, Redaction(fields=["B", "C"])) == Redaction(
        body=True, fields=["B", "C", "A"]
    )
    assert of_callback(own, Redaction(every_field=True)) == Redaction(
        body=True, every_field=True, fields=["A", "B"]
    )
