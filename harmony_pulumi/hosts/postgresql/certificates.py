"""Certificates of a site: its own authority, its servers' certificates, and those of the replicas it lets in.

Pure: texts in, texts out. Where they are kept is the server's matter.
"""

from __future__ import annotations

import contextlib
import ipaddress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_AUTHORITY_LIFETIME = timedelta(days=3650)
_CLOCK_SKEW = timedelta(hours=1)
_NO_USAGE = dict.fromkeys(
    (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ),
    False,
)


class KeyPair(NamedTuple):
    """A certificate and its private key, PEM."""

    certificate: str
    key: str


def make_authority(common_name: str) -> KeyPair:
    """Make a self-signed authority, valid for ten years."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(common_name, key, _AUTHORITY_LIFETIME)
        .issuer_name(_name(common_name))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**{**_NO_USAGE, "key_cert_sign": True, "crl_sign": True}), critical=True)
    )
    return _signed(builder, key, key)


def make_server(authority: KeyPair, address: str, lifetime_days: int) -> KeyPair:
    """Make a server's certificate for the address that clients connect to, a host name or an IP."""
    # libpq before 15 compares even an IP address with the DNS names only: libpq, "Client Verification of Server
    # Certificates". So an IP is there in both forms.
    alternatives: list[x509.GeneralName] = [x509.DNSName(address)]
    with contextlib.suppress(ValueError):  # A host name has the one form.
        alternatives.append(x509.IPAddress(ipaddress.ip_address(address)))
    return _issued(
        authority,
        address[:64],
        lifetime_days,
        ExtendedKeyUsageOID.SERVER_AUTH,
        x509.SubjectAlternativeName(alternatives),
    )


def make_client(authority: KeyPair, role: str, lifetime_days: int) -> KeyPair:
    """Make a client's certificate; its common name is the role that it logs in as."""
    return _issued(authority, role, lifetime_days, ExtendedKeyUsageOID.CLIENT_AUTH, None)


def expires(certificate: str) -> datetime:
    """Return when a PEM certificate expires, in UTC."""
    return x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc


def serves(pair: KeyPair | None, address: str | None = None) -> bool:
    """Tell whether a certificate is there, has not expired, and names an address if one is given."""
    if pair is None or expires(pair.certificate) <= datetime.now(UTC):
        return False
    return address is None or _is_for(pair.certificate, address)


def _is_for(certificate: str, address: str) -> bool:
    names = x509.load_pem_x509_certificate(certificate.encode()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    return address in names.value.get_values_for_type(x509.DNSName)


def _issued(
    authority: KeyPair,
    common_name: str,
    lifetime_days: int,
    purpose: x509.ObjectIdentifier,
    alternatives: x509.SubjectAlternativeName | None,
) -> KeyPair:
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    signer = serialization.load_pem_private_key(authority.key.encode(), password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        msg = f"the authority's key is a {type(signer).__name__}; expected an elliptic-curve key"
        raise TypeError(msg)
    key = ec.generate_private_key(ec.SECP256R1())
    lifetime = min(timedelta(days=lifetime_days), issuer.not_valid_after_utc - datetime.now(UTC))
    builder = (
        _builder(common_name, key, lifetime)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**{**_NO_USAGE, "digital_signature": True}), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if alternatives is not None:
        builder = builder.add_extension(alternatives, critical=False)
    return _signed(builder, key, signer)


def _builder(common_name: str, key: ec.EllipticCurvePrivateKey, lifetime: timedelta) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> KeyPair:
    certificate = builder.sign(signer, hashes.SHA256())
    return KeyPair(
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    )
