"""From a loaded module to a logged-in token: find it, see that it can do the work, log in once."""

from contextlib import suppress

import pkcs11
from pkcs11 import PKCS11Error, TokenFlag

from kmsd.errors import Misconfigured, Unavailable
from kmsd.hsm import keys
from kmsd.hsm.cryptoki import Module
from kmsd.hsm.failures import translate


def find_token(module: Module, label: str) -> pkcs11.Token:
    """The token with that label.

    Raises Unavailable("HSM_TOKEN_MISSING") with the labels there are, and Misconfigured when
    several bear it.
    """
    tokens = []
    for slot in module.library.get_slots(token_present=True):
        with suppress(PKCS11Error):  # one broken slot of several is not our token's loss
            tokens.append(slot.get_token())
    present = sorted({token.label for token in tokens if token.label})
    match [token for token in tokens if token.label == label.rstrip()]:
        case [token]:
            return token
        case []:
            raise Unavailable(
                "HSM_TOKEN_MISSING",
                f"There is no token {label!r}; the module shows: {', '.join(present) or 'none'}.",
                next_step="Connect the HSM, or correct hsm.token or hsm.environment.",
                token=label,
                present=", ".join(present),
            )
        case several:
            raise Misconfigured(
                "HSM_TOKEN_AMBIGUOUS",
                f"There are {len(several)} tokens labelled {label!r}.",
                next_step="Give the tokens different labels.",
                token=label,
            )


def check_mechanisms(token: pkcs11.Token) -> None:
    """Raises Misconfigured when the token cannot make or use P-256 signing keys."""
    missing = {keys.ECDSA, keys.EC_KEY_PAIR_GEN} - token.slot.get_mechanisms()
    if missing:
        names = ", ".join(sorted(f"CKM_{mechanism.name}" for mechanism in missing))
        raise Misconfigured(
            "HSM_MECHANISM_REFUSED",
            f"The token {token.label!r} lacks {names}.",
            next_step="kmsd needs ECDSA on P-256 with the hash made outside the HSM.",
            token=token.label,
            mechanisms=names,
        )


def log_in(token: pkcs11.Token, pin: str) -> pkcs11.Session:
    """The guardian session: the one whose closing logs the process out.

    The PIN is tried once, and not at all when the token would lock at a wrong one: a process
    that is restarted for its wrong PIN must not lock the token for everybody.
    Raises Misconfigured("HSM_PIN_..."), and PKCS#11 errors for the caller to translate.
    """
    for flag, reason, sentence in _PIN_LATCHES:
        if token.flags & flag:
            raise Misconfigured(
                reason,
                f"The token {token.label!r} {sentence}",
                next_step="Log in by hand with the right PIN and the vendor's program.",
                token=token.label,
            )
    try:
        return token.open(user_pin=pin)
    except pkcs11.UserAlreadyLoggedIn:  # left from elsewhere; a probe tells what it is worth
        return token.open()
    except UnicodeEncodeError:  # its text shows the PIN
        raise translate(pkcs11.PinInvalid(), token.label) from None


_PIN_LATCHES = (
    (TokenFlag.USER_PIN_LOCKED, "HSM_PIN_LOCKED", "has its PIN locked."),
    (
        TokenFlag.USER_PIN_FINAL_TRY,
        "HSM_PIN_FINAL_TRY",
        "locks at the next wrong PIN, so kmsd does not try one.",
    ),
)
