"""Making, measuring and writing specialists, one or several, takes the memory of a few models, whatever the number of
experts.
"""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading, time
from pathlib import Path
import numpy as np
import torch
from flows.specialists.maker import SpecialistMaker
from flows.specialists.methods import Method
from pipeline.specialists.sets import SpecialistSet
from soe_model.files.soup import SoupOfExperts
from soe_model.specialists.specialist_files import write_specialist
from tests.soe_model.wide_soup import write_wide_soup

def anonymous():
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])

folder = Path(sys.argv[1])

class Embedder:
    # Of the wide soup's three dimensions.
    device = torch.device("cpu")

    def encode(self, texts, **options):
        return np.array([np.eye(3)[len(text) % 3] for text in texts])

def make(name):
    soup = SoupOfExperts.open(folder / name)
    maker = SpecialistMaker(soup)
    maker.embedder = Embedder()
    texts = [" ".join(f"w{word}" for word in range(1, length)) for length in range(6, 26)]
    sets = [SpecialistSet(name=f"s{n}", texts=texts[n : n + 9], evaluation=texts[-3:]) for n in range(2)]
    # Instances of low-rank experts take long to put together, and `blended` measures eight more of each set.
    method = Method(name="nearest-centroids", bootstrap=0) if low else Method(bootstrap=4)
    specialists = maker.make(sets, method)
    for one in sets:
        made = next(specialists)
        write_specialist(soup, folder / name / "made" / one.name, made.recipe, made.instance_P, report=made.report)
        del made
    return 4 * soup.bank.num_params

low = sys.argv[2] == "low"
large = dict(num_experts=64, width=1024, rank=8, layers=6) if low else dict(num_experts=12, width=768)
write_wide_soup(folder / "small", num_experts=2, width=16, rank=8 if low else None)
write_wide_soup(folder / "large", **large)
make("small")  # whatever is loaded at first use
before, peak, done = anonymous(), 0, threading.Event()

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
model = make("large")
done.set()
watcher.join()
print(peak - before, model)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
@pytest.mark.parametrize("rank", ["full", "low"])
def test_at_most_three_models(tmp_path, rank):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), rank], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    peak, model = map(int, done.stdout.splitlines()[-1].split())
    assert model > 30e6 and peak <= 3 * model
