"""Clients of other projects work with the API as docs/clients.md says."""

from __future__ import annotations

import pytest
from clients import run

DOCUMENT = run.DOCUMENT.read_text()
CLIENTS = run.clients()


@pytest.fixture(scope="module")
def demo(space) -> run.Target:
    return run.demo_target(space.url)


@pytest.fixture(scope="module")
def scripted(shared_page) -> run.Target:
    with run.scripted_target(lambda url: shared_page(url, API_KEYS=run.API_KEY)) as target:
        yield target


def test_document_has_all_clients():
    table = [f"{line}\n" for line in DOCUMENT.splitlines() if line.startswith("| ")]
    assert run.document(table[1:]) == DOCUMENT, "replace it: python tests/clients/run.py"
    for client, line in zip(CLIENTS, table[1:], strict=True):
        assert line.startswith(run.row(client, {}).partition("|  |")[0])


@pytest.mark.release
@pytest.mark.registry
@pytest.mark.parametrize(
    "client", CLIENTS, ids=lambda client: f"{client.script.stem} {client.variant}"
)
def test_client_does_what_is_documented(demo, scripted, client):
    results = {check: client.run(check, demo, scripted) for check in client.head("checks")}
    row = run.row(client, {check: mark for check, (mark, _) in results.items()})
    assert row in DOCUMENT, {check: text[-1500:] for check, (_, text) in results.items()}
