"""kmsd: the key room of a SHAKEN provider (SP-KMS and SKS) with its keys in an HSM."""

__version__ = "0.1.0"
