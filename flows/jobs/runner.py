"""How every job reads its settings and how it ends.

A job ends with ``soe-summary {...}`` and exit code 0, or with ``error: ...`` and exit code 2 if the user can mend it
(``flows/errors.py``). A job that is stopped, by Ctrl-C or SIGTERM, cleans up and ends with exit code 130. Anything
else is a fault and keeps its traceback.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from flows.errors import PREFIX, user_error
from flows.reporting import job_output
from flows.settings import Settings

S = TypeVar("S", bound=Settings)
STOPPED = "stopped: run the same again, and it goes on from what is finished."


def main(settings: type[S], run: Callable[[S], dict[str, Any]]) -> None:
    """Parse ``--config``, run the job, print how it ended, and exit."""
    parser = argparse.ArgumentParser(description=settings.__doc__)
    parser.add_argument("--config", default="{}", help="the settings as JSON")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        summary = run(settings.model_validate_json(parser.parse_args().config))
    except KeyboardInterrupt:
        print(STOPPED, flush=True)
        sys.exit(130)
    except Exception as error:
        message = user_error(error)
        if message is None:
            raise
        sys.stdout.flush()
        print(f"{PREFIX}{message}", flush=True)
        sys.exit(2)
    finally:
        signal.signal(signal.SIGTERM, before)
    job_output.write(job_output.SUMMARY, summary)
