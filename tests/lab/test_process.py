"""The lab as a process and as a folder."""

import ast
import json
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from cryptography import x509

import kmsd.lab
from kmsd.lab import running_lab
from tests.lab.parties import web


def test_it_says_where_it_is_and_ends_with_a_signal(tmp_path: Path) -> None:
    folder, chains = tmp_path / "lab", tmp_path / "chains"
    options = f"--folder {folder} --cr-dir {chains} --spc 709J --calm"
    more = "--tls-server signer --tls-client sti-as"
    process = subprocess.Popen(
        [sys.executable, "-m", "kmsd.lab", *options.split(), *more.split()],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == str(folder / "lab.json")
        facts = json.loads((folder / "lab.json").read_text())
        assert facts["pid"] == process.pid
        assert facts["spcs"] == ["709J"]
        assert facts["cr_dir"] == str(chains)
        context = ssl.create_default_context(cafile=facts["tls_ca"])
        directory = httpx.get(facts["ca_directory"], verify=context, trust_env=False).json()
        assert directory["newOrder"].startswith("https://localhost:")
    finally:
        process.send_signal(signal.SIGTERM)
        with process:
            assert process.wait(10) == 0
    assert not (folder / "lab.json").exists()
    names = {each.name for each in (folder / "tls").iterdir()}
    assert {"signer.crt", "signer.key", "sti-as.crt", "sti-as.key", "ca.crt"} <= names
    assert list(chains.iterdir()) == []


def test_a_folder_is_used_again_with_its_keys(tmp_path: Path) -> None:
    def secrets() -> dict[str, bytes]:
        files = [*(tmp_path / "pki").iterdir(), tmp_path / "pa-password", tmp_path / "tls/ca.crt"]
        return {str(each): each.read_bytes() for each in files}

    with running_lab(tmp_path) as lab:
        first, port = secrets(), httpx.URL(lab.facts.pa_url).port
    with running_lab(tmp_path, port=port or 0):
        assert secrets() == first
    with running_lab(tmp_path):  # another port, so another CRL URL in the intermediates
        changed = [name for name, was in first.items() if secrets()[name] != was]
    assert sorted(Path(name).name for name in changed) == ["ca.crt", "foreign-ca.crt"]


def test_a_taken_port_is_replaced_by_a_free_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running_lab(tmp_path, cr_port=port) as lab, web(lab.facts) as client:
            assert httpx.URL(lab.facts.cr_url).port != port
            assert client.get(lab.facts.cr_url).status_code == 404


def test_private_files_are_their_owners_alone(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        lab.tls.client("caller")
    private = [*tmp_path.rglob("*.key"), tmp_path / "pa-password"]
    assert len(private) > 10
    assert {each.stat().st_mode & 0o777 for each in private} == {0o600}


def test_client_certificates_name_the_caller_as_uri_and_dns(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        files = lab.tls.client("sti-as", "spiffe://example/sti-as", "sti-as.example")
        server = lab.tls.server("signer", dns=["signer.example"], ips=["192.0.2.1"])
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example/sti-as"]
    assert names.get_values_for_type(x509.DNSName) == ["sti-as.example"]
    ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
    certificate.verify_directly_issued_by(ca)
    x509.load_pem_x509_certificate(server.certificate.read_bytes()).verify_directly_issued_by(ca)


def test_unknown_switches_are_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no_such"), running_lab(tmp_path, no_such=1):
        pass


def test_the_same_seed_is_hostile_in_the_same_way() -> None:
    from kmsd.lab.switches import Dice

    left, right = Dice(3), Dice(3)
    assert [left.chance(0.5) for _ in range(20)] == [right.chance(0.5) for _ in range(20)]
    assert list(left.stir({"a": 1, "b": [{"c": 2}]})) == list(right.stir({"a": 1, "b": [{"c": 2}]}))


def test_the_lab_shares_no_code_with_what_it_tests() -> None:
    folder = Path(kmsd.lab.__file__).parent
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = {
                ast.Import: lambda n: [alias.name for alias in n.names],
                ast.ImportFrom: lambda n: [n.module],
            }.get(type(node), lambda n: [])(node)
            for module in modules:
                own = module.startswith("kmsd.lab")
                assert own or not module.startswith("kmsd"), f"{file.name} imports {module}"
