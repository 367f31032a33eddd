"""The issuer: an STI-CA reached by ACME (RFC 8555) for TNAuthList certificates (RFC 9448).

`client` is what the keeper uses; below it `tkauth` (what is special about STI-CAs),
`transport` (signed requests, nonces), `problems` (errors) and `messages` (what is on the wire).
No account, order or key is kept here: the store has their URLs, the HSM has the keys.
"""
