"""A self-signed certificate for addresses of this machine."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path


def self_signed(folder: Path, *addresses: str) -> tuple[Path, ssl.SSLContext]:
    """(the certificate's file, a server's context with it), for IP addresses."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    names = ",".join(f"IP:{address}" for address in addresses)
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={addresses[0]}", "-addext", f"subjectAltName={names}"]
    command += ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context
