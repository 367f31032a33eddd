"""Many keys on a token at once: `python -m tests.bench.keys COUNT`, the [hsm] table as JSON on
its standard input. Says the keys as JSON: CKA_ID and SHA-256 of the SubjectPublicKeyInfo, hex.

kmsd itself looks for a key before it makes it and tries it afterwards; a thousand of those
take a minute, and here they take seconds. The attributes are kmsd's.
"""

import hashlib
import os
import sys
from pathlib import Path

import msgspec
import pkcs11

from kmsd import settings
from kmsd.hsm import keys


def main(hsm: settings.Hsm, count: int) -> list[tuple[str, str]]:
    os.environ.update(hsm.environment)
    token = pkcs11.lib(hsm.module).get_token(token_label=hsm.token)
    made = []
    with token.open(rw=True, user_pin=Path(hsm.pin).read_text().strip()) as session:
        domain = session.create_domain_parameters(
            pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: keys.P256}, local=True
        )
        for number in range(count):
            key_id = keys.new_key_id()
            public, _ = domain.generate_keypair(
                id=bytes.fromhex(key_id),
                label=f"bench {number}",
                store=True,
                capabilities=pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY,
                mechanism=keys.EC_KEY_PAIR_GEN,
                private_template=keys.private_template({}),
            )
            spki = keys.public_key_of(public)
            assert spki is not None
            made.append((key_id, hashlib.sha256(spki).hexdigest()))
    return made


if __name__ == "__main__":
    table = msgspec.json.decode(sys.stdin.buffer.read(), type=settings.Hsm)
    sys.stdout.buffer.write(msgspec.json.encode(main(table, int(sys.argv[1]))))
