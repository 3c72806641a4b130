"""Claims about signatures: the golden vector, PyJWT as oracle, the SDK's receiver as judge."""

import base64
import hashlib
import time

import jwt
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qstash import Receiver
from qstash.errors import SignatureError

from waypost.domain.signing import sign, token

KEY = "sig_561zQH6V9b96E63sS3b9wvGXosi7"
URL = "https://webhook.site/77ae8988-eecf-4a01-9a76-2a37212c75a8"
BODY = b'{"message":"hello world"}'
JTI = "jwt_6ckgA7RQnj6x3XMKSnfUb8atTsZP"
CLAIMS = {
    "aud": "",
    "body": "-W2NN1fvMhaq-XeOBIqq8IA8j7LJXqL8ZcSC1rhDMBU=",
    "exp": 1721069151,
    "iat": 1721068851,
    "iss": "Upstash",
    "jti": JTI,
    "nbf": 1721068851,
    "sub": URL,
}
T0 = 1_721_068_851_999


def _sign(**changed):
    return sign(**({"key": KEY, "url": URL, "body": BODY, "now_ms": T0, "jti": JTI} | changed))


def _claims(signature):
    return jwt.decode(signature, KEY, algorithms=["HS256"], options={"verify_signature": False})


def test_the_golden_vector_is_reproduced():  # W179
    signature = token(KEY, msgspec.json.encode(CLAIMS))
    assert signature.endswith(".ppulAF6fmnYfeVdR72HprfzLSIN_6KX65JOXwdxRMyk")
    assert signature == jwt.encode(CLAIMS, KEY, "HS256")


@given(
    st.binary(max_size=64),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40),
    st.integers(0, 2**42),
)
def test_a_signature_is_what_pyjwt_would_have_written(body, path, now_ms):
    url = f"https://example.com/{path}"
    iat = now_ms // 1000
    claims = CLAIMS | {
        "body": base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode(),
        "exp": iat + 300,
        "iat": iat,
        "nbf": 0,
        "sub": url,
    }
    assert _sign(body=body, url=url, now_ms=now_ms) == jwt.encode(claims, KEY, "HS256")


def test_the_subject_is_the_exact_url():  # W180
    url = 'http://example.com/a"b\\c?d=%20&e='
    assert _claims(_sign(url=url))["sub"] == url


def test_an_empty_body_has_a_hash_too():  # W181
    assert _claims(_sign(body=b""))["body"] == "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU="


def test_a_signature_lives_five_minutes_and_begins_in_the_past():  # W182
    claims = _claims(_sign())
    assert claims["iat"] == T0 // 1000
    assert claims["exp"] == claims["iat"] + 300
    assert claims["nbf"] == 0


@pytest.mark.parametrize("body", [b"", BODY, "größe 🚀".encode()])
def test_the_sdks_receiver_accepts_a_signature_with_either_key(body):
    signature = _sign(body=body, now_ms=int(time.time() * 1000))
    for receiver in (Receiver(KEY, "sig_other"), Receiver("sig_other", KEY)):
        receiver.verify(signature=signature, body=body.decode(), url=URL)


def test_the_sdks_receiver_refuses_another_body_url_key_or_time():
    now_ms = int(time.time() * 1000)
    good = {"signature": _sign(now_ms=now_ms), "body": BODY.decode(), "url": URL}
    for receiver, changed in (
        (Receiver("sig_other", "sig_third"), {}),
        (Receiver(KEY, KEY), {"body": "other"}),
        (Receiver(KEY, KEY), {"url": URL + "/"}),
        (Receiver(KEY, KEY), {"signature": _sign(now_ms=now_ms - 301_000)}),
    ):
        with pytest.raises(SignatureError):
            receiver.verify(**(good | changed))
