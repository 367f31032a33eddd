"""What the keeper remembers: credentials, accounts, trust material, the epoch, the journal.

Persistence only: it decides nothing, signs nothing, and holds no private key. (The place
where chains are public is the `repository`.) Calls block; the keeper makes them in a thread.
"""

from kmsd.store.agenda import Known, Spare
from kmsd.store.election import Term
from kmsd.store.journal import Event
from kmsd.store.records import Store

__all__ = ["Event", "Known", "Spare", "Store", "Term"]
