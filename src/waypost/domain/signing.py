"""The home of the signature a delivery carries: an HS256 JSON Web Token, made by hand.

Only signing is here, never verifying, so there is no algorithm to confuse.
The claims and their order are the hosted service's (contract section 4.2):

    {"aud":"","body":"<base64url sha256>","exp":iat+300,"iat":…,"iss":"Upstash",
     "jti":"jwt_…","nbf":0,"sub":"<the exact url>"}

`nbf` is 0 and not `iat`: it must be there, but the SDK's receivers allow no
tolerance, and one whose clock is a second behind would refuse a good delivery.
It protects nothing, since `exp` bounds the life of a token.
"""

import binascii
import hmac
from hashlib import sha256
from typing import Final

import msgspec
from msgspec import Struct

LIFETIME_S: Final = 300

_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


class SigningKeys(Struct, frozen=True):
    """A tenant's keys.  Deliveries are signed with `current`; `next` takes over on rotation."""

    current: str
    next: str


def _unpadded(data: bytes) -> bytes:
    return binascii.b2a_base64(data, newline=False).translate(_URL_SAFE, b"=")


_HEAD: Final = _unpadded(b'{"alg":"HS256","typ":"JWT"}') + b"."


def token(key: str, claims: bytes) -> str:
    """Sign claims that are already JSON.  The secret is the literal text of the key."""
    signed = _HEAD + _unpadded(claims)
    mark = hmac.digest(key.encode(), signed, "sha256")
    return (signed + b"." + _unpadded(mark)).decode("ascii")


def sign(*, key: str, url: str, body: bytes, now_ms: int, jti: str) -> str:
    """Sign one attempt: `url` and `body` exactly as they go out, `jti` new for each."""
    iat_s = now_ms // 1000
    # The one claim that keeps its padding; receivers strip it before they compare.
    digest = binascii.b2a_base64(sha256(body).digest(), newline=False).translate(_URL_SAFE)
    return token(
        key,
        b'{"aud":"","body":"%b","exp":%d,"iat":%d,"iss":"Upstash","jti":"%b","nbf":0,"sub":%b}'
        % (digest, iat_s + LIFETIME_S, iat_s, jti.encode("ascii"), msgspec.json.encode(url)),
    )
