"""Certificates of a site: its own authority, its servers' certificates, and those of the replicas it lets in.

Pure: texts in, texts out. Where they are kept is the server's matter.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_AUTHORITY_LIFETIME = timedelta(days=3650)
_CLOCK_SKEW = timedelta(days=2)
"""A certificate is valid from so long before it is made: the clocks of members, clients and its maker may be wrong."""
_END = "-----END CERTIFICATE-----\n"
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
    builder = _as_authority(_builder(common_name, key, _AUTHORITY_LIFETIME).issuer_name(_name(common_name)))
    return _signed(builder, key, key)


def succeed(authority: KeyPair) -> tuple[KeyPair, str]:
    """Make the authority that takes another's place, and its cross certificate, by which the old vouches for the new.

    Who trusts the old one alone verifies by the cross certificate what the new one signs, until the old one expires;
    if it has, the text is empty. Both have one name: RFC 4210, "Root CA Key Update".
    """
    old = _loaded(authority.certificate)
    common_name = str(old.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    new = make_authority(common_name)
    left = old.not_valid_after_utc - datetime.now(UTC)
    if left <= timedelta():
        return new, ""
    key, signer = _key(new), _key(authority)
    builder = _as_authority(_builder(common_name, key, left)).issuer_name(old.subject)
    return new, _signed(_vouched(builder, signer), key, signer).certificate


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


def make_client(authority: KeyPair, role: str, lifetime_days: int, *, before: str = "") -> KeyPair:
    """Make a client's certificate; its common name is the role that it logs in as.

    Args:
        authority: signs it.
        role: that it is for.
        lifetime_days: for which it is valid.
        before: the certificate whose place it takes, PEM: it `is_newer`, though whoever made that had another clock.
    """
    after = _loaded(before).not_valid_before_utc if serial(before) else None
    return _issued(authority, role, lifetime_days, ExtendedKeyUsageOID.CLIENT_AUTH, None, after=after)


def role(certificate: str) -> str:
    """Return the role that a client logs in as by its certificate: its common name."""
    return str(_loaded(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def expires(certificate: str) -> datetime:
    """Return when a PEM certificate expires, in UTC."""
    return _loaded(certificate).not_valid_after_utc


def lifetime_days(certificate: str) -> int:
    """Return for how many days a PEM certificate was made, at least one; a year if it is none."""
    if not serial(certificate):
        return 365
    found = _loaded(certificate)
    return max(1, round((found.not_valid_after_utc - found.not_valid_before_utc - _CLOCK_SKEW) / timedelta(days=1)))


def serial(certificate: str) -> str:
    """Return the serial number of a PEM certificate in decimal digits, as pg_stat_ssl shows it; empty if it is none."""
    try:
        return str(_loaded(certificate).serial_number)
    except ValueError:
        return ""


def flaw(pair: KeyPair, authorities: str) -> str:
    """Return what is wrong with a certificate, as the end of a sentence about it, whenever it expires; or nothing.

    Args:
        pair: the certificate and its key.
        authorities: PEM, of which one is to have signed it.
    """
    try:
        found, key = _loaded(pair.certificate), serialization.load_pem_private_key(pair.key.encode(), password=None)
    except (ValueError, TypeError):
        return "cannot be read, or its key cannot"
    if found.public_key() != key.public_key():
        return "does not belong to its key"
    if not any(_has_signed(authority, found) for authority in _each(authorities)):
        return "was signed by no authority that is trusted there"
    if found.not_valid_before_utc > datetime.now(UTC):
        return f"is not valid before {found.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    return ""


def _has_signed(authority: str, found: x509.Certificate) -> bool:
    """Tell whether an authority, PEM, has signed a certificate. One that cannot be read has not."""
    try:
        found.verify_directly_issued_by(_loaded(authority))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def is_newer(one: str, other: str) -> bool:
    """Tell whether a PEM certificate was issued after another by the same authority, or by a successor of its."""
    first, second = _loaded(one), _loaded(other)
    return first.issuer == second.issuer and first.not_valid_before_utc > second.not_valid_before_utc


def trusting(authority: str, before: str) -> str:
    """Return what is trusted, PEM: an authority, and those that were trusted before and have not expired."""
    return "".join([authority, *(c for c in _each(before) if c != authority and expires(c) > datetime.now(UTC))])


def with_crosses(server: str, before: str) -> str:
    """Return what a server shows, PEM: its certificate, and the cross certificates that it showed before."""
    return "".join([server, *(c for c in _each(before)[1:] if expires(c) > datetime.now(UTC))])


def renewed(there: Mapping[str, str], address: str, days: int, *, authority: bool) -> dict[str, str]:
    """Return the files of a server's `tls` folder with new certificates; what was trusted before still is.

    Args:
        there: those files as they are, by name.
        address: that clients connect to.
        days: for which the new certificates are valid, at most as long as the authority is.
        authority: whether the authority is to be another, too.
    """
    signer, cross = KeyPair(there["ca.crt"], there["ca.key"]), ""
    if authority:
        signer, cross = succeed(signer)
    server, replication = (
        make_server(signer, address, days),
        make_client(signer, role(there["replication.crt"]), days, before=there["replication.crt"]),
    )
    return {
        "trusted.crt": trusting(signer.certificate, there["trusted.crt"]),
        "ca.crt": signer.certificate,
        "ca.key": signer.key,
        "server.crt": with_crosses(server.certificate + cross, there["server.crt"]),
        "server.key": server.key,
        "replication.crt": replication.certificate,
        "replication.key": replication.key,
    }


def serves(pair: KeyPair | None, address: str | None = None) -> bool:
    """Tell whether a certificate is there, has not expired, and names an address if one is given."""
    if pair is None or expires(pair.certificate) <= datetime.now(UTC):
        return False
    return address is None or _is_for(pair.certificate, address)


def _is_for(certificate: str, address: str) -> bool:
    names = _loaded(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return address in names.value.get_values_for_type(x509.DNSName)


def _issued(
    authority: KeyPair,
    common_name: str,
    lifetime_days: int,
    purpose: x509.ObjectIdentifier,
    alternatives: x509.SubjectAlternativeName | None,
    *,
    after: datetime | None = None,
) -> KeyPair:
    issuer, signer = _loaded(authority.certificate), _key(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    lifetime = min(timedelta(days=lifetime_days), issuer.not_valid_after_utc - datetime.now(UTC))
    builder = (
        _builder(common_name, key, lifetime, after)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**{**_NO_USAGE, "digital_signature": True}), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    )
    if alternatives is not None:
        builder = builder.add_extension(alternatives, critical=False)
    return _signed(_vouched(builder, signer), key, signer)


def _as_authority(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    # No bound on the path: some clients count a cross certificate, though its name is that of its issuer.
    usage = x509.KeyUsage(**{**_NO_USAGE, "key_cert_sign": True, "crl_sign": True})
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).add_extension(
        usage, critical=True
    )


def _vouched(builder: x509.CertificateBuilder, signer: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    # By the key, since an authority and its successor have one name.
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return builder.add_extension(identifier, critical=False)


def _loaded(certificate: str) -> x509.Certificate:
    """Load the first certificate of a PEM text."""
    return x509.load_pem_x509_certificate(certificate.encode())


def _key(pair: KeyPair) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pair.key.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        msg = f"the authority's key is a {type(key).__name__}; expected an elliptic-curve key"
        raise TypeError(msg)
    return key


def _each(certificates: str) -> list[str]:
    """Return the certificates of a PEM text one by one."""
    return [part + _END for part in certificates.split(_END) if part.strip()]


def _builder(
    common_name: str, key: ec.EllipticCurvePrivateKey, lifetime: timedelta, after: datetime | None = None
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    begin = now - _CLOCK_SKEW
    if after is not None:
        begin = max(begin, min(after + timedelta(seconds=1), now))
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
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
