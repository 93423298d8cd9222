"""A local OpenID provider that plays Hugging Face's sign-in, and the HTTPS proxy that a Space stands behind.

The provider speaks the authorization code flow (OpenID Connect Core 1.0, section 3.1) with tokens signed by a key of
its own; its sign-in form asks only for a user name. The proxy ends TLS, as Hugging Face's does, so that the session's
cookie (Secure, SameSite=None) and the redirect to https://SPACE_HOST are the real ones.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import aiohttp
from aiohttp import web
from joserfc import jwk, jwt

CLIENT_ID, CLIENT_SECRET = "client-of-the-tests", "client-secret-marked"

# Who can sign in, and what Hugging Face says of them (scopes openid and profile).
USERS = {
    "alice": {"orgs": []},
    "bob": {"orgs": [{"preferred_username": "team", "name": "The Team"}]},
    "mallory": {"orgs": [{"preferred_username": "outsiders", "name": "alice"}], "name": "alice"},
    "owner": {"orgs": []},
}


@contextmanager
def serving(app: web.Application, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve `app` on a free port of 127.0.0.1 in a thread; yields the port."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        return site._server.sockets[0].getsockname()[1]

    async def stop() -> None:
        await runner.cleanup()
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def provider() -> Iterator[str]:
    """The OpenID provider; yields its address."""
    key = jwk.RSAKey.generate_key(2048, {"kid": "1", "use": "sig", "alg": "RS256"})
    codes: dict[str, dict] = {}  # one-time code -> what was asked for with it
    app = web.Application()
    routes = web.RouteTableDef()

    def url(request: web.Request) -> str:
        return f"http://{request.host}"

    @routes.get("/.well-known/openid-configuration")
    async def configuration(request: web.Request) -> web.Response:
        here = url(request)
        return web.json_response({
            "issuer": here,
            "authorization_endpoint": f"{here}/oauth/authorize",
            "token_endpoint": f"{here}/oauth/token",
            "userinfo_endpoint": f"{here}/oauth/userinfo",
            "jwks_uri": f"{here}/oauth/jwks",
            "id_token_signing_alg_values_supported": ["RS256"],
        })  # fmt: skip

    @routes.get("/oauth/jwks")
    async def keys(request: web.Request) -> web.Response:
        return web.json_response({"keys": [key.as_dict(private=False)]})

    @routes.get("/oauth/authorize")
    async def form(request: web.Request) -> web.Response:
        assert request.query["client_id"] == CLIENT_ID
        page = '<form method="post"><label>Name <input name="name"></label><button>Authorize</button></form>'
        return web.Response(text=f"<!doctype html><title>Hugging Face</title>{page}", content_type="text/html")

    @routes.post("/oauth/authorize")
    async def authorize(request: web.Request) -> web.Response:
        asked = dict(request.query) | {"user": (await request.post())["name"]}
        code = f"code-{len(codes)}"
        codes[code] = asked
        joined = "&" if "?" in asked["redirect_uri"] else "?"
        raise web.HTTPFound(f"{asked['redirect_uri']}{joined}{urlencode({'code': code, 'state': asked['state']})}")

    @routes.post("/oauth/token")
    async def token(request: web.Request) -> web.Response:
        fields = await request.post()
        asked = codes.pop(fields["code"], None)
        right = aiohttp.BasicAuth(CLIENT_ID, CLIENT_SECRET).encode()
        if (
            not asked
            or request.headers.get("Authorization") != right
            or fields["redirect_uri"] != asked["redirect_uri"]
        ):
            return web.json_response({"error": "invalid_grant"}, status=400)
        now, name = int(time.time()), asked["user"]
        claims = {
            "iss": url(request), "aud": CLIENT_ID, "sub": name, "iat": now, "exp": now + 3600, "nonce": asked["nonce"],
            "name": name, "preferred_username": name, "profile": f"https://huggingface.co/{name}", "picture": "",
        } | USERS[name]  # fmt: skip
        signed = jwt.encode({"alg": "RS256", "kid": "1"}, claims, key)
        return web.json_response(
            {"access_token": "token-marked", "token_type": "bearer", "expires_in": 3600, "id_token": signed}
        )

    app.add_routes(routes)
    with serving(app) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def https_proxy(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A Space's proxy: yields its host and a list, for the address of what is behind it."""
    behind: list[str] = []
    request_key = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    files = ["-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run([*request_key, *files], cwd=folder, check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(folder / "certificate.pem", folder / "key.pem")

    async def forward(request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        seen = ", ".join(filter(None, [request.headers.get("X-Forwarded-For"), request.remote]))
        headers |= {"Host": request.host, "X-Forwarded-For": seen, "X-Forwarded-Proto": "https"}
        async with aiohttp.request(
            request.method, behind[0] + request.path_qs, headers=headers, data=await request.read(),
            allow_redirects=False, skip_auto_headers=["Content-Type"],
        ) as answer:  # fmt: skip
            kept = [
                (name, value) for name, value in answer.headers.items()
                if name.lower() not in ("transfer-encoding", "content-length", "content-encoding", "connection")
            ]  # fmt: skip
            response = web.StreamResponse(status=answer.status)
            response.headers.extend(kept)
            await response.prepare(request)
            async for data in answer.content.iter_any():
                await response.write(data)
            return response

    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", forward)
    with serving(app, tls) as port:
        yield f"127.0.0.1:{port}", behind
