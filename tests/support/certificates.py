"""Certificates for tests: self-signed ones, and those that a company's authority issued."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


@dataclass
class Authority:
    """Its certificate is in `file`."""

    folder: Path

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = _subject("Company")
        is_authority = x509.BasicConstraints(ca=True, path_length=None)
        certificate = _builder(self.name, self.name, self.key, 2).add_extension(is_authority, True)
        self.file = self.folder / "company.pem"
        self.file.write_bytes(_pem(certificate.sign(self.key, hashes.SHA256())))

    def context(self, address: str = "127.0.0.1", days: int = 2) -> ssl.SSLContext:
        """A server's context with a certificate for an address, valid for so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_subject("server"), self.name, key, days)
        certificate = builder.add_extension(_names(address), False).sign(self.key, hashes.SHA256())
        return _context(self.folder / "server.pem", key, certificate)


def self_signed(folder: Path, *names: str) -> tuple[Path, ssl.SSLContext]:
    """(the certificate's file, a server's context with it), for these names and IP addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(names[0])
    is_authority = x509.BasicConstraints(ca=True, path_length=None)
    builder = _builder(subject, subject, key, 2).add_extension(is_authority, True)
    certificate = builder.add_extension(_names(*names), False).sign(key, hashes.SHA256())
    file = folder / "cert.pem"
    file.write_bytes(_pem(certificate))
    return file, _context(folder / "key-and-cert.pem", key, certificate)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _names(*names: str) -> x509.SubjectAlternativeName:
    """Names and IP addresses that a certificate is for."""
    alternatives: list[x509.GeneralName] = []
    for name in names:
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            alternatives.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(alternatives)


def _context(
    file: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> ssl.SSLContext:
    """A server's context, for which the key and the certificate are written to a file."""
    key_bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file.write_bytes(key_bytes + _pem(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - 30 * DAY,
        not_valid_after=now + days * DAY,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
