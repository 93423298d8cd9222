"""session_owners.py: no visitor can use, or push out, another's session."""

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from vllm_space import session_owners
from vllm_space.session_owners import SessionOwnerMiddleware

PATHS = ("/gradio_api/queue/data", "/gradio_api/heartbeat/{id}", "/gradio_api/call/chat/{id}")


class SignIn:
    """The header `name` of a request is the user."""

    def account(self, request: Request) -> str | None:
        name = request.headers.get("name")
        return f"password:{name}" if name else None


async def answer(request: Request) -> JSONResponse:
    return JSONResponse({"event_id": "event"})


@pytest.fixture
def site() -> TestClient:
    routes = [Route(path, answer) for path in ("/login", *PATHS)]
    routes.append(Route("/gradio_api/queue/join", answer, methods=["POST"]))
    middleware = [Middleware(SessionOwnerMiddleware, sign_in=SignIn())]
    return TestClient(Starlette(routes=routes, middleware=middleware))


def listen(site: TestClient, name: str, session: str) -> int:
    """The status for a user who listens to a session."""
    response = site.get(PATHS[0], params={"session_hash": session}, headers={"name": name})
    return response.status_code


def test_session_and_event_have_one_owner(site):
    assert listen(site, "alice", "tab") == 200
    site.post("/gradio_api/queue/join", headers={"name": "alice"})
    for name, status in (("bob", 403), ("alice", 200)):
        assert listen(site, name, "tab") == status
        for path in (PATHS[1].format(id="tab"), PATHS[2].format(id="event")):
            assert site.get(path, headers={"name": name}).status_code == status


def test_strangers_cannot_claim_sessions(site):
    assert site.get("/login", params={"session_hash": "tab"}).status_code == 200
    assert listen(site, "alice", "tab") == 200
    assert site.get("/login", params={"session_hash": "tab"}).status_code == 200


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("session_hash=" + "x" * session_owners.MAX_LENGTH, 200),
        ("session_hash=" + "x" * (session_owners.MAX_LENGTH + 1), 400),
        ("session_hash=mine&session_hash=", 400),
        ("session_hash=mine&session%5Fhash=other", 400),
    ],
)
def test_long_and_repeated_ids_are_rejected(site, query, status):
    response = site.get(f"{PATHS[0]}?{query}", headers={"name": "alice"})
    assert response.status_code == status


def test_nobody_pushes_out_sessions_of_others(site, monkeypatch):
    monkeypatch.setattr(session_owners, "MAX_IDS", 10)
    for session in ("tab 1", "tab 2"):
        assert listen(site, "alice", session) == 200
    for number in range(20):
        assert listen(site, "mallory", f"flood {number}") == 200
    assert listen(site, "mallory", "tab 1") == listen(site, "mallory", "tab 2") == 403
    assert listen(site, "bob", "flood 0") == 200  # forgotten
    assert listen(site, "bob", "flood 19") == 403
