"""What another process does on the same token, as a program of its own.

    python -m tests.contract.other_process < REQUEST

REQUEST is JSON: {"settings": settings.Hsm, "do": a name below, "key": id, ...}. The answer on
standard output is JSON.
"""

import sys
import threading
from hashlib import sha256
from typing import Any

import msgspec
import pkcs11
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass

from kmsd import hsm, settings
from kmsd.hsm.keys import ECDSA, P256, verifies
from tests.softhsm import pin_of


class Request(msgspec.Struct):
    """What to do. key: id of a key of ours. half: "private" or "public"."""

    settings: settings.Hsm
    do: str
    key: str = ""
    half: str = ""
    threads: int = 0
    signatures: int = 0
    template: dict[str, bool] = {}


def generate(request: Request, device: hsm.Hsm) -> str:
    """Makes a key as the keeper does; its DER public key in hex."""
    return device.generate(request.key, "made elsewhere", 1).public_key.hex()


def destroy(request: Request, device: hsm.Hsm) -> None:
    public_key = device.public_key(request.key)
    assert public_key is not None
    device.destroy(request.key, public_key)


def remove_half(request: Request, device: hsm.Hsm) -> None:
    kind = ObjectClass.PRIVATE_KEY if request.half == "private" else ObjectClass.PUBLIC_KEY
    with device._token.open(rw=True) as session:
        (found,) = session.get_objects(
            {Attribute.CLASS: kind, Attribute.ID: bytes.fromhex(request.key)}
        )
        found.destroy()


def put(request: Request, device: hsm.Hsm) -> str:
    """Makes a key pair as another program would, with attributes kmsd does not want."""
    with device._token.open(rw=True) as session:
        return _make_pair(session, bytes.fromhex(request.key), request.template).hex()


def put_foreign(request: Request, device: hsm.Hsm) -> None:
    """Three objects of other programs: a key pair and a piece of data."""
    with device._token.open(rw=True) as session:
        _make_pair(session, b"another program", {})
        session.create_object(
            {
                Attribute.CLASS: ObjectClass.DATA,
                Attribute.TOKEN: True,
                Attribute.LABEL: "someone's",
                Attribute.VALUE: b"data",
            }
        )


def hammer(request: Request, device: hsm.Hsm) -> int:
    """Signs on several threads with two sessions each; how many signatures verify."""
    public_key = device.public_key(request.key)
    assert public_key is not None
    spki = sha256(public_key).hexdigest()
    good: list[bool] = []

    def work(number: int) -> None:
        sessions = [device.session(), device.session()]
        handles = [session.load(request.key, spki) for session in sessions]
        for turn in range(request.signatures):
            digest = sha256(f"{number} {turn}".encode()).digest()
            signature = sessions[turn % 2].sign(handles[turn % 2], digest)
            good.append(verifies(public_key, digest, signature))
        for session in sessions:
            session.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(request.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(good)


def _make_pair(session: Any, identifier: bytes, template: dict[str, bool]) -> bytes:
    domain = session.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: P256}, local=True)
    public, private = domain.generate_keypair(
        id=identifier,
        label="not kmsd's",
        store=True,
        capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
        mechanism=pkcs11.Mechanism.EC_KEY_PAIR_GEN,
        private_template={Attribute.SIGN_RECOVER: False}
        | {Attribute[name]: value for name, value in template.items()},
    )
    assert len(private.sign(b"d" * 32, mechanism=ECDSA)) == 64
    der = hsm.keys.public_key_of(public)
    assert der is not None
    return der


def main() -> None:
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    known = (generate, destroy, remove_half, put, put_foreign, hammer)
    (do,) = (function for function in known if function.__name__ == request.do)
    with hsm.Hsm.open(request.settings, pin_of(request.settings)) as device:
        answer = do(request, device)
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
