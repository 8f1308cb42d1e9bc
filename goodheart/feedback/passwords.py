"""Passwords and tokens: only their hashes are kept.

A password becomes "scrypt$N$r$p$salt$hash" (RFC 7914; 32 MiB and about a quarter of a second each, one of the settings
that OWASP's password cheat sheet gives as equal). A token is 256 random bits, of which a plain SHA-256 is enough.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

COST = (2**15, 8, 3)  # N, r, p
LEAST = 10  # characters
MOST = 1000


def hash_password(password: str) -> str:
    """What to keep of a password."""
    salt = secrets.token_bytes(16)
    return "scrypt${}${}${}${}${}".format(*COST, _text(salt), _text(_scrypt(password, salt, *COST)))


def is_password(password: str, kept: str | None) -> bool:
    """Whether it is the password of which `kept` is the hash. Takes the same time where there is none."""
    if kept is None:
        _scrypt(password, b"no such person..", *COST)
        return False
    _, n, r, p, salt, expected = kept.split("$")
    found = _scrypt(password, base64.b64decode(salt), int(n), int(r), int(p))
    return hmac.compare_digest(found, base64.b64decode(expected))


def new_token() -> str:
    """A secret for a link or a cookie."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """What to keep of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    secret = password[:MOST].encode("utf-8", "surrogatepass")
    return hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, maxmem=256 * n * r, dklen=32)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
