"""A real PostgreSQL 15 of the test's own: in a temporary folder, on loopback, ended by its pid.

PostgreSQL refuses to run as root; then it runs as the user `postgres` that Debian's package made.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

from tests.system.programs import free_port

DEBIAN = Path("/usr/lib/postgresql")
"""A folder of binaries for each version that is installed."""
PASSWORD = "correct horse"
"""Of the user `kmsd` over TCP; the unix socket, which has its folder's mode, asks for none."""
CONFIGURATION = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{folder}'
fsync = off
max_connections = 60
logging_collector = off
"""

_names = itertools.count(1)


class Postgres:
    """One server, that can be stopped, killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner: list[str] = []
        if os.geteuid() == 0:
            # Not Popen's user and group: with those it forks, which gRPC's threads do not survive.
            self._owner = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(folder, "postgres", "postgres")
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._run(
            *("initdb", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--username=kmsd"),
            *("--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}"),
            f"--pgdata={folder / 'data'}",
        )
        with (folder / "data" / "postgresql.conf").open("a") as file:
            file.write(CONFIGURATION.format(port=self.port, folder=folder))

    def start(self, *before: str) -> None:
        """Starts it; back when it lets clients in. before: a command that runs it."""
        # Not left behind by a test run that is killed; set last, as a change of user clears it.
        mortal = ("setpriv", "--pdeathsig", "QUIT")
        runs = [*(before or self._owner), *mortal, str(_binaries() / "postgres")]
        command = [*runs, "-D", str(self.folder / "data")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.sql("SELECT 1")
                return
            except psycopg.OperationalError:
                said = (self.folder / "log").read_text()[-2000:]
                assert self._process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.02)

    def ensure(self) -> None:
        """Starts it unless it runs."""
        if self._process is None:
            self.start()

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Ends it: SIGINT its sessions first, SIGQUIT as a crash does."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def database(self, *, tcp: bool = False) -> str:
        """The URL of a new, empty database; tcp: over loopback, which needs the password."""
        name = f"kmsd_{next(_names)}"
        self.sql(f"CREATE DATABASE {name}")
        if tcp:
            return f"postgresql://kmsd@127.0.0.1:{self.port}/{name}"
        return f"postgresql://kmsd@/{name}?host={quote(str(self.folder), safe='')}&port={self.port}"

    def sql(self, text: str, database: str = "postgres", values: Sequence[str] = ()) -> Any:
        """Runs one statement as the superuser; gives the first column of its first row."""
        with psycopg.connect(
            host=str(self.folder), port=self.port, user="kmsd", dbname=database, autocommit=True
        ) as connection:
            cursor = connection.execute(text.encode(), values or None)
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None

    def terminate(self, database: str) -> int:
        """Ends every session at a database, as an operator does; gives how many there were."""
        statement = (
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = %s"
        )
        return int(self.sql(statement, values=[database]))

    def _run(self, program: str, *words: str) -> None:
        subprocess.run(
            [*self._owner, str(_binaries() / program), *words],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
        )


@contextlib.contextmanager
def postgres(*, start: bool = True) -> Iterator[Postgres]:
    """A server of one's own, gone with its folder at the end."""
    # Not in pytest's folders: the user postgres may not pass through them.
    with tempfile.TemporaryDirectory(prefix="kmsd-postgres-") as folder:
        server = Postgres(Path(folder))
        try:
            if start:
                server.start()
            yield server
        finally:
            server.stop(signal.SIGQUIT)


def database_of(url: str) -> str:
    """The name of the database in a URL of `Postgres.database`."""
    return url.split("?")[0].rsplit("/", 1)[1]


def _binaries() -> Path:
    versions = sorted(DEBIAN.glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    assert versions, "PostgreSQL is missing: softhsm/install-debian postgresql"
    return versions[-1].parent
