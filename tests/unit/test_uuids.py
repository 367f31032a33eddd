"""The origid that a signer makes."""

from uuid import RFC_4122, UUID

from kmsd.uuids import new_uuid


def test_a_new_origid_is_a_random_uuid_of_rfc_4122() -> None:
    made = [new_uuid() for _ in range(1000)]
    assert len(set(made)) == 1000
    for text in made:
        uuid = UUID(text)
        assert (str(uuid), uuid.version, uuid.variant) == (text, 4, RFC_4122)
