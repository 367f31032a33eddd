"""The STI-CR of the lab: chains as they are, and nothing else."""

from pathlib import Path

import httpx
import pytest
from cryptography import x509

from kmsd.lab import Lab
from tests.lab.parties import enroll

CHAIN = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def test_a_chain_is_served_byte_for_byte(lab: Lab, client: httpx.Client) -> None:
    folder = Path(lab.facts.cr_dir)
    (folder / "1234").mkdir(exist_ok=True)
    for name in ("a.pem", "1234/b.pem"):
        (folder / name).write_bytes(CHAIN)
        answer = client.get(lab.facts.cr_url + name)
        assert (answer.status_code, answer.content) == (200, CHAIN)
        assert answer.headers["content-type"] == "application/pem-certificate-chain"
        assert answer.headers["cache-control"] == "public, max-age=604800"


@pytest.mark.parametrize(
    "path", ["", "nothing.pem", "notes.txt", "..%2flab.json", "..%2fpki%2fca.crt", "../lab.json"]
)
def test_nothing_but_chains_in_the_folder_is_there(
    lab: Lab, client: httpx.Client, path: str
) -> None:
    (Path(lab.facts.cr_dir) / "notes.txt").write_text("not for you")
    assert client.get(lab.facts.cr_url + path).status_code == 404


def test_a_link_out_of_the_folder_is_not_followed(lab: Lab, client: httpx.Client) -> None:
    link = Path(lab.facts.cr_dir) / "link.pem"
    outside = Path(lab.facts.cr_dir).parent / "outside.pem"
    outside.write_bytes(CHAIN)
    link.symlink_to(outside)
    assert client.get(f"{lab.facts.cr_url}link.pem").status_code == 404


def test_a_private_key_is_never_served(
    lab: Lab, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    key = Path(lab.facts.pa_root).with_name("ca.key").read_bytes()
    (Path(lab.facts.cr_dir) / "key.pem").write_bytes(CHAIN + key)
    answer = client.get(f"{lab.facts.cr_url}key.pem")
    assert answer.status_code == 500
    assert b"BEGIN" not in answer.content
    assert "private_key_not_served path=/cr/key.pem" in caplog.text


def test_the_authority_hosts_chains_without_keys_too(lab: Lab, client: httpx.Client) -> None:
    lab.set(order_x5u=True)
    good = enroll(lab, client)
    hosted = client.get(good.order["x5u"]).content
    assert hosted != good.download.content  # the same certificates in another text
    assert x509.load_pem_x509_certificates(hosted) == good.chain
    lab.set(chain="private_key")
    assert client.get(enroll(lab, client).order["x5u"]).status_code == 500
    assert client.get(good.order["x5u"].replace("/hosted/", "/hosted/0")).status_code == 404
