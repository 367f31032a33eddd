"""What a real signer says of itself: numbers in its file, and one trace in so many answers."""

import re
import signal
from pathlib import Path

import pytest
from kmsd_client import AsyncClient, Base, Passport, Refused, Shaken, Signed, Tls
from prometheus_client.parser import text_string_to_metric_families

from tests.system.programs import until
from tests.system.signing_host import SigningHost

ORIG, DEST = "12015550101", "12025550102"
WRONG = Shaken("not a number", DEST, "A")
TRACE_EVERY = 5


@pytest.fixture
def host(tmp_path: Path) -> SigningHost:
    host = SigningHost(tmp_path)
    text = host.config.read_text()
    host.config.write_text(text.replace("[signer]\n", f"[signer]\ntrace_every = {TRACE_EVERY}\n"))
    host.activate(host.entry(host.key()))
    return host


def metrics(host: SigningHost) -> dict[tuple[str, ...], float]:
    """The signer's file: name and label values, without that of `signer`, to value."""
    path = host.folder / "run" / "metrics" / "signer-1.prom"
    if not path.exists():
        return {}
    found = {}
    for family in text_string_to_metric_families(path.read_text()):
        for sample in family.samples:
            assert sample.labels.pop("signer") == "1"
            found[sample.name.removeprefix("kmsd_signer_"), *sample.labels.values()] = sample.value
    return found


def client_of(host: SigningHost, name: str) -> AsyncClient:
    files = host.caller(name)
    tls = Tls(ca=files.ca, certificate=files.certificate, key=files.key)
    return AsyncClient(f"localhost:{host.port}", tls=tls, profile="acme", timeout=5)


async def test_the_file_says_what_was_signed_and_refused_and_goes_with_the_signer(
    host: SigningHost,
) -> None:
    with host.signer() as process:
        host.until_serving()
        async with client_of(host, "as1") as client:
            frame: list[Passport] = [
                Shaken(ORIG, DEST, "A"),
                WRONG,
                Shaken(ORIG, DEST, "B"),
                Base(ORIG, DEST),
            ]
            outcomes = await client.sign_many(frame)
            assert [type(one) for one in outcomes] == [Signed, Refused, Signed, Signed]
        async with client_of(host, "as2") as client:
            with pytest.raises(Refused, match="granted attestation A"):
                await client.sign_shaken(ORIG, DEST, "A")
        until("the file says so", lambda: metrics(host).get(("signatures_total", "A", "shaken")))
        said = metrics(host)
        process.send_signal(signal.SIGTERM)
        until("it ends", lambda: process.poll() is not None)
    assert said["signatures_total", "A", "shaken"] == 1
    assert said["signatures_total", "B", "shaken"] == 1
    assert said["signatures_total", "", "base"] == 1
    assert said["profile_signatures_total", "acme"] == 3
    refused = {key[1]: count for key, count in said.items() if key[0] == "refused_total"}
    assert refused == {"TN_INVALID": 1, "ATTEST_NOT_GRANTED": 1}
    assert said["answer_seconds_bucket", "+Inf"] == said["answer_seconds_count",]
    assert 0 < said["answer_seconds_sum",] < 60
    assert said["epoch",] == host.keyring.epoch
    assert said["serving",] == said["profiles",] == 1
    assert said["waiting",] == said["profiles_unusable",] == 0
    assert said["hsm_seconds",] > 0
    assert metrics(host) == {}


async def test_one_answer_in_so_many_is_traced_without_a_number_or_an_identity(
    host: SigningHost,
) -> None:
    with host.signer():
        host.until_serving()
        async with client_of(host, "as1") as client:
            for _ in range(2 * TRACE_EVERY + 1):
                await client.sign_many([Shaken(ORIG, DEST, "A"), WRONG])
        until("the last is written", lambda: len(traces(host)) >= 3)
    lines = traces(host)
    assert len(lines) == 3
    for line in lines:
        assert re.search(r"\bprofile=acme epoch=\d+ sequence=\d+ caller=tls items=2 signed=1", line)
        stages = dict(re.findall(r"(\w+)_us=(\d+)", line))
        assert stages.keys() == {"draft", "hsm", "answer"}
        assert all(int(took) > 0 for took in stages.values())
        for secret in (ORIG, DEST, "eyJ", "spiffe", "not a number"):
            assert secret not in line


async def test_a_signer_whose_metrics_cannot_be_written_says_so_once_and_signs(
    host: SigningHost,
) -> None:
    (host.folder / "run").mkdir()
    (host.folder / "run" / "metrics").write_text("in the way")
    with host.signer():
        host.until_serving()
        async with client_of(host, "as1") as client:
            await client.sign_shaken(ORIG, DEST, "A")
        until("it says so", lambda: "metrics_not_written" in host.log())
    assert host.log().count("metrics_not_written") == 1


def traces(host: SigningHost) -> list[str]:
    return [line for line in host.log().splitlines() if " event=trace " in line]
