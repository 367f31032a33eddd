"""The HSM: ES256 keys inside one PKCS#11 token, reached through its vendor's module.

Generates, finds, signs, destroys and counts keys. It is not a key registry: which key belongs
to which credential is the store's to know, and nothing is concluded here from a key's absence.
Not asynchronous either: a call blocks until the module answers, and a call that hangs can only
be ended with its process.

- `Hsm`: the one login of a process, for the keeper's slow work; lends out `Session`s.
- `Session`: one signing thread's own PKCS#11 session and key handles; the fast path.
- A key is named by its CKA_ID: 16 bytes beginning with `kmsd`, written as 32 lower-case hex
  digits, chosen with `new_key_id` and stored before the key exists. Objects without that
  prefix are foreign: counted, never touched.

PKCS#11 v2.40; signatures are CKM_ECDSA over a SHA-256 digest, r||s (RFC 7518 section 3.4).
python-pkcs11 is known to this package alone.
"""

from kmsd.hsm.keys import Info, Inventory, new_key_id
from kmsd.hsm.session import Handle, Session
from kmsd.hsm.token import Hsm

__all__ = ["Handle", "Hsm", "Info", "Inventory", "Session", "new_key_id"]
