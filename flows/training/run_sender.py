"""What a run on ``s3://`` sends as it goes, and what another machine fetches to go on (``elsewhere.py``)."""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.training.ray_internals.registered import SNAPSHOT, registered, step_and_attempt
from flows.training.run_record import settings_in
from pipeline.places.buckets import Bucket
from pipeline.remote.claim import Claim, ClaimedError
from pipeline.remote.transfer import transfer
from pipeline.tasks import Report
from soe_model.training.checkpoint_files import is_whole
from storage_schema.errors import UserError
from storage_schema.manifest import StoreError, file_digest
from storage_schema.room import require_room

RECORDS = ("run.json", "settings.json", "log.jsonl", "summary.json")
SECONDS = 5.0
"""Between two looks for a new checkpoint."""
_FILE = re.compile(r"run/(?:([\w-]+)/)?(\w[\w.-]*)")
"""What a run's files are called there: of which checkpoint, and the file's name. No other name is fetched."""


class RunSender:
    """Sends what is new in a run's folder, and fetches what is there."""

    def __init__(self, folder: Path, bucket: Bucket, claim: Claim):
        self.folder, self.bucket, self.claim = folder, bucket, claim
        self._sent: dict[str, str] = {}
        """The sha256 of what was sent, by its name there."""
        self._fails = False
        self._lost: ClaimedError | None = None

    def fetch(self, report: Report, *, checkpoints: bool = True) -> None:
        """Copy the run that is there, if it is further than the folder's.

        Args:
            checkpoints: False copies the records only.

        Raises:
            StoreError: the folder holds another run, a file was altered, or the bucket cannot be read.
        """
        self._require_same_run()
        content = self.bucket.read(f"run/{SNAPSHOT}") or b""
        names = registered(content) if checkpoints else []
        if (
            _newest(names) <= _newest(registered(self._list()))
            and (self.folder / "run.json").exists()
            and checkpoints
        ):
            return
        wanted = {}
        for there, size in self.bucket.sizes("run").items():
            found = _FILE.fullmatch(there)
            if found and (found[1] in names or (found[1] is None and found[2] in RECORDS)):
                wanted[there] = size
        way_out = "set SOE_HOME to a folder on a larger disk"
        require_room(self.folder, sum(wanted.values()), what=f"a copy of {self.bucket.uri}", way_out=way_out)
        transfer(self._fetch_file, list(wanted.items()), report)
        for name in names:
            if not is_whole(self.folder / name):
                print(f"{self.bucket.uri}/run/{name} is not whole; it is not used.", flush=True)
                shutil.rmtree(self.folder / name, ignore_errors=True)
        if names:  # last: until now, the list here names what is here
            self.bucket.download(f"run/{SNAPSHOT}", self.folder / SNAPSHOT)

    def _fetch_file(self, name: str) -> None:
        """Copy a file, unless an earlier attempt did."""
        path = self.folder / name.partition("/")[2]
        if not (path.exists() and file_digest(path) == self.bucket.digest(name)):
            self.bucket.download(name, path)

    def _require_same_run(self) -> None:
        content, here = self.bucket.read("run/run.json"), self.folder / "run.json"
        if content is not None and here.exists():
            there = settings_in(content, f"{self.bucket.uri}/run/run.json")
            if there != settings_in(here.read_bytes(), here):
                raise StoreError(
                    f"{self.bucket.uri} holds another run than {self.folder}, which was to be sent there. Use another "
                    f"prefix; or remove {self.folder}, and what is at {self.bucket.uri} is copied there."
                )

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Send in a thread while the block runs, and once more when it has ended."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(SECONDS) and self.tried():
                pass

        thread = threading.Thread(target=work, name="run-sender", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            ended.set()
            thread.join()
            self.tried()
            raise
        ended.set()
        thread.join()
        self.send()
        self._send_records()

    def tried(self) -> bool:
        """:meth:`send`, whose errors are printed: the first of several that follow each other.

        Returns whether to try again: not if another writer has come.
        """
        try:
            self.send()
        except ClaimedError as error:
            if self._lost is None:
                print(f"The run is trained on, and NOT sent any more: {error}", flush=True)
            self._lost = error
            return False
        except (UserError, OSError) as error:
            if not self._fails:
                print(f"The run is trained on, and sent later: {error}", flush=True)
            self._fails = True
        else:
            if self._fails:
                print(f"The run is sent to {self.bucket.uri} again.", flush=True)
            self._fails = False
        return True

    def send(self) -> None:
        """If Ray's list has changed, send its checkpoints, the records and the list, and remove those it dropped.

        The list is sent only once its newest checkpoint is there.

        Raises:
            ClaimedError: another writer has come; nothing was sent.
            StoreError: the bucket cannot be written.
        """
        if self._lost is not None:  # for good: the other writer may have ended since, and be further
            raise self._lost
        content = self._list()
        names = registered(content)
        if not names or self._sent.get(f"run/{SNAPSHOT}") == hashlib.sha256(content).hexdigest():
            return
        self.claim.take()
        kept = {f"run/{name}" for name in (*RECORDS, SNAPSHOT)}
        for name in reversed(names):
            files = self._send_checkpoint(name)
            if not files and name == names[-1]:
                return  # Ray has dropped it while we looked: next time
            kept.update(files)
        self._send_records()
        self.claim.take()  # the checkpoints may have taken hours
        self._write(SNAPSHOT, content)
        for there in self.bucket.sizes("run"):
            if there not in kept:
                self.bucket.remove(there)
                self._sent.pop(there, None)

    def _send_checkpoint(self, name: str) -> list[str]:
        """Send the files of a checkpoint. Returns their names there; none if it is not whole or Ray drops it."""
        try:
            paths = sorted((self.folder / name).glob("[!.]*"))
            if not is_whole(self.folder / name):  # asked after the listing, which then was of all its files
                return []
            return [self._upload(path) for path in paths]
        except FileNotFoundError:
            return []
        except StoreError:
            if is_whole(self.folder / name):
                raise
            return []

    def _send_records(self) -> None:
        for record in RECORDS:
            if (self.folder / record).exists():
                self._write(record, (self.folder / record).read_bytes())

    def _list(self) -> bytes:
        """Ray's list of checkpoints; empty if there is none."""
        try:
            return (self.folder / SNAPSHOT).read_bytes()
        except FileNotFoundError:
            return b""

    def _upload(self, path: Path) -> str:
        """Send a file that does not change any more. Returns its name there."""
        name = f"run/{path.relative_to(self.folder).as_posix()}"
        if name not in self._sent:
            sha256 = file_digest(path)
            if self.bucket.digest(name) != sha256:
                self.bucket.upload(path, name, sha256=sha256)
            self._sent[name] = sha256
        return name

    def _write(self, name: str, content: bytes) -> None:
        """Send a small file as it is now."""
        name, sha256 = f"run/{name}", hashlib.sha256(content).hexdigest()
        if self._sent.get(name) != sha256:
            self.bucket.write(name, content)
            self._sent[name] = sha256


def _newest(names: list[str]) -> tuple[int, int]:
    return step_and_attempt(names[-1]) if names else (-1, 0)
