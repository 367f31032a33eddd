"""The store's promises, the same for every database it can live on."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from alembic import command

from kmsd.errors import (
    Invalid,
    Misconfigured,
    NotFound,
    Precondition,
    Unavailable,
)
from kmsd.model import (
    Account,
    Active,
    BirthRecord,
    Certificate,
    Credential,
    Destroyed,
    Doomed,
    Failed,
    Issued,
    Keyed,
    New,
    Published,
    Retired,
    RevocationList,
    State,
    Trouble,
    TrustList,
)
from kmsd.store import Event, Store, rows, schema, tables
from tests.postgres import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'kmsd.db'}"
    server: Postgres = request.getfixturevalue("postgres_server")
    return server.database()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as store:
        yield store


BIRTH = BirthRecord(
    key_id="00" * 16,
    label="kmsd",
    made_at=1,
    public_key=b"\x30\x00\xff",
    attributes={"CKA_SENSITIVE": True},
    module="SoftHSM",
    token="kmsd",
    serial="1",
)
CERTIFICATE = Certificate(
    chain="-----BEGIN CERTIFICATE-----\n",
    issuer="ca",
    order_url="https://ca/order/1",
    serial="01",
    spki_sha256="00",
    not_before=1_000,
    not_after=2_000,
)
ACTIVE = Active(birth=BIRTH, certificate=CERTIFICATE, x5u="https://cr/1", since=1, epoch=1)
RETIRED = Retired(birth=BIRTH, certificate=CERTIFICATE, x5u="https://cr/1", since=2, destroy_at=3)
FAILED = Failed(step="keyed", at=5, reason="R", message="m", birth=BIRTH)


def credential(number: int, state: State | None = None, profile: str = "acme") -> Credential:
    return Credential(
        id=f"{number:016x}",
        profile=profile,
        spc="1234",
        key_id=f"{number:032x}",
        created=1_000 + number,
        state=New() if state is None else state,
    )


def becomes(credential: Credential, state: State) -> Credential:
    return msgspec.structs.replace(credential, state=state)


# Credentials


@pytest.mark.parametrize(
    "state",
    [
        New(),
        Keyed(birth=BIRTH),
        Issued(birth=BIRTH, certificate=CERTIFICATE),
        Published(birth=BIRTH, certificate=CERTIFICATE, x5u="https://cr/1"),
        ACTIVE,
        RETIRED,
        FAILED,
        Doomed(was=RETIRED, birth=BIRTH, since=1, destroy_at=2),
        Destroyed(key_id="00" * 16, at=7, birth=BIRTH, certificate=CERTIFICATE),
    ],
    ids=lambda state: type(state).__name__,
)
def test_a_credential_comes_back_as_it_was_stored(url: str, state: State) -> None:
    stored = msgspec.structs.replace(
        credential(1, state),
        trouble=Trouble(reason="R", message="m", since=1, attempts=2, retry_at=3),
    )
    with Store.open(url) as store:
        store.insert(stored)
    with Store.open(url) as store:
        assert store.credential(stored.id) == stored


def test_saving_counts_the_version(store: Store) -> None:
    first = store.insert(credential(1))
    second = store.save(becomes(first, Keyed(birth=BIRTH)))
    assert second.version == first.version + 1
    assert store.credential(first.id) == second


def test_a_lost_update_is_refused(store: Store) -> None:
    first = store.insert(credential(1))
    store.save(becomes(first, Keyed(birth=BIRTH)))
    with pytest.raises(Precondition) as refusal:
        store.save(becomes(first, FAILED))
    assert refusal.value.reason == "STORE_CONFLICT"
    assert store.credential(first.id).state == Keyed(birth=BIRTH)


def test_of_many_threads_that_save_one_version_one_succeeds(store: Store) -> None:
    first = store.insert(credential(1))
    outcomes: list[str] = []

    def save() -> None:
        try:
            store.save(becomes(first, Keyed(birth=BIRTH)))
            outcomes.append("saved")
        except Precondition as refusal:
            outcomes.append(refusal.reason)

    threads = [threading.Thread(target=save) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["STORE_CONFLICT"] * 7 + ["saved"]


def test_an_id_or_a_key_is_never_given_twice(store: Store) -> None:
    store.insert(credential(1))
    for again in (
        credential(1),
        msgspec.structs.replace(credential(2), key_id=credential(1).key_id),
    ):
        with pytest.raises(Precondition) as refusal:
            store.insert(again)
        assert refusal.value.reason == "STORE_CONFLICT"


def test_the_key_of_a_credential_cannot_be_exchanged(store: Store) -> None:
    first = store.insert(credential(1))
    with pytest.raises(Precondition):
        store.save(msgspec.structs.replace(first, key_id="ff" * 16))
    assert store.credential(first.id) == first


def test_saving_what_is_not_there_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound) as refusal:
        store.save(credential(9))
    assert refusal.value.reason == "CREDENTIAL_UNKNOWN"


def test_a_rotation_is_one_change(store: Store) -> None:
    old = store.insert(credential(1, ACTIVE))
    new = store.insert(
        credential(2, Published(birth=BIRTH, certificate=CERTIFICATE, x5u="https://cr/2"))
    )
    saved = store.save_all([becomes(new, ACTIVE), becomes(old, RETIRED)])
    assert [one.id for one in saved] == [new.id, old.id]
    assert store.active("acme") == saved[0]
    assert store.credential(old.id) == saved[1]


def test_half_a_rotation_is_no_rotation(store: Store) -> None:
    old = store.insert(credential(1, ACTIVE))
    new = store.insert(credential(2))
    stale = msgspec.structs.replace(becomes(new, ACTIVE), version=5)
    with pytest.raises(Precondition):
        store.save_all([becomes(old, RETIRED), stale], Event(at=1, what="rotate"))
    assert store.active("acme") == old
    assert store.events() == ()


def test_a_profile_signs_with_one_credential(store: Store) -> None:
    store.insert(credential(1, ACTIVE))
    second = store.insert(credential(2))
    store.insert(credential(3, ACTIVE, profile="other"))
    with pytest.raises(Precondition) as refusal:
        store.save(becomes(second, ACTIVE))
    assert refusal.value.reason == "PROFILE_ALREADY_ACTIVE"
    with pytest.raises(Precondition) as refusal:
        store.insert(credential(4, ACTIVE))
    assert refusal.value.reason == "PROFILE_ALREADY_ACTIVE"


def test_credentials_are_listed_newest_first(store: Store) -> None:
    old = store.insert(credential(1, ACTIVE))
    new = store.insert(credential(2, profile="other"))
    gone = store.insert(credential(3, Destroyed(key_id="00" * 16, at=7)))
    assert store.credentials() == (new, old)
    assert store.credentials("acme") == (old,)
    assert store.credentials("acme", include_destroyed=True) == (gone, old)
    assert store.all_active() == (old,)
    assert store.active("other") is None


def test_what_signers_may_have_been_told_to_sign_with_is_active_or_published(store: Store) -> None:
    published = Published(birth=BIRTH, certificate=CERTIFICATE, x5u="https://cr/2")
    states: list[State] = [New(), Keyed(birth=BIRTH), ACTIVE, RETIRED, FAILED, published]
    for number, state in enumerate(states, start=1):
        store.insert(credential(number, state))
    assert [one.state for one in store.signable()] == [published, ACTIVE]


def test_a_unique_beginning_finds_a_credential(store: Store) -> None:
    first = store.insert(msgspec.structs.replace(credential(1), id="abc1" + "0" * 12))
    second = store.insert(msgspec.structs.replace(credential(2), id="abd2" + "0" * 12))
    assert store.find("abc") == first
    assert store.find(" ABD2 ") == second
    with pytest.raises(Invalid) as refusal:
        store.find("ab")
    assert refusal.value.reason == "CREDENTIAL_AMBIGUOUS"
    with pytest.raises(NotFound):
        store.find("ffff")
    for nonsense in ("", "%", "_", "a" * 17, "'; drop table credentials; --", "\x00"):
        with pytest.raises(Invalid) as refusal:
            store.find(nonsense)
        assert refusal.value.reason == "CREDENTIAL_ID_INVALID"


# Accounts, trust material, epoch, journal


def test_a_profile_has_one_account_at_an_issuer(store: Store) -> None:
    account = Account(profile="acme", issuer="ca", key_id="11" * 16)
    assert store.account("acme", "ca") is None
    store.save_account(account)
    registered = store.save_account(msgspec.structs.replace(account, url="https://ca/acct/1"))
    other = store.save_account(Account(profile="acme", issuer="ca2", key_id="22" * 16))
    assert store.account("acme", "ca") == registered
    assert store.accounts() == (registered, other)


def trust_list(sequence: int) -> TrustList:
    return TrustList(
        authority="pa", sequence=sequence, expires=9, fetched_at=sequence, roots=("PEM",)
    )


def revocation_list(number: int) -> RevocationList:
    return RevocationList(
        authority="pa", number=str(number), next_update=9, fetched_at=8, der=b"\x30\x00"
    )


def test_trust_material_never_goes_back(store: Store) -> None:
    assert store.trust_list("pa") is None
    assert store.revocation_list("pa") is None
    for sequence in (1, 3, 3):
        store.save_trust_list(trust_list(sequence))
        store.save_revocation_list(revocation_list(sequence))
    with pytest.raises(Precondition) as refusal:
        store.save_trust_list(trust_list(2))
    assert refusal.value.reason == "TRUST_ROLLED_BACK"
    with pytest.raises(Precondition):
        store.save_revocation_list(revocation_list(2))
    assert store.trust_list("pa") == trust_list(3)
    assert store.revocation_list("pa") == revocation_list(3)


def test_a_crl_number_of_twenty_octets_is_kept_and_compared(store: Store) -> None:
    for number in (9, 1 << 63, 1 << 159):
        store.save_revocation_list(revocation_list(number))
        assert store.revocation_list("pa") == revocation_list(number)
    with pytest.raises(Precondition):
        store.save_revocation_list(revocation_list(9))


@pytest.mark.parametrize("number", [-1, 1 << 160])
def test_a_number_that_no_crl_can_have_is_refused(store: Store, number: int) -> None:
    with pytest.raises(Invalid):
        store.save_revocation_list(revocation_list(number))
    assert store.revocation_list("pa") is None


def test_epochs_only_grow(url: str) -> None:
    with Store.open(url) as store:
        assert store.epoch() == 0
        assert [store.next_epoch(), store.next_epoch()] == [1, 2]
    with Store.open(url) as store:
        assert store.epoch() == 2
        assert store.next_epoch(after=40) == 41
        assert store.next_epoch(after=3) == 42


def test_the_journal_tells_what_happened_newest_first(store: Store) -> None:
    first = store.insert(credential(1), Event(at=1, what="begin", credential=credential(1).id))
    store.save(
        becomes(first, FAILED),
        Event(
            at=2,
            what="enroll",
            outcome="CA_REFUSED",
            profile="acme",
            credential=first.id,
            detail={"problem": "no ☎"},
        ),
    )
    store.record(Event(at=3, what="start"))
    assert [event.what for event in store.events()] == ["start", "enroll", "begin"]
    assert [event.at for event in store.events(first.id)] == [2, 1]
    assert [event.detail for event in store.events(profile="acme")] == [{"problem": "no ☎"}]
    assert len(store.events(limit=1)) == 1
    assert [event.id for event in store.events()] == [3, 2, 1]


# Opening, schema, locks


def test_a_keeper_writes_while_it_acts_and_only_then(url: str) -> None:
    with Store.at(url) as store:
        with store.acting("kmsd"):
            store.require_acting()
            store.check_acting()
            kept = store.insert(credential(1))
        for change in (store.require_acting, store.check_acting, store.next_epoch):
            with pytest.raises(Unavailable) as refusal:
                change()
            assert refusal.value.reason == "KEEPER_STANDS_BY"
        assert store.credentials() == (kept,)
        assert store.epoch() == 0


def test_terms_are_counted(url: str) -> None:
    generations = []
    for _ in range(3):
        with Store.at(url) as store, store.acting("kmsd") as term:
            generations.append(term.generation)
            assert not term.over
    assert generations == [1, 2, 3]


def test_one_keeper_at_a_time(url: str) -> None:
    with Store.open(url) as first, Store.open(url) as second:
        with (
            first.acting("kmsd"),
            pytest.raises(Precondition) as refusal,
            second.acting("kmsd"),
        ):
            pass
        assert refusal.value.reason == "KEEPER_ALREADY_RUNNING"
        assert refusal.value.metadata["pid"] == str(os.getpid())
        assert str(os.getpid()) in refusal.value.message
        with second.acting("kmsd"):
            pass


def test_a_killed_keeper_leaves_no_lock(url: str) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from kmsd.store import Store\n"
            "with Store.open(sys.argv[1]).acting('kmsd'): print('in', flush=True); time.sleep(60)",
            url,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with Store.open(url) as store, holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        with pytest.raises(Precondition), store.acting("kmsd"):
            pass
        holder.kill()
        holder.wait()
        with store.acting("kmsd"):
            pass


def test_a_lock_that_cannot_be_made_is_refused_in_words(path: Path) -> None:
    with open_at(path) as store:
        (path.parent / "kmsd.db.keeper").mkdir()
        with pytest.raises(Misconfigured) as refusal, store.acting("kmsd"):
            pass
        assert refusal.value.reason == "STORE_CANNOT_OPEN"


def test_many_processes_may_open_an_empty_store_at_once(url: str) -> None:
    code = "import sys; from kmsd.store import Store; Store.open(sys.argv[1]).close()"
    openers = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(3)]
    assert [opener.wait() for opener in openers] == [0, 0, 0]


def test_a_newer_schema_is_refused_and_left_alone(url: str) -> None:
    Store.open(url).close()
    change(url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Misconfigured) as refusal:
        Store.open(url)
    assert refusal.value.reason == "STORE_SCHEMA_NEWER"
    assert refusal.value.metadata["revision"] == "9999"
    with pytest.raises(Misconfigured):
        Store.look(url)


def test_tables_and_migrations_agree(url: str) -> None:
    Store.open(url).close()
    with connected(url) as connection:
        command.check(schema.configuration(connection))


def test_a_store_of_the_first_schema_is_brought_up_to_date(url: str) -> None:
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).touch()
    with connected(url) as connection:
        command.upgrade(schema.configuration(connection), "0001")
        connection.exec_driver_sql("UPDATE epochs SET epoch = 7")
        old = rows.columns(credential(1, ACTIVE))
        del old["due"]  # what came after 0001
        connection.execute(sa.insert(tables.credentials).values(old))
    with Store.at(url) as store, store.acting("kmsd"):
        assert store.epoch() == 7
        assert store.active("acme") == credential(1, ACTIVE)
        assert store.agenda.plans_due(0, limit=9) == ("acme",)
        with connected(url) as connection:
            assert schema.inspected(connection).current


def test_an_older_schema_is_not_looked_at(url: str) -> None:
    Store.open(url).close()
    with connected(url) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(Misconfigured) as refusal:
        Store.look(url)
    assert refusal.value.reason == "STORE_SCHEMA_OLDER"


def test_looking_changes_nothing(url: str) -> None:
    with pytest.raises(Misconfigured) as refusal:
        Store.look(url)
    assert refusal.value.reason == "STORE_MISSING"
    with Store.open(url) as store:
        store.insert(credential(1))
    with Store.look(url) as looking:
        assert looking.credentials() == (credential(1),)
        assert looking.damage() == ()
        with pytest.raises(Misconfigured):
            looking.insert(credential(2))


def connected(url: str) -> AbstractContextManager[sa.Connection]:
    """A plain connection in a transaction, beside the store."""
    url = url.replace("postgresql:", "postgresql+psycopg:")
    return sa.create_engine(url, poolclass=sa.NullPool).begin()


def change(url: str, statement: str) -> None:
    with connected(url) as connection:
        connection.exec_driver_sql(statement)


# SQLite: the file and the disk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kmsd.db"


def open_at(path: Path, query: str = "") -> Store:
    return Store.open(f"sqlite:///{path}{query}")


def test_the_file_is_its_owners_alone(path: Path) -> None:
    path.touch(0o644)
    os.chmod(path, 0o644)
    with open_at(path) as store:
        store.insert(credential(1))
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_the_file_survives_a_power_cut(path: Path) -> None:
    open_at(path).close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "STORE_URL_INVALID"),
        ("kmsd.db", "STORE_URL_INVALID"),
        ("sqlite://", "STORE_URL_INVALID"),
        ("sqlite:///kmsd.db", "STORE_URL_INVALID"),
        ("sqlite:///:memory:", "STORE_URL_INVALID"),
        ("sqlite:////tmp/x.db?mode=memory", "STORE_URL_INVALID"),
        ("sqlite://host:notaport/x", "STORE_URL_INVALID"),
        ("mysql://root:hunter2@host/kmsd", "STORE_URL_UNSUPPORTED"),
        ("sqlite:////nowhere/at/all/kmsd.db", "STORE_FOLDER_MISSING"),
        ("sqlite:////proc/version", "STORE_CANNOT_OPEN"),
        ("sqlite:////tmp", "STORE_CANNOT_OPEN"),
    ],
)
def test_a_url_that_cannot_be_is_refused(url: str, reason: str) -> None:
    with pytest.raises(Misconfigured) as refusal:
        Store.open(url)
    assert refusal.value.reason == reason
    assert "hunter2" not in str(refusal.value)


def test_a_file_that_is_no_database_is_left_alone(path: Path) -> None:
    path.write_bytes(b"a shopping list, and quite a long one at that " * 100)
    before = path.read_bytes()
    with pytest.raises(Misconfigured) as refusal:
        open_at(path)
    assert refusal.value.reason == "STORE_CORRUPTED"
    assert path.read_bytes() == before


def test_a_document_that_cannot_be_read_is_named(path: Path) -> None:
    with open_at(path) as store:
        store.insert(credential(1))
        change(f"sqlite:///{path}", "UPDATE credentials SET document = '{\"id\": 1}'")
        with pytest.raises(Misconfigured) as refusal:
            store.credentials()
    assert refusal.value.reason == "STORE_DAMAGED"


def test_a_missing_table_is_damage(path: Path) -> None:
    with open_at(path) as store:
        change(f"sqlite:///{path}", "DROP TABLE credentials")
        with pytest.raises(Misconfigured) as refusal:
            store.credentials()
    assert refusal.value.reason == "STORE_DAMAGED"


def test_a_store_that_another_process_keeps_locked_is_busy(path: Path) -> None:
    with open_at(path, "?timeout=0.05") as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable) as refusal:
            store.insert(credential(1))
        other.execute("ROLLBACK")
        other.close()
        assert refusal.value.reason == "STORE_BUSY"
        store.insert(credential(1))


def test_a_killed_writer_leaves_the_old_state(path: Path) -> None:
    with open_at(path) as store:
        old = store.insert(credential(1, ACTIVE))
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                """
                import sys, time
                import sqlalchemy as sa
                from kmsd.store import tables
                from kmsd.store.database import Database
                with Database.open(sys.argv[1]).writing() as connection:
                    connection.execute(sa.update(tables.credentials).values(state="retired"))
                    connection.execute(sa.delete(tables.epochs))
                    print("halfway", flush=True)
                    time.sleep(60)
                """
            ),
            f"sqlite:///{path}",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "halfway\n"
        writer.send_signal(signal.SIGKILL)
    with open_at(path) as store:
        assert store.active("acme") == old
        assert store.epoch() == 0
        assert store.damage() == ()


LIMITED = """
import resource, signal, sys
from kmsd.errors import KmsdError
from kmsd.store import Event, Store

store = Store.open(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
written = 0
try:
    while written < 1000:
        store.record(Event(at=written, what="fill", detail={"x": "x" * 8192}))
        written += 1
except KmsdError as error:
    print(written, type(error).__name__, error.reason)
"""


def test_a_file_size_limit_refuses_the_write_and_loses_nothing(path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, f"sqlite:///{path}"],
        capture_output=True,
        text=True,
        check=True,
    )
    written, kind, reason = run.stdout.split()
    assert (kind, reason) == ("Unavailable", "STORE_IO_ERROR")
    with open_at(path) as store:
        assert len(store.events(limit=10_000)) == int(written) > 0
        assert store.damage() == ()


FULL = """
import sys
from pathlib import Path
from kmsd.errors import Unavailable
from kmsd.store import Event, Store

def refused(write):
    try:
        write()
    except Unavailable as error:
        return error.reason
    return ""

disk = Path(sys.argv[1])
(disk / "ballast").write_bytes(b"0" * 200_000)
store = Store.open(f"sqlite:///{disk / 'kmsd.db'}")
written = 0
event = Event(at=1, what="fill", detail={"x": "x" * 8192})
while not (reason := refused(lambda: store.record(event))):
    written += 1
assert reason == "STORE_DISK_FULL", reason
assert written > 10
# Full, it can still be read, and what was refused is not there.
assert len(store.events(limit=10_000)) == written
assert store.damage() == ()
epoch = store.epoch()
(disk / "ballast").unlink()
# With room again, the same store goes on, and so does one opened anew.
assert store.next_epoch() == epoch + 1
store.close()
with Store.open(f"sqlite:///{disk / 'kmsd.db'}") as store:
    assert len(store.events(limit=10_000)) == written
    assert store.damage() == ()
print("as it should be")
"""


def test_a_full_disk_refuses_the_write_and_loses_nothing(tmp_path: Path) -> None:
    # A disk of 1 MiB in a mount namespace of its own: it goes away with the process.
    root = [] if os.geteuid() == 0 else ["--map-root-user"]
    full = [sys.executable, "-c", FULL, str(tmp_path)]
    mounted = f'mount -t tmpfs -o size=1m tmpfs "{tmp_path}" && exec "$@"'
    run = subprocess.run(
        ["unshare", *root, "--mount", "sh", "-ec", mounted, "sh", *full],
        capture_output=True,
        text=True,
    )
    assert run.stdout == "as it should be\n", run.stderr
