"""kmsd.toml and the secrets it points to: read, checked as a whole, and made definite.

`load` gives a configuration in which every path is absolute and every default is filled in,
or says everything that is wrong with the file at once. What the configuration points at
(files, hosts, the HSM) is not touched here: that is `kmsd check`. The settings themselves
are in `settings`.
"""

from kmsd.config.reading import LIMIT, InvalidConfiguration, load
from kmsd.config.rules import warnings
from kmsd.config.secrets import anew, mac_key, secret

__all__ = ["LIMIT", "InvalidConfiguration", "anew", "load", "mac_key", "secret", "warnings"]
