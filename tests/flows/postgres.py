"""A PostgreSQL of the tests' own: a cluster in a folder, on a loopback port, with a password."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.local_stack import processes

USER = "prefect"


def programs() -> Path | None:
    """The folder with ``initdb`` and ``pg_ctl``: Debian keeps them off the path. None without PostgreSQL."""
    found = shutil.which("pg_ctl")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders and (folders[-1] / "initdb").exists() else None


@contextmanager
def postgres() -> Iterator[str]:
    """Start one; the URL of an empty database as Prefect's ``PREFECT_SERVER_DATABASE_CONNECTION_URL`` wants it."""
    password, port = secrets.token_hex(12), processes.free_port()
    folder = Path(tempfile.mkdtemp(prefix="soe-postgres-"))
    # It refuses to run as root; Debian's package brings a user for it.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(folder, "postgres")
    (folder / "password").write_text(password)
    (folder / "password").chmod(0o644)  # for a moment, in a folder that only its user may enter
    data = str(folder / "data")

    def run(program: str, *options: str) -> None:
        command = [*as_user, str(programs() / program), "-D", data, *options]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (command, done.stdout, done.stderr)

    try:
        run("initdb", "--auth=scram-sha-256", f"--username={USER}", f"--pwfile={folder / 'password'}", "-N")
        served = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
        run("pg_ctl", "-o", served, "-l", str(folder / "log"), "-w", "start")
        try:
            asyncio.run(_create_database(password, port))
            yield f"postgresql+asyncpg://{USER}:{password}@127.0.0.1:{port}/{USER}"
        finally:
            run("pg_ctl", "-m", "fast", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _create_database(password: str, port: int) -> None:
    import asyncpg

    connection = await asyncpg.connect(
        host="127.0.0.1", port=port, user=USER, password=password, database="postgres"
    )
    await connection.execute(f"CREATE DATABASE {USER}")
    await connection.close()
