"""A hostile STI-PA, STI-CA and STI-CR on loopback HTTPS, for the demo and for tests.

The second reading of the standards: it imports nothing of kmsd and shares no code with it, so
that a mistake has to be made twice, by different hands, to go unseen. Not for production: its
keys lie in files, and it forgets its accounts and orders when it stops.

    with running_lab(folder, spcs=["1234"], calm=True) as lab:
        lab.facts.ca_directory
        lab.set(chain="wrong_spc")
"""

from kmsd.lab.server import Facts, Lab, running_lab
from kmsd.lab.switches import Switches
from kmsd.lab.tls import TlsAuthority, TlsFiles

__all__ = ["Facts", "Lab", "Switches", "TlsAuthority", "TlsFiles", "running_lab"]
