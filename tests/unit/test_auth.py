"""Sign-in with passwords, without the page: what strangers can try, and what lasts how long."""

import asyncio
import hashlib
import json
import logging
import tempfile

import pytest
from itsdangerous import URLSafeTimedSerializer
from starlette.applications import Starlette
from starlette.formparsers import MultiPartParser
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from support import coroutines
from vllm_space import auth, request_body, signing
from vllm_space.auth import COOKIE, SignIn, SignInMiddleware
from vllm_space.lockout import (
    FORGET_AFTER,
    FREE_FAILURES,
    FREE_FAILURES_OF_ADDRESS,
    LONGEST_WAIT,
    MAX_COUNTS,
    Lockout,
)
from vllm_space.login_form import LIMIT
from vllm_space.settings import Settings

USERS = "alice:right,bob:other"
FORM = "application/x-www-form-urlencoded"
HERE, ELSEWHERE = "203.0.113.7", "198.51.100.9"  # reserved for documentation


class Clock:
    """A time in seconds that passes only when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(clock):
    return Site(clock)


class Site:
    """An application that requires sign-in, and its visitors."""

    def __init__(self, clock: Clock | None = None, users: str = USERS):
        self.sign_in = SignIn(Settings(_env_file=None, app_users=users), None, "red")
        self.sign_in.lockout = Lockout(clock or Clock())

        async def whoami(request):
            return PlainTextResponse(self.sign_in.user(request))

        self.app = Starlette(
            routes=[*self.sign_in.routes(), Route("/user", whoami)],
            middleware=[Middleware(SignInMiddleware, sign_in=self.sign_in)],
        )

    def visitor(self, address: str = HERE) -> "Visitor":
        return Visitor(self, address)

    def send(self, *messages: dict, address: str = HERE, **headers: str) -> tuple[int, list]:
        """POST /login in ASGI messages -> (status, the messages that were left unread)."""
        left, status = list(messages), []

        async def receive():
            return left.pop(0)

        async def send(message):
            if message["type"] == "http.response.start":
                status.append(message["status"])

        raw = {"content-type": FORM} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/login",
            "root_path": "",
            "query_string": b"",
            "scheme": "http",
            "client": (address, 5),
            "headers": [(name.encode(), value.encode()) for name, value in raw.items()],
        }
        coroutines.run(self.app(scope, receive, send))
        return status[0], left


class Visitor(TestClient):
    """A browser or a program at an address."""

    def __init__(self, site: Site, address: str):
        super().__init__(site.app, client=(address, 5), follow_redirects=False)

    def sign_in(self, name: str, password: str) -> int:
        form = {"username": name, "password": password}
        return self.post("/login", data=form).status_code

    def fail(self, name: str, times: int) -> list[int]:
        return [self.sign_in(name, f"guess {number}") for number in range(times)]

    @property
    def user(self) -> str | None:
        response = self.get("/user")
        return response.text if response.is_success else None


def part(body: bytes, more: bool = True) -> dict:
    return {"type": "http.request", "body": body, "more_body": more}


# -- the form --------------------------------------------------------------------------------------


def test_only_posts_count_as_tries(site):
    visitor = site.visitor()
    for method in ("HEAD", "GET"):
        for _ in range(3 * FREE_FAILURES):
            assert visitor.request(method, "/login").status_code == 200
    assert visitor.put("/login").status_code == 405
    assert visitor.sign_in("alice", "right") == 200
    assert visitor.user == "alice"


def test_large_forms_are_rejected_unread(site):
    size = str(LIMIT + 1)
    assert site.send(part(b"x"), content_length=size) == (413, [part(b"x")])


def test_size_is_counted_while_it_arrives(site):
    parts = [part(b"x" * 1024)] * 100
    status, unread = site.send(*parts, transfer_encoding="chunked")
    assert status == 413
    assert len(unread) >= 90


def test_files_never_reach_the_disk(site, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a file is written to disk")

    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", refuse)
    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", refuse)
    monkeypatch.setattr(MultiPartParser, "spool_max_size", 1)
    files = {"username": ("name.txt", b"alice"), "password": (None, "right")}
    assert site.visitor().post("/login", files=files).status_code == 400


def test_files_are_rejected_on_an_open_page(monkeypatch):
    site = Site(users="")
    assert not site.sign_in.required
    response = site.visitor().post("/login", files={"username": ("x", b"x" * 10**6)})
    assert response.status_code == 303


def test_javascript_client_can_sign_in(site):
    """Gradio's sends multipart/form-data: client/js/src/helpers/init_helpers.ts."""
    fields = {"username": (None, "alice"), "password": (None, "right")}
    assert site.visitor().post("/login", files=fields).json() == {"success": True}


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "", "multipart"])
def test_other_content_types_are_rejected(site, content_type):
    body = json.dumps({"username": "alice", "password": "right"})
    response = site.visitor().post("/login", content=body, headers={"Content-Type": content_type})
    assert response.status_code == 415


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=x", b"--x\r\nnonsense"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n\r\n--x--\r\n"),
        (FORM, b"&=&" * 100),
        (FORM, b"username=%ff%00&username=\xff&password"),
        (FORM, b""),
    ],
)
def test_malformed_forms_are_rejected(site, content_type, body):
    response = site.visitor().post("/login", content=body, headers={"Content-Type": content_type})
    assert response.status_code == 400


def test_client_may_leave_while_it_sends(site, caplog):
    site.send(part(b"username=al"), {"type": "http.disconnect"})
    assert caplog.records == []


def test_slow_forms_are_given_up(site, monkeypatch):
    monkeypatch.setattr(request_body, "TIMEOUT", 0.05)
    app = site.app

    async def post() -> int:
        status = []

        async def receive():
            await asyncio.sleep(60)

        async def send(message):
            status.append(message.get("status"))

        headers = [(b"content-type", FORM.encode())]
        scope = {"type": "http", "method": "POST", "path": "/login", "headers": headers}
        await app(scope | {"query_string": b"", "client": (HERE, 5)}, receive, send)
        return status[0]

    assert coroutines.run(post()) == 408


# -- wrong passwords -------------------------------------------------------------------------------


def test_failures_count_for_name_and_address(site):
    guesser = site.visitor()
    assert guesser.fail("alice", FREE_FAILURES + 1) == [400] * FREE_FAILURES + [429]
    assert guesser.sign_in("alice", "right") == 429
    assert guesser.sign_in("bob", "other") == 200
    assert site.visitor(ELSEWHERE).sign_in("alice", "right") == 200


def test_ipv6_networks_count_as_one_address(site):
    for number in range(FREE_FAILURES):
        site.visitor(f"2001:db8:1:2::{number:x}").fail("alice", 1)
    assert site.visitor("2001:db8:1:2:ffff::1").sign_in("alice", "right") == 429
    assert site.visitor("2001:db8:1:3::1").sign_in("alice", "right") == 200


def test_existing_names_are_not_revealed(site, clock):
    responses = []
    for name in ("alice", "nobody"):
        visitor, seen = site.visitor(), []
        for number in range(12):
            form = {"username": name, "password": f"guess {number}"}
            response = visitor.post("/login", data=form)
            seen.append((response.status_code, response.text, response.headers))
            clock.now += 1
        responses.append(seen)
    assert responses[0] == responses[1]


def test_locked_out_address_sends_no_body(site):
    visitor = site.visitor()
    for number in range(FREE_FAILURES_OF_ADDRESS):
        assert visitor.fail(f"invented {number}", 1) == [400]
    unread = part(b"username=alice&password=right", more=False)
    assert site.send(unread) == (429, [unread])
    # A cookie that is not genuine changes nothing.
    assert site.send(unread, cookie="vllm_space_browser_2bd806c9=YWxpY2U=.x.y.z")[0] == 429
    assert site.send(unread, address=ELSEWHERE)[0] == 200


def test_invented_names_push_no_count_out():
    lockout = Lockout(Clock())
    for _ in range(FREE_FAILURES):
        lockout.count("alice", HERE, None)
    for number in range(MAX_COUNTS + 100):
        lockout.count(f"invented {number}", f"address {number}", None)
    assert lockout.wait("alice", HERE, None) > 0
    assert len(lockout._of_name.counts) == len(lockout._of_address.counts) == MAX_COUNTS


def test_waits_double_and_are_forgotten(clock):
    lockout, waits = Lockout(clock), []
    for _ in range(FREE_FAILURES + 10):
        lockout.count("alice", HERE, None)
        waits.append(lockout.wait("alice", HERE, None))
        clock.now += waits[-1]
        assert lockout.wait("alice", HERE, None) == 0
    assert waits[FREE_FAILURES - 2 :][:4] == [0, 1, 2, 4]
    assert waits[-1] == LONGEST_WAIT
    clock.now += FORGET_AFTER
    lockout.count("alice", HERE, None)
    assert lockout.wait("alice", HERE, None) == 0


def test_known_browser_is_never_locked_out(site):
    owner, stranger = site.visitor(), site.visitor()  # at the same address
    assert owner.sign_in("alice", "right") == 200
    owner.post("/logout")
    assert owner.user is None
    for name in ("alice", *(f"invented {number}" for number in range(20))):
        stranger.fail(name, FREE_FAILURES)
    assert stranger.sign_in("alice", "right") == 429
    assert stranger.sign_in("bob", "other") == 429
    assert owner.sign_in("bob", "other") == 429  # known, but not as bob
    assert owner.sign_in("alice", "right") == 200


def test_known_browser_may_not_guess_either(site):
    visitor = site.visitor()
    visitor.sign_in("alice", "right")
    assert visitor.fail("alice", FREE_FAILURES + 1)[-1] == 429
    assert site.visitor().sign_in("alice", "right") == 200


def test_log_of_failures_has_no_passwords(site, caplog):
    caplog.set_level(logging.INFO, "vllm_space")
    site.visitor().sign_in("alice\nWARNING: forged", "wrong-marked")
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert "marked" not in record.getMessage()
    assert HERE in record.getMessage()


# -- cookies ---------------------------------------------------------------------------------------


def test_cookies_do_not_help_to_guess(site):
    """A key made of all passwords with one fast hash could be found with a list of words."""
    logins = [["alice", "right"], ["bob", "other"]]
    guesses = [
        json.dumps(logins).encode(),
        json.dumps(dict(logins)).encode(),
        b"other",
        b"bob:other",
    ]
    for guess in guesses:
        key = hashlib.sha256(guess).hexdigest()
        visitor = site.visitor()
        visitor.cookies.set(COOKIE, URLSafeTimedSerializer(key, salt=COOKIE).dumps("bob"))
        assert visitor.user is None


def test_new_password_ends_old_sessions():
    cookies = {}
    for name, password in (("alice", "right"), ("bob", "other")):
        visitor = Site().visitor()
        visitor.sign_in(name, password)
        cookies[name] = visitor.cookies[COOKIE]
    changed = Site(users="alice:right,bob:new")
    for name, user in (("alice", "alice"), ("bob", None)):
        visitor = changed.visitor()
        visitor.cookies.set(COOKIE, cookies[name])
        assert visitor.user == user


def test_one_users_key_signs_for_nobody_else(site):
    visitor = site.visitor()
    visitor.sign_in("alice", "right")
    site.visitor().sign_in("bob", "other")
    mine, browsers = visitor.cookies[COOKIE], [*visitor.cookies.jar]
    assert len(browsers) == 2
    forged = [f"{signing._encode('bob')}.{mine.partition('.')[2]}"]
    forged += [cookie.value for cookie in browsers if cookie.name != COOKIE]  # another purpose
    for cookie in forged:
        stranger = site.visitor()
        stranger.cookies.set(COOKIE, cookie)
        assert stranger.user is None


def test_keys_are_derived_once_for_each_user(site, monkeypatch):
    derived, derive = [], signing._derive_key

    def count(name, password):
        derived.append(name)
        return derive(name, password)

    monkeypatch.setattr(signing, "_derive_key", count)
    for name in ["alice", "nobody"] * 5:
        for cookie in (COOKIE, auth._browser_cookie(name)):
            visitor = site.visitor()
            visitor.cookies.set(cookie, f"{signing._encode(name)}.x.y.z")
            visitor.fail("bob", 1)
    assert derived == ["alice"]
    coroutines.run(site.sign_in.prepare_keys())
    assert derived == ["alice", "bob"]


@pytest.mark.parametrize(
    "cookie", ["", ".", "é.x.y.z", "____.x", "YWxpY2U", "YWxpY2U=...", "=" * 9]
)
def test_nonsense_in_the_cookie_is_ignored(site, cookie):
    site.visitor().sign_in("alice", "right")
    header = f"{COOKIE}={cookie}".encode()
    assert site.visitor().get("/user", headers={"Cookie": header}).status_code == 401


def test_same_name_elsewhere_is_another_visitor():
    config = Settings(_env_file=None, app_users=USERS, oauth_allowed="*")
    sign_in = SignIn(config, None, "red")
    coroutines.run(sign_in.prepare_keys())
    cookie = f"{COOKIE}={sign_in.signer.sign('alice', COOKIE)}".encode()
    oauth_session = {"oauth_info": {"userinfo": {"preferred_username": "alice"}}}
    scope = {"type": "http", "client": (HERE, 5), "headers": [], "session": {}}
    requests = [
        Request(scope),
        Request(scope | {"headers": [(b"cookie", cookie)]}),
        Request(scope | {"session": oauth_session}),
    ]
    assert [sign_in.user(request) for request in requests] == [None, "alice", "alice"]
    assert len({sign_in.visitor(request) for request in requests}) == 3


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_signing_out_ends_copied_cookies(site, method):
    visitor, copy, other = site.visitor(), site.visitor(), site.visitor()
    visitor.sign_in("alice", "right")
    other.sign_in("alice", "right")
    copy.cookies.set(COOKIE, visitor.cookies[COOKIE])
    assert copy.user == "alice"
    response = visitor.request(method, "/logout", headers={"Accept": "text/html"})
    assert (response.status_code, response.headers["Location"]) == (303, "/")
    assert COOKIE not in visitor.cookies
    assert (visitor.user, copy.user, other.user) == (None, None, "alice")
