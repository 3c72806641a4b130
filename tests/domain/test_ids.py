"""Claims about ids: their order, their range, and the spellings that clients know."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.domain.dev_users import DEV_USERS
from waypost.domain.errors import NotFound
from waypost.domain.ids import (
    api_token,
    created_ms_of,
    dead_letter_id,
    first_message_id,
    message_id,
    signing_key,
)

MOMENTS = st.integers(0, 2**48 - 1)
ENTROPY = st.integers(0, 2**80 - 1)
T0 = 1_721_068_851_000


@given(MOMENTS, ENTROPY, MOMENTS, ENTROPY)
def test_message_ids_sort_by_creation(a_ms, a, b_ms, b):
    assert (message_id(a_ms, a) < message_id(b_ms, b)) == ((a_ms, a) < (b_ms, b))


@given(MOMENTS, ENTROPY)
def test_a_message_id_tells_when_it_was_made(now_ms, entropy):
    assert created_ms_of(message_id(now_ms, entropy)) == now_ms


@given(MOMENTS, ENTROPY)
def test_a_message_id_is_safe_in_a_path(now_ms, entropy):  # W15
    assert re.fullmatch("msg_[1-9A-HJ-NP-Za-km-z]{22}", message_id(now_ms, entropy))


@given(ENTROPY)
def test_the_ids_of_a_millisecond_lie_between_two_first_ids(entropy):
    assert first_message_id(T0) <= message_id(T0, entropy) < first_message_id(T0 + 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "msg_",
        "msg_1",
        "scd_1CDEFmd4cNyKAPd1rEib84",
        "msg_0CDEFmd4cNyKAPd1rEib84",
        "msg_" + "z" * 22,
    ],
)
def test_a_text_that_was_never_an_id_names_no_message(text):
    with pytest.raises(NotFound, match=f"^message {text} not found$"):
        created_ms_of(text)


@given(st.binary(min_size=20, max_size=20), st.binary(min_size=20, max_size=20))
def test_secrets_are_as_many_as_their_entropy(a, b):
    assert re.fullmatch("sig_[1-9A-HJ-NP-Za-km-z]{28}", signing_key(a))
    assert (signing_key(a) == signing_key(b)) == (a == b)
    assert (signing_key(a) < signing_key(b)) == (a < b)


def test_a_dead_letter_id_is_a_moment_and_a_number():
    assert dead_letter_id(1725323658779, 0) == "1725323658779-0"


@pytest.mark.parametrize("user", DEV_USERS, ids=lambda user: user.name)
def test_the_dev_tokens_are_spelled_as_every_token_is(user):
    password = "defaultPassword" if user.name == "defaultUser" else "testPassword"
    assert api_token(user.name, password) == user.token
