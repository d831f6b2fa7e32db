"""librdkafka's properties for security, for the monitor's client."""

from __future__ import annotations

import pytest
from faust.types.auth import AuthProtocol

from audit.credentials import credentials, unknown
from schemas.errors import BadSetting

PLAIN = {"sasl.mechanism": "PLAIN", "sasl.username": "u", "sasl.password": "p"}


@pytest.mark.parametrize(("options", "protocol"), [
    ({}, None),
    ({"security.protocol": "PLAINTEXT"}, None),
    ({"security.protocol": "ssl"}, AuthProtocol.SSL),
    ({"security.protocol": "sasl_plaintext", **PLAIN}, AuthProtocol.SASL_PLAINTEXT),
    ({"security.protocol": "SASL_SSL", "sasl.mechanisms": "SCRAM-SHA-512"}, AuthProtocol.SASL_SSL),
    ({"security.protocol": "sasl_ssl"}, AuthProtocol.SASL_SSL),
])  # fmt: skip
def test_known_ones(options: dict[str, str], protocol: AuthProtocol | None) -> None:
    found = credentials(options)
    assert (found and found.protocol) == protocol


def test_certificates_are_checked_unless_it_is_said_that_they_are_not() -> None:
    strict = credentials({"security.protocol": "ssl"})
    lax = credentials({"security.protocol": "ssl", "enable.ssl.certificate.verification": "false"})
    anywhere = credentials({"security.protocol": "ssl", "ssl.endpoint.identification.algorithm": "none"})
    contexts = [each.context for each in (strict, lax, anywhere)]  # type: ignore[union-attr]
    assert [(each.check_hostname, int(each.verify_mode)) for each in contexts] == [(True, 2), (False, 0), (False, 2)]


@pytest.mark.parametrize(("options", "word"), [
    ({"security.protocol": "tls"}, "security.protocol"),
    ({"security.protocol": "sasl_ssl", "sasl.mechanism": "OAUTHBEARER"}, "sasl.mechanism"),
    ({"security.protocol": "ssl", "ssl.ca.location": "/nowhere.pem"}, "ssl.ca.location"),
])  # fmt: skip
def test_wrong_ones_are_named(options: dict[str, str], word: str) -> None:
    with pytest.raises(BadSetting, match=word):
        credentials(options)


def test_others_are_left_out_by_name() -> None:
    assert unknown({"socket.timeout.ms": "1", **PLAIN}) == ["socket.timeout.ms"]
