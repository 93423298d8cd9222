"""Tokens for cookies, signed for one user with a key derived from that user's password.

So visitors stay signed in after a restart, and a changed password ends the sessions of that user
alone. Someone who has a token can try passwords against it, but only that user's, and slowly: the
derivation costs 0.1 s and 32 MiB of memory per password (https://www.rfc-editor.org/rfc/rfc7914).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
from typing import NamedTuple

import anyio
from itsdangerous import BadSignature, TimestampSigner


class Token(NamedTuple):
    """What a valid token says. `id` is random and unique to the token."""

    name: str
    id: str


class Signer:
    """Signs and checks tokens. `logins` are user names with passwords.

    Each user's key is derived once while this process runs, so no one can keep the server busy with
    it: by `prepare_all`, or earlier if a request needs it. Only until then does a slow response to
    a forged token reveal that there is a user of that name.
    """

    def __init__(self, logins: dict[str, str]):
        self.logins = logins
        self._keys: dict[str, bytes] = {}
        self._deriving = asyncio.Lock()

    async def prepare_all(self) -> None:
        """Derive the keys of all users, one after the other."""
        for name in self.logins:
            await self.prepare(name)

    async def prepare(self, name: str) -> None:
        """Derive the key of a user, in a thread, unless that was done or there is no such user."""
        if name not in self.logins or name in self._keys:
            return
        async with self._deriving:  # one at a time, because of the memory
            if name not in self._keys:
                self._keys[name] = await anyio.to_thread.run_sync(
                    _derive_key, name, self.logins[name]
                )

    def sign(self, name: str, purpose: str) -> str:
        """A new token. The user's key must have been prepared."""
        text = f"{_encode(name)}.{secrets.token_urlsafe(12)}"
        return _signer(self._keys[name], purpose).sign(text).decode()

    def check(self, token: str, purpose: str, max_age: int) -> Token | None:
        """What a token says, if it was signed for this purpose at most `max_age` seconds ago.

        None if not, or if its user's key has not been prepared.
        """
        name = claimed_name(token)
        if name not in self._keys:
            return None
        try:
            text = _signer(self._keys[name], purpose).unsign(token, max_age).decode()
        except BadSignature:
            return None
        return Token(name, text.partition(".")[2])


def claimed_name(token: str) -> str:
    """The user name in a token, which need not be genuine; empty if there is none."""
    try:
        return base64.urlsafe_b64decode(token.partition(".")[0]).decode()
    except ValueError:
        return ""


def _encode(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _derive_key(name: str, password: str) -> bytes:
    return hashlib.scrypt(
        password.encode(),
        salt=b"vllm-space sign-in:" + name.encode(),
        n=2**15,
        r=8,
        p=1,
        maxmem=2**26,  # bytes; 2**25 are needed
    )


def _signer(key: bytes, purpose: str) -> TimestampSigner:
    return TimestampSigner(key, salt=purpose, digest_method=hashlib.sha256)
