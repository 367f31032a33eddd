"""What holds for a store on PostgreSQL beyond what holds for every store (`test_store`)."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from kmsd.errors import Invalid, KmsdError, Misconfigured, Precondition, Unavailable
from kmsd.store import Event, Store
from kmsd.store import postgres as backend
from tests.contract.test_store import ACTIVE, credential
from tests.postgres import PASSWORD, Postgres, database_of, postgres
from tests.system.programs import free_port


@pytest.fixture
def url(postgres_server: Postgres) -> str:
    return postgres_server.database()


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    """A server that the test may stop."""
    with postgres() as server:
        yield server


def reason_of(url: str, password: str = "") -> KmsdError:
    """How opening the store fails; the password is in nothing that is said."""
    with pytest.raises(KmsdError) as refusal:
        Store.open(url, lambda: password)
    assert not password or password not in f"{refusal.value} {refusal.value.metadata}"
    return refusal.value


# Who is let in


def test_the_password_comes_from_its_own_place_at_every_connect(postgres_server: Postgres) -> None:
    url = postgres_server.database(tcp=True)
    asked: list[str] = []

    def password() -> str:
        asked.append(PASSWORD)
        return PASSWORD

    with Store.open(url, password) as store:
        store.insert(credential(1))
        assert PASSWORD not in repr(vars(store))
        before = len(asked)
        postgres_server.terminate(database_of(url))
        assert store.credentials() == (credential(1),)
        assert len(asked) > before


def test_a_password_file_of_libpq_is_heeded(
    postgres_server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres_server.database(tcp=True)
    file = tmp_path / "pgpass"
    file.write_text(f"127.0.0.1:*:*:kmsd:{PASSWORD}\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    Store.open(url).close()


def test_a_login_that_is_refused_is_a_persons_to_correct(postgres_server: Postgres) -> None:
    url = postgres_server.database(tcp=True)
    refused = [
        reason_of(url, "hunter2-hunter2"),
        reason_of(url),
        reason_of(url.replace("kmsd@", "nobody@"), "hunter2-hunter2"),
        reason_of(url.replace(database_of(url), "nowhere"), PASSWORD),
    ]
    assert [type(one) for one in refused] == [Misconfigured] * 4
    assert {one.reason for one in refused} == {"STORE_LOGIN_REFUSED"}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://kmsd:hunter2@127.0.0.1/kmsd",
        "postgresql://kmsd@127.0.0.1/kmsd?password=hunter2",
        "postgresql://kmsd@127.0.0.1/kmsd?sslpassword=hunter2",
        "postgresql://kmsd@127.0.0.1/kmsd?hunter2%20%1b=1",
    ],
)
def test_a_url_that_holds_a_secret_is_refused_and_not_repeated(url: str) -> None:
    for way in (Store.open, Store.at, Store.look):
        with pytest.raises(Misconfigured) as refusal:
            way(url)
        assert refusal.value.reason == "STORE_URL_INVALID"
        assert "hunter2" not in str(refusal.value)


def test_another_driver_is_refused() -> None:
    with pytest.raises(Misconfigured) as refusal:
        Store.at("postgresql+psycopg2://kmsd@127.0.0.1/kmsd")
    assert refusal.value.reason == "STORE_URL_UNSUPPORTED"


def test_a_user_who_may_not_make_tables_is_told_so(postgres_server: Postgres, url: str) -> None:
    postgres_server.sql("DROP ROLE IF EXISTS guest")
    postgres_server.sql("CREATE ROLE guest LOGIN")
    assert reason_of(url.replace("kmsd@", "guest@")).reason == "STORE_CANNOT_OPEN"


def test_a_database_that_cannot_hold_every_text_is_refused(postgres_server: Postgres) -> None:
    postgres_server.sql("DROP DATABASE IF EXISTS latin")
    postgres_server.sql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    url = postgres_server.database()
    with (
        Store.at(url.replace(database_of(url), "latin")) as store,
        pytest.raises(Misconfigured) as refusal,
        store.acting("kmsd"),
    ):
        pass
    assert refusal.value.reason == "STORE_DATABASE_UNFIT"
    assert "LATIN1" in refusal.value.message


def test_a_text_that_postgresql_cannot_hold_is_the_callers_fault(url: str) -> None:
    with Store.open(url) as store:
        for change in (
            lambda: store.credentials("a\0b"),
            lambda: store.record(Event(at=1, what="x" * 64)),
        ):
            with pytest.raises(Invalid) as refusal:
                change()
            assert refusal.value.reason == "STORE_VALUE_INVALID"
        assert store.events() == ()


def test_of_several_hosts_the_one_that_takes_changes_is_used(postgres_server: Postgres) -> None:
    name = database_of(postgres_server.database())
    hosts = f"host=127.0.0.1:{free_port()}&host=127.0.0.1:{postgres_server.port}"
    url = f"postgresql://kmsd@/{name}?{hosts}&target_session_attrs=read-write"
    with Store.at(url, lambda: PASSWORD) as store, store.acting("kmsd"):
        assert store.next_epoch() == 1


# One store is one schema


def test_each_schema_of_a_database_is_a_store_with_a_keeper_of_its_own(
    postgres_server: Postgres, url: str
) -> None:
    urls = []
    for name in ("east", 'We"st'):
        quoted = '"' + name.replace('"', '""') + '"'
        postgres_server.sql(f"CREATE SCHEMA {quoted}", database_of(url))
        urls.append(f"{url}&options={quote(f'-csearch_path={quoted}', safe='')}")
    with (
        Store.at(urls[0]) as east,
        Store.at(urls[1]) as west,
        east.acting("east"),
        west.acting("west"),
    ):
        kept = east.insert(credential(1))
        assert east.credentials() == (kept,)
        assert west.credentials() == ()


def test_a_search_path_to_nowhere_is_refused(url: str) -> None:
    with (
        Store.at(f"{url}&options=-csearch_path%3Dnowhere") as store,
        pytest.raises(Misconfigured) as refusal,
        store.acting("kmsd"),
    ):
        pass
    assert refusal.value.reason == "STORE_DATABASE_UNFIT"


def test_a_keeper_of_another_token_does_not_wait_for_this_store(url: str) -> None:
    with Store.at(url) as first, Store.at(url) as second:
        with (
            first.acting("east"),
            pytest.raises(Misconfigured) as refusal,
            second.acting("west"),
        ):
            pass
        assert refusal.value.reason == "STORE_OF_ANOTHER_TOKEN"
        with second.acting("west"):  # nobody acts: the token got another label
            pass


# Which keeper acts


def test_a_keeper_whose_session_ended_writes_no_more(postgres_server: Postgres, url: str) -> None:
    with Store.at(url) as store:
        with store.acting("kmsd") as term:
            kept = store.insert(credential(1))
            postgres_server.terminate(database_of(url))
            reasons = []
            for _ in range(3):
                with pytest.raises(Unavailable) as refusal:
                    store.insert(credential(2))
                reasons.append(refusal.value.reason)
            assert reasons == ["STORE_UNREACHABLE", "KEEPER_SEAT_LOST", "KEEPER_SEAT_LOST"]
            assert term.over
            with pytest.raises(Unavailable):
                store.require_acting()
            assert store.credentials() == (kept,)  # what is read heals at once
        with store.acting("kmsd") as again:
            assert again.generation == term.generation + 1
            store.insert(credential(2))


def test_the_keeper_of_a_former_term_is_fenced_also_while_its_session_lives(url: str) -> None:
    with Store.at(url) as first, Store.at(url) as second, first.acting("kmsd") as term:
        kept = first.insert(credential(1))
        session = term._seat._connection  # type: ignore[union-attr]
        with session.begin():  # as a pooler that shares sessions would do to it
            session.exec_driver_sql("SELECT pg_advisory_unlock_all()")
        with second.acting("kmsd") as newer:
            assert newer.generation > term.generation
            with pytest.raises(Unavailable) as refusal:
                first.save(kept)
            assert refusal.value.reason == "KEEPER_SEAT_LOST"
            assert second.save(kept).version == 1
        with pytest.raises(Unavailable):
            first.check_acting()


def test_a_successor_sees_what_was_being_written(url: str) -> None:
    halfway, go_on = threading.Event(), threading.Event()
    with Store.at(url) as first, Store.at(url) as second, first.acting("kmsd") as term:

        def write() -> None:
            with term.writing() as connection:
                connection.exec_driver_sql("UPDATE epochs SET epoch = 7")
                connection.exec_driver_sql("SELECT pg_advisory_unlock_all()")
                halfway.set()
                go_on.wait(10)

        writer = threading.Thread(target=write)
        writer.start()
        assert halfway.wait(10)
        threading.Timer(0.2, go_on.set).start()
        with second.acting("kmsd"):  # waits for the write to end
            assert go_on.is_set()
            assert second.epoch() == 7
        writer.join()


KEEPER = """
import sys, time
from kmsd.store import Store, postgres
for silence in ("idle_session_timeout", "idle_in_transaction_session_timeout"):
    postgres.SEATED[silence] = sys.argv[2]
with Store.at(sys.argv[1]) as store:
    while True:
        try:
            with store.acting("kmsd") as term:
                print(term.generation, flush=True)
                while True:
                    store.check_acting()
                    time.sleep(0.05)
        except Exception as error:
            time.sleep(0.05)
"""


def keeper(url: str, silence: str = "15s") -> subprocess.Popen[str]:
    """Acts whenever it can, and prints its terms."""
    words = [sys.executable, "-c", KEEPER, url, silence]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def next_term(keeper: subprocess.Popen[str]) -> int:
    assert keeper.stdout is not None
    return int(keeper.stdout.readline())


def test_a_keeper_takes_over_when_the_other_is_killed(url: str) -> None:
    with keeper(url) as first:
        assert next_term(first) == 1
        with keeper(url) as second:
            first.kill()
            assert next_term(second) == 2
            second.kill()


def test_a_keeper_that_hangs_loses_its_seat_and_writes_nothing_when_it_wakes(url: str) -> None:
    with keeper(url, "400ms") as first:
        assert next_term(first) == 1
        first.send_signal(signal.SIGSTOP)
        with keeper(url) as second:
            assert next_term(second) == 2
            first.send_signal(signal.SIGCONT)
            time.sleep(0.3)
            second.kill()
            assert next_term(first) == 3  # it found out, waited, and acts anew
        first.kill()


def test_terms_go_on_over_restarts_of_the_server(own_server: Postgres) -> None:
    with keeper(own_server.database()) as one:
        for term in (1, 2, 3):
            assert next_term(one) == term
            own_server.stop(signal.SIGQUIT if term == 1 else signal.SIGINT)
            own_server.start()
        one.kill()


# The server goes, and comes back


def test_a_database_that_is_not_there_is_an_outage(tmp_path: Path) -> None:
    url = f"postgresql://kmsd@/kmsd?host={quote(str(tmp_path), safe='')}"
    with Store.at(url) as store:  # a keeper starts without it
        for call in (store.epoch, lambda: store.acting("kmsd").__enter__()):
            with pytest.raises(Unavailable) as refusal:
                call()
            assert refusal.value.reason == "STORE_UNREACHABLE"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
def test_nothing_is_lost_while_the_database_is_gone(
    own_server: Postgres, how: signal.Signals
) -> None:
    with Store.open(own_server.database()) as store:
        kept = store.insert(credential(1, ACTIVE), Event(at=1, what="enroll"))
        own_server.stop(how)
        for call in (store.credentials, store.next_epoch):
            with pytest.raises(Unavailable) as refusal:
                call()
            assert refusal.value.reason == "STORE_UNREACHABLE"
        own_server.start()
        assert store.credentials() == (kept,)
        assert store.next_epoch() == 1
        assert [event.what for event in store.events()] == ["enroll"]
        assert store.damage() == ()


def test_a_writer_that_waits_too_long_is_told_busy(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backend.SESSION, "lock_timeout", "50ms")
    with Store.open(url) as store, Store.at(url) as keeper, keeper.acting("kmsd") as term:
        with term.writing(), pytest.raises(Unavailable) as refusal:
            store.next_epoch()
        assert refusal.value.reason == "STORE_BUSY"
        assert store.next_epoch() == 1


def test_a_database_set_to_read_only_is_read(postgres_server: Postgres, url: str) -> None:
    Store.open(url).close()
    name = database_of(url)
    postgres_server.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with Store.at(url) as store:
        assert store.credentials() == ()
        with pytest.raises(Unavailable) as refusal, store.acting("kmsd"):
            pass
        assert refusal.value.reason == "STORE_READ_ONLY"
        postgres_server.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
        with store.acting("kmsd"):  # the one that was refused left no lock
            store.next_epoch()


def test_a_full_disk_refuses_the_write_and_loses_nothing() -> None:
    with postgres(start=False) as server:
        disk = server.folder / "disk"
        disk.mkdir()
        server.start(*on_a_small_disk(disk))
        url = server.database()
        name = database_of(url)
        server.sql(f"CREATE TABLESPACE small LOCATION '{disk}/small'")
        Store.open(url).close()
        server.sql("ALTER TABLE events SET TABLESPACE small", name)
        event = Event(at=1, what="fill", detail={"x": os.urandom(4096).hex()})
        with Store.at(url) as store, store.acting("kmsd"):
            written, reason = filled(store, event)
            assert reason == "STORE_DISK_FULL"
            assert written > 10
            # Full, it can still be read; what has room elsewhere is written, and it goes on.
            assert len(store.events(limit=1000)) == written
            assert store.next_epoch() == 1
            server.sql("ALTER TABLE events SET TABLESPACE pg_default", name)
            store.record(event)
            assert len(store.events(limit=1000)) == written + 1


def filled(store: Store, event: Event) -> tuple[int, str]:
    """How many events the disk has room for, and why not for more."""
    for written in range(1000):
        try:
            store.record(event)
        except Unavailable as refusal:
            return written, refusal.reason
    raise AssertionError("it is never full")


def on_a_small_disk(disk: Path) -> list[str]:
    """What a server is started by, so that `disk` is one of 2 MiB to it alone."""
    mounted = f'mount -t tmpfs -o size=2m tmpfs "{disk}" && mkdir -m 700 "{disk}/small"'
    if os.geteuid() == 0:
        own = f'chown postgres "{disk}/small" && exec setpriv --reuid=postgres --clear-groups "$@"'
        return ["unshare", "--mount", "sh", "-ec", f"{mounted} && {own}", "sh"]
    private = ["unshare", "--user", "--map-current-user", "--keep-caps", "--mount"]
    return [*private, "sh", "-ec", f'{mounted} && exec "$@"', "sh"]


def test_the_holder_of_the_seat_is_named(url: str) -> None:
    with Store.at(url) as first, Store.at(url) as second, first.acting("kmsd"):
        with pytest.raises(Precondition) as refusal, second.acting("kmsd"):
            pass
        assert refusal.value.metadata.keys() == {"host", "pid", "term"}
        assert refusal.value.metadata["host"] in refusal.value.message


def test_many_threads_share_a_keepers_session(url: str) -> None:
    with Store.at(url) as store, store.acting("kmsd"):
        threads = [threading.Thread(target=store.next_epoch) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.epoch() == 20
