"""Which X-Forwarded headers are trusted, and what becomes of the others."""

import pytest

from support import coroutines
from vllm_space.forwarded import ForwardedMiddleware, trusted, visitor_address

VISITOR = "203.0.113.7"  # reserved for documentation
PROXY = "10.1.2.3"


def resolve(peer: str, *, networks: tuple[str, ...] = (), on_space: bool = False, **headers: str):
    """(visitor's address, scheme, headers left) of a request from `peer` with X-Forwarded-..."""
    seen = {}

    async def app(scope, receive, send):
        seen.update(scope)

    raw = [(f"x-forwarded-{name}".encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "scheme": "http", "client": (peer, 5), "headers": raw}
    middleware = ForwardedMiddleware(app, trusted(networks, on_space))
    coroutines.run(middleware(scope, None, None))
    left = {name.decode().removeprefix("x-forwarded-"): value for name, value in seen["headers"]}
    return seen["client"][0], seen["scheme"], left


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.0.0.2", VISITOR, "::1"])
def test_nobody_is_trusted_by_default(peer):
    headers = {"for": "198.51.100.1", "proto": "https", "host": "evil.example", "port": "1"}
    assert resolve(peer, **headers) == (peer, "http", {})


@pytest.mark.parametrize("network", [PROXY, "10.0.0.0/8", "*", "::/0"])
def test_headers_of_named_proxies_are_used(network):
    headers = {"for": VISITOR, "proto": "https", "host": "chat.example.com"}
    expected = (VISITOR, "https", {"proto": b"https", "host": b"chat.example.com"})
    if network == "::/0":  # an IPv4 address is not in it
        expected = (PROXY, "http", {})
    assert resolve(PROXY, networks=(network,), **headers) == expected


@pytest.mark.parametrize(
    ("hops", "visitor"),
    [
        (VISITOR, VISITOR),
        (f"1.2.3.4, {VISITOR}", VISITOR),  # what the visitor claims comes first
        (f"{VISITOR}, 10.0.0.9", VISITOR),  # a second proxy
        (f"{VISITOR},10.0.0.9 , 10.0.0.8", VISITOR),
        ("2001:db8::7", "2001:db8::7"),
        (f"1.2.3.4, {VISITOR}:5678", VISITOR),  # with a port
        ("1.2.3.4, [2001:db8::7]:443", "2001:db8::7"),
        (f"1.2.3.4, {VISITOR}:5678, [::ffff:10.0.0.9]", VISITOR),
        ("1.2.3.4, unknown", PROXY),  # what comes before that can be a claim
        ("1.2.3.4, unknown, 10.0.0.9", "10.0.0.9"),
        ("1.2.3.4,", PROXY),
        ("", PROXY),
        ("unknown", PROXY),
        ("10.0.0.8, 10.0.0.9", "10.0.0.9"),  # everyone is inside
        ("<script>", PROXY),
    ],
)
def test_last_untrusted_address_is_the_visitor(hops, visitor):
    assert resolve(PROXY, networks=("10.0.0.0/8",), **{"for": hops})[0] == visitor


def test_star_skips_private_hops_only():
    hops = {"for": "1.2.3.4, 8.8.8.8, 10.0.0.9"}
    assert resolve("9.9.9.9", networks=("*",), **hops)[0] == "8.8.8.8"
    assert resolve("9.9.9.9", networks=("*",), **{"for": "10.0.0.8, 10.0.0.9"})[0] == "10.0.0.9"


@pytest.mark.parametrize(
    ("proto", "scheme"),
    [
        ("https", "https"),
        ("https,http", "https"),
        ("https, http", "https"),
        ("HTTPS", "https"),
        ("http,https", "http"),
        ("javascript", "http"),
        ("", "http"),
    ],
)
def test_first_scheme_is_the_visitors(proto, scheme):
    _, seen, left = resolve(PROXY, networks=("*",), proto=proto)
    assert seen == scheme
    assert left.get("proto", scheme.encode()) == scheme.encode()


def test_space_trusts_its_private_proxies():
    headers = {"for": "1.2.3.4, 8.8.8.8, 10.9.9.9", "proto": "https"}
    assert resolve(PROXY, on_space=True, **headers)[:2] == ("8.8.8.8", "https")
    assert resolve("8.8.4.4", on_space=True, **headers)[:2] == ("8.8.4.4", "http")


@pytest.mark.parametrize(
    ("address", "limited_by"),
    [
        (VISITOR, VISITOR),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.7", VISITOR),
        ("not an address", "not an address"),
    ],
)
def test_ipv6_counts_by_network(address, limited_by):
    assert visitor_address({"client": (address, 1)}) == limited_by
    assert visitor_address({"client": None}) == ""
