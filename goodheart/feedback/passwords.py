"""Passwords and tokens: only their hashes are kept.

A password becomes "scrypt$N$r$p$salt$hash" (RFC 7914; 32 MiB and about a quarter of a second each, one of the settings
that OWASP's password cheat sheet gives as equal). A token is 256 random bits, of which a plain SHA-256 is enough.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from goodheart.errors import FeedbackError

COST = (2**15, 8, 3)  # N, r, p
LEAST = 10  # characters
MOST = 1000
_PATIENCE = 5.0  # seconds
_MOST_PLACES = 4  # those that hash and those that wait; far fewer than a server has threads
_MOST_HASHING = 2  # guesses wait for each other, and leave memory and processors to the rest
_PLACES = threading.BoundedSemaphore(_MOST_PLACES)
_HASHING = threading.BoundedSemaphore(_MOST_HASHING)


class Busy(FeedbackError):
    """So many passwords are being hashed that this one must come again in some seconds."""


def share(processes: int) -> None:
    """Divides the turns among so many processes; each has one at least. Called before there are any."""
    global _PLACES, _HASHING
    _PLACES = threading.BoundedSemaphore(max(2, _MOST_PLACES // processes))
    _HASHING = threading.BoundedSemaphore(max(1, _MOST_HASHING // processes))


@contextmanager
def turn() -> Iterator[None]:
    """Waits until few enough others hash; where people whom nobody knows ask for hashes, each is made within one.

    Raises:
        Busy: too many wait already, or the wait is too long.
    """
    busy = "too many people log in at this moment; try again in some seconds"
    places, hashing = _PLACES, _HASHING
    if not places.acquire(blocking=False):
        raise Busy(busy)
    try:
        if not hashing.acquire(timeout=_PATIENCE):
            raise Busy(busy)
        try:
            yield
        finally:
            hashing.release()
    finally:
        places.release()


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
