"""librdkafka's properties for security, for aiokafka: kafka_options holds for the monitor, too."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from faust.auth import GSSAPICredentials, SASLCredentials, SSLCredentials

from schemas.errors import BadSetting

KNOWN = frozenset(
    {
        "security.protocol", "sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.password",
        "sasl.kerberos.service.name", "ssl.ca.location", "ssl.certificate.location", "ssl.key.location",
        "ssl.key.password", "enable.ssl.certificate.verification", "ssl.endpoint.identification.algorithm",
    }
)  # fmt: skip
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI")
Credentials = SSLCredentials | SASLCredentials | GSSAPICredentials


def unknown(options: Mapping[str, str]) -> list[str]:
    """The properties that concern security, or might, and say nothing to the monitor's client."""
    return sorted(name for name in options if name not in KNOWN)


def credentials(options: Mapping[str, str]) -> Credentials | None:
    """None for plain text. Raises BadSetting."""
    protocol = options.get("security.protocol", "plaintext").lower()
    context = _context(options) if protocol.endswith("ssl") else None
    if protocol == "plaintext":
        return None
    if protocol == "ssl":
        return SSLCredentials(context)
    if protocol not in ("sasl_plaintext", "sasl_ssl"):
        raise BadSetting(f"kafka_options: security.protocol = {protocol!r}; write plaintext, ssl, sasl_plaintext or "
                         "sasl_ssl")  # fmt: skip
    mechanism = (options.get("sasl.mechanism") or options.get("sasl.mechanisms") or "GSSAPI").upper()
    if mechanism not in MECHANISMS:
        raise BadSetting(f"kafka_options: sasl.mechanism = {mechanism!r}: the monitor knows {', '.join(MECHANISMS)}")
    if mechanism == "GSSAPI":
        service = options.get("sasl.kerberos.service.name", "kafka")
        return GSSAPICredentials(kerberos_service_name=service, ssl_context=context)
    return SASLCredentials(
        username=options.get("sasl.username"), password=options.get("sasl.password"), ssl_context=context,
        mechanism=mechanism,
    )  # fmt: skip


def _context(options: Mapping[str, str]) -> ssl.SSLContext:
    """Server certificates are checked unless it is said that they are not, as in librdkafka."""
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=options.get("ssl.ca.location"))
        if certificate := options.get("ssl.certificate.location"):
            context.load_cert_chain(certificate, options.get("ssl.key.location"), options.get("ssl.key.password"))
    except (OSError, ssl.SSLError) as err:
        raise BadSetting(f"kafka_options: ssl.ca.location, ssl.certificate.location, ssl.key.location: {err}") from err
    context.check_hostname = options.get("ssl.endpoint.identification.algorithm", "https").lower() != "none"
    if options.get("enable.ssl.certificate.verification", "true").lower() == "false":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
