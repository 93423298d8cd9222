"""A local OpenID provider that plays Hugging Face's sign-in.

It speaks the authorization code flow (OpenID Connect Core 1.0, section 3.1) with tokens signed by a key of its own;
its sign-in form asks only for a user name.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlencode

import aiohttp
from aiohttp import web
from joserfc import jwk, jwt

from support.aiohttp_server import serving

CLIENT_ID, CLIENT_SECRET = "client-of-the-tests", "client-secret-marked"

# Who can sign in, and what Hugging Face says of them (scopes openid and profile).
USERS = {
    "alice": {"orgs": []},
    "bob": {"orgs": [{"preferred_username": "team", "name": "The Team"}]},
    "mallory": {"orgs": [{"preferred_username": "outsiders", "name": "alice"}], "name": "alice"},
    "owner": {"orgs": []},
}


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
        return web.json_response(
            {
                "issuer": here,
                "authorization_endpoint": f"{here}/oauth/authorize",
                "token_endpoint": f"{here}/oauth/token",
                "userinfo_endpoint": f"{here}/oauth/userinfo",
                "jwks_uri": f"{here}/oauth/jwks",
                "id_token_signing_alg_values_supported": ["RS256"],
            }
        )

    @routes.get("/oauth/jwks")
    async def keys(request: web.Request) -> web.Response:
        return web.json_response({"keys": [key.as_dict(private=False)]})

    @routes.get("/oauth/authorize")
    async def form(request: web.Request) -> web.Response:
        assert request.query["client_id"] == CLIENT_ID
        page = '<form method="post"><label>Name <input name="name"></label><button>Authorize</button></form>'
        return web.Response(
            text=f"<!doctype html><title>Hugging Face</title>{page}", content_type="text/html"
        )

    @routes.post("/oauth/authorize")
    async def authorize(request: web.Request) -> web.Response:
        asked = dict(request.query) | {"user": (await request.post())["name"]}
        code = f"code-{len(codes)}"
        codes[code] = asked
        joined = "&" if "?" in asked["redirect_uri"] else "?"
        raise web.HTTPFound(
            f"{asked['redirect_uri']}{joined}{urlencode({'code': code, 'state': asked['state']})}"
        )

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
            "iss": url(request),
            "aud": CLIENT_ID,
            "sub": name,
            "iat": now,
            "exp": now + 3600,
            "nonce": asked["nonce"],
            "name": name,
            "preferred_username": name,
            "profile": f"https://huggingface.co/{name}",
            "picture": "",
        } | USERS[name]
        signed = jwt.encode({"alg": "RS256", "kid": "1"}, claims, key)
        return web.json_response(
            {
                "access_token": "token-marked",
                "token_type": "bearer",
                "expires_in": 3600,
                "id_token": signed,
            }
        )

    app.add_routes(routes)
    with serving(app) as port:
        yield f"http://127.0.0.1:{port}"
