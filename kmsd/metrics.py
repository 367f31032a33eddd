"""A signer's numbers for Prometheus: a file in its text format, written anew every few seconds.

A signer has no network of its own and no port but that for signatures, so it is not scraped:
node_exporter's textfile collector reads `<run>/metrics/signer-N.prom`, one file a signer. Each
series carries the label `signer`, because that collector refuses two files with the same series.
No telephone number, caller or credential is in it, so anybody on the host may read it.
Nothing here is for the event loop: making the text takes about a millisecond.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from kmsd.counters import BOUNDS, Totals
from kmsd.model import Value


class State(Value, frozen=True):
    """How a signer is at one moment.

    started_at: seconds UTC. epoch: presence.NOT_SERVING before there is one. profiles: how many it
    can sign for; unusable: how many it cannot sign for with their newest key. waiting: signatures
    that the HSM owes. hsm_seconds: what one takes a session of the HSM of late, 0.0 before the
    first. cpu_seconds: that the process has used.
    """

    serving: bool
    started_at: int
    epoch: int
    cpu_seconds: float
    profiles: int = 0
    unusable: int = 0
    waiting: int = 0
    hsm_seconds: float = 0.0


class MetricsFile:
    """The file of one signer. Its methods may be called by any thread."""

    def __init__(self, run: Path, signer: int) -> None:
        self._path = run / "metrics" / f"signer-{signer}.prom"
        self._signer = signer
        self._turn = Lock()
        self._removed = False

    def write(self, state: State, totals: Totals) -> None:
        """Replaces the file; a reader sees the old or the new one. Raises OSError."""
        text = rendered(self._signer, state, totals)
        with self._turn:
            if self._removed:
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new = self._path.with_suffix(".new")  # whose name the collector does not read
            new.write_bytes(text)
            os.chmod(new, 0o644)  # whatever the umask: node_exporter has a user of its own
            new.replace(self._path)

    def remove(self) -> None:
        """The signer ends: a file that stays is read as one that goes on. Nothing is written any
        more."""
        with self._turn:
            self._removed = True
            with suppress(OSError):
                self._path.unlink()


def rendered(signer: int, state: State, totals: Totals) -> bytes:
    """The text (Prometheus text exposition format 0.0.4)."""
    return generate_latest(_Collected(families(signer, state, totals)))


def families(signer: int, state: State, totals: Totals) -> Iterator[Metric]:
    """Every metric of a signer; kmsd/metrics.md lists them."""
    who = str(signer)

    def gauge(name: str, about: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"kmsd_signer_{name}", about, labels=["signer"])
        family.add_metric([who], value)
        return family

    def counter(
        name: str, about: str, label: str, values: dict[str, float] | dict[str, int]
    ) -> Metric:
        labels = ["signer", label] if label else ["signer"]
        family = CounterMetricFamily(f"kmsd_signer_{name}", about, labels=labels)
        for key, value in values.items():
            family.add_metric([who, key][: len(labels)], value)
        return family

    signatures = CounterMetricFamily(
        "kmsd_signer_signatures",
        "PASSporTs signed, by type and attestation (empty for types that have none)",
        labels=["signer", "type", "attest"],
    )
    for (ppt, attest), count in totals.signed.items():
        signatures.add_metric([who, ppt, attest], count)
    yield signatures
    yield counter(
        "profile_signatures",
        "PASSporTs signed, by profile; left out where more than 100 profiles are configured",
        "profile",
        totals.by_profile,
    )
    yield counter(
        "refused",
        "PASSporTs that got no signature, by the reason they were refused for",
        "reason",
        totals.refused,
    )
    yield counter(
        "requests",
        "Calls of Sign, and frames of SignStream",
        "method",
        {"Sign": totals.calls, "SignStream": totals.frames},
    )
    answers = HistogramMetricFamily(
        "kmsd_signer_answer_seconds",
        "From the arrival of a call or frame to its answer; those refused whole are not in it",
        labels=["signer"],
    )
    bounds = (*map(str, BOUNDS), "+Inf")
    answers.add_metric([who], list(zip(bounds, totals.took, strict=True)), totals.seconds)
    yield answers
    yield gauge("streams", "SignStream calls that are open", totals.streams)
    yield gauge("waiting", "Signatures that wait for the HSM or are being made", state.waiting)
    yield gauge(
        "hsm_seconds",
        "What one signature takes a session of the HSM of late; 0 before the first",
        state.hsm_seconds,
    )
    yield gauge("serving", "1 when it signs, 0 when it refuses every call", state.serving)
    yield gauge("epoch", "Epoch of the keyring it signs under; -1 when it has none", state.epoch)
    yield gauge("profiles", "Profiles it can sign for", state.profiles)
    yield gauge(
        "profiles_unusable",
        "Profiles whose newest key it cannot sign with",
        state.unusable,
    )
    yield gauge("start_time_seconds", "When it was started, Unix time", state.started_at)
    yield counter("cpu_seconds", "CPU time it has used", "", {"": state.cpu_seconds})


class _Collected(Collector):
    """Families as the library wants to be given them."""

    def __init__(self, families: Iterator[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return self._families
