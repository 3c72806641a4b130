"""The home of how ids and secrets are spelled.  Randomness comes in; nothing is rolled here.

| kind          | spelling                                                          |
| ------------- | ----------------------------------------------------------------- |
| message       | `msg_` + 22 base58 digits of (48 bits of milliseconds, 80 random) |
| URL group     | `tpc_`, the same                                                  |
| schedule      | `scd_`, the same, where its maker gives it no other               |
| dead letter   | `1725323658779-0`: the moment, and a number within it             |
| signing key   | `sig_` + 28 base58 digits of 160 random bits                      |
| signature     | `jwt_`, the same                                                  |
| API token     | base64 of `{"UserID":…,"Password":…}`, opaque to clients          |

The base58 digits are in the order of their bytes and the width is fixed, so
the order of texts is the order of numbers: message ids sort by creation, and
all ids of a span of time lie between two of them.
"""

import binascii
from typing import Final

import msgspec

from waypost.domain.errors import NotFound

_DIGITS: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_VALUE: Final = {digit: value for value, digit in enumerate(_DIGITS)}
_PAIRS: Final = [high + low for high in _DIGITS for low in _DIGITS]

_B2: Final = 58**2
_B4: Final = 58**4
_B10: Final = 58**10
_B20: Final = 58**20

MESSAGE_ENTROPY_BITS: Final = 80
_MESSAGE_PREFIX: Final = "msg_"
_MESSAGE_DIGITS: Final = 22  # 58**22 is 2**128.9, so 128 bits fit
_MESSAGE_CHARS: Final = len(_MESSAGE_PREFIX) + _MESSAGE_DIGITS

URL_GROUP_PREFIX: Final = "tpc_"
SCHEDULE_PREFIX: Final = "scd_"

TOKEN_ENTROPY_BYTES: Final = 20


def _ten_digits(number: int) -> str:
    # Four digits fit one machine word of CPython's integers (58**4 < 2**30),
    # which makes the inner divisions cheap.
    rest, low = divmod(number, _B4)
    high, middle = divmod(rest, _B4)
    return (
        _PAIRS[high]
        + _PAIRS[middle // _B2]
        + _PAIRS[middle % _B2]
        + _PAIRS[low // _B2]
        + _PAIRS[low % _B2]
    )


def message_id(now_ms: int, entropy: int) -> str:
    """Spell the id of a message made at `now_ms`; `entropy` is 80 random bits."""
    assert 0 <= now_ms < 1 << 48, now_ms
    assert 0 <= entropy < 1 << MESSAGE_ENTROPY_BITS, entropy

    high, low = divmod(now_ms << MESSAGE_ENTROPY_BITS | entropy, _B20)
    middle, low = divmod(low, _B10)
    return _MESSAGE_PREFIX + _PAIRS[high] + _ten_digits(middle) + _ten_digits(low)


def first_message_id(at_ms: int) -> str:
    """The least id a message made at `at_ms` can have: a bound for ranges over time."""
    return message_id(at_ms, 0)


def created_ms_of(message_id: str) -> int:
    """Read the moment a message was made from its id.

    Raises NotFound for a text that was never the id of a message.
    """
    number = 0
    if message_id.startswith(_MESSAGE_PREFIX) and len(message_id) == _MESSAGE_CHARS:
        for digit in message_id[len(_MESSAGE_PREFIX) :]:
            value = _VALUE.get(digit)
            if value is None:
                break
            number = number * 58 + value
        else:
            if number < 1 << 128:
                return number >> MESSAGE_ENTROPY_BITS
    raise NotFound(f"message {message_id} not found")


def url_group_id(now_ms: int, entropy: int) -> str:
    """Spell the id of a URL group made at `now_ms`; `entropy` is 80 random bits."""
    return URL_GROUP_PREFIX + message_id(now_ms, entropy)[len(_MESSAGE_PREFIX) :]


def schedule_id(now_ms: int, entropy: int) -> str:
    """Spell the id of a schedule made at `now_ms`; `entropy` is 80 random bits."""
    return SCHEDULE_PREFIX + message_id(now_ms, entropy)[len(_MESSAGE_PREFIX) :]


def dead_letter_id(now_ms: int, number: int) -> str:
    """Spell the id of the dead letter `number` of the millisecond `now_ms`."""
    return f"{now_ms}-{number}"


def token_text(prefix: str, entropy: bytes) -> str:
    """Spell 20 random bytes as `prefix` and 28 base58 digits."""
    assert len(entropy) == TOKEN_ENTROPY_BYTES, len(entropy)

    high, low = divmod(int.from_bytes(entropy), _B20)  # 160 bits: high is below 58**8
    middle, low = divmod(low, _B10)
    return prefix + _ten_digits(high)[2:] + _ten_digits(middle) + _ten_digits(low)


def signing_key(entropy: bytes) -> str:
    """Spell a signing key from 20 random bytes."""
    return token_text("sig_", entropy)


def api_token(user: str, password: str) -> str:
    """Spell the bearer token of a user, as the hosted service does."""
    text = msgspec.json.encode({"UserID": user, "Password": password})
    return binascii.b2a_base64(text, newline=False).decode("ascii")
