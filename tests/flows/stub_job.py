"""A job that obeys the jobs' contract and does nothing: ``python -m tests.flows.stub_job --config JSON``.

What it does is in the store's name: ``fail`` ends with an error line, ``wait`` runs for ten minutes,
anything else succeeds.
"""

import argparse
import json
import sys
import time

from flows.reporting import job_output
from flows.reporting.progress import progress


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=json.loads, default={})
    name = parser.parse_args().config.get("store", "")
    print(f"the stub's store is {name}")
    job_output.write_card("estimate", "# A while")
    with progress("count sheep", "sheep") as report:
        for i in range(600 if name == "wait" else 3):
            report(i + 1, 600 if name == "wait" else 3)
            time.sleep(1.0 if name == "wait" else 0.1)
    if name == "fail":
        print("error: the corpus /nowhere is empty: give a folder that holds text.", file=sys.stderr)
        return 2
    job_output.write(job_output.SUMMARY, {"sheep": 3})
    return 0


if __name__ == "__main__":
    sys.exit(main())
