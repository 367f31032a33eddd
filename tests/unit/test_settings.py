"""The presets are the matrix of field practice: STI-CA products against the RFCs."""

import pytest

from kmsd.errors import Misconfigured
from kmsd.settings import PRESETS, Configuration, Issuer, Repository, staged, with_staging

DIRECTORY = "https://ca.example/directory"

# A copy of the matrix by setting: rfc, peeringhub, martini, acme2certifier.
MATRIX = {
    "tnauthlist_encoding": ("base64url", "base64", "base64", "base64"),
    "challenge_field": ("tkauth", "atc", "atc", "atc"),
    "fingerprint_kind": ("jwk-thumbprint", "spki", "spki", "jwk-thumbprint"),
    "fingerprint_case": ("upper", "upper", "upper", "upper"),
    "empty_payload_signing": ("standard", "protected_only", "standard", "standard"),
    "csr_subject": ("template", "template", "empty", "template"),
    "csr_crldp": ("none", "none", "uri+issuer", "none"),
    "x5u_source": ("own", "own", "issuer", "own"),
    "poll_target": ("authorization", "order", "order", "authorization"),
}


@pytest.mark.parametrize(
    ("index", "preset"), [(0, "rfc"), (1, "peeringhub"), (2, "martini"), (3, "acme2certifier")]
)
def test_a_preset_is_its_column_of_the_matrix(index: int, preset: str) -> None:
    rules = Issuer(directory=DIRECTORY, preset=preset).resolved()
    assert {name: str(getattr(rules, name)) for name in MATRIX} == {
        name: row[index] for name, row in MATRIX.items()
    }
    assert bool(rules.jwk_kid) == (preset in ("peeringhub", "martini"))
    assert "application/pem-certificate-chain" in rules.chain_media_types
    assert ("application/pem" in rules.chain_media_types) == (preset == "peeringhub")


def test_the_matrix_has_all_presets() -> None:
    assert set(PRESETS) == {"rfc", "peeringhub", "martini", "acme2certifier"}


def test_single_settings_go_over_the_preset() -> None:
    issuer = Issuer(
        directory=DIRECTORY, preset="martini", rules={"x5u_source": "own", "validity_days": 7}
    )
    rules = issuer.resolved()
    assert (rules.x5u_source, rules.validity_days) == ("own", 7)
    assert rules.challenge_field == "atc"


def test_an_unknown_preset_or_rule_is_the_operators_to_correct() -> None:
    with pytest.raises(Misconfigured) as refusal:
        Issuer(directory=DIRECTORY, preset="rcf").resolved()
    assert refusal.value.reason == "PRESET_UNKNOWN"
    for rules in ({"challenge": "atc"}, {"challenge_field": "token"}, {"validity_days": "7"}):
        with pytest.raises(Misconfigured) as refusal:
            Issuer(directory=DIRECTORY, rules=dict(rules)).resolved()
        assert refusal.value.reason == "RULES_INVALID"


def test_a_staging_service_is_an_sti_ca_of_its_own() -> None:
    configuration = Configuration(
        repository=Repository(public_url="https://cr.example/"),
        authorities={},
        issuers={
            "plain": Issuer(directory=DIRECTORY),
            "both": Issuer(directory=DIRECTORY, staging_directory="https://ca.example/staging"),
        },
        profiles={},
    )
    assert staged(configuration, ("plain", "both")) == ("both/staging",)
    issuers = with_staging(configuration).issuers
    assert set(issuers) == {"plain", "both", "both/staging"}
    assert issuers["both/staging"].directory == "https://ca.example/staging"
    assert issuers["both"].directory == DIRECTORY
