"""An OpenID provider in place of Hugging Face's sign-in.

Implements the authorization code flow (OpenID Connect Core 1.0, section 3.1) and signs its tokens.
The sign-in form asks for a user name only.
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

# Who can sign in, with their claims (scopes openid and profile).
USERS = {
    "alice": {"orgs": []},
    "bob": {"orgs": [{"preferred_username": "team", "name": "The Team"}]},
    "mallory": {"orgs": [{"preferred_username": "outsiders", "name": "alice"}], "name": "alice"},
    "owner": {"orgs": []},
}
SIGN_IN_FORM = """<!doctype html><title>Hugging Face</title>
<form method="post"><label>Name <input name="name"></label><button>Authorize</button></form>"""


@contextmanager
def provider() -> Iterator[str]:
    """Run the provider; yields its URL."""
    key = jwk.RSAKey.generate_key(2048, {"kid": "1", "use": "sig", "alg": "RS256"})
    grants: dict[str, dict] = {}  # one-time code -> authorization request and user
    app = web.Application()
    routes = web.RouteTableDef()

    def url(request: web.Request) -> str:
        return f"http://{request.host}"

    @routes.get("/.well-known/openid-configuration")
    async def configuration(request: web.Request) -> web.Response:
        issuer = url(request)
        return web.json_response(
            {
                "issuer": issuer,
                "authorization_endpoint": f"{issuer}/oauth/authorize",
                "token_endpoint": f"{issuer}/oauth/token",
                "userinfo_endpoint": f"{issuer}/oauth/userinfo",
                "jwks_uri": f"{issuer}/oauth/jwks",
                "id_token_signing_alg_values_supported": ["RS256"],
            }
        )

    @routes.get("/oauth/jwks")
    async def keys(request: web.Request) -> web.Response:
        return web.json_response({"keys": [key.as_dict(private=False)]})

    @routes.get("/oauth/authorize")
    async def form(request: web.Request) -> web.Response:
        assert request.query["client_id"] == CLIENT_ID
        return web.Response(text=SIGN_IN_FORM, content_type="text/html")

    @routes.post("/oauth/authorize")
    async def authorize(request: web.Request) -> web.Response:
        grant = dict(request.query) | {"user": (await request.post())["name"]}
        code = f"code-{len(grants)}"
        grants[code] = grant
        separator = "&" if "?" in grant["redirect_uri"] else "?"
        query = urlencode({"code": code, "state": grant["state"]})
        raise web.HTTPFound(f"{grant['redirect_uri']}{separator}{query}")

    @routes.post("/oauth/token")
    async def token(request: web.Request) -> web.Response:
        fields = await request.post()
        grant = grants.pop(fields["code"], None)
        client = aiohttp.encode_basic_auth(CLIENT_ID, CLIENT_SECRET)
        if (
            not grant
            or request.headers.get("Authorization") != client
            or fields["redirect_uri"] != grant["redirect_uri"]
        ):
            return web.json_response({"error": "invalid_grant"}, status=400)
        now, name = int(time.time()), grant["user"]
        claims = {
            "iss": url(request),
            "aud": CLIENT_ID,
            "sub": name,
            "iat": now,
            "exp": now + 3600,
            "nonce": grant["nonce"],
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
