"""Making, writing and measuring a specialist takes the memory of a few models, whatever the number of experts."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading, time
from pathlib import Path
import torch
from flows.specialist_maker import SpecialistMaker
from soe_model.recipe import make_recipe
from soe_model.soup import SoupOfExperts
from soe_model.specialization import write_specialist
from tests.soe_model.wide_soup import write_wide_soup

def anonymous():
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])

folder = Path(sys.argv[1])

def make(name):
    soup = SoupOfExperts.open(folder / name)
    recipe = make_recipe(soup, coefficients_N=torch.ones(soup.config.num_experts), how={"method": "given"})
    instance_P = soup.instances(recipe.coefficients_N[None])[0]
    write_specialist(soup, folder / f"{name}-specialist", recipe, instance_P)
    windows_nL1 = torch.zeros(2, 17, dtype=torch.int64)
    SpecialistMaker(soup).losses(torch.rand(16, soup.config.num_experts), windows_nL1)  # as many as resamples
    return 4 * len(instance_P)

write_wide_soup(folder / "small", num_experts=2, width=16)
write_wide_soup(folder / "large", num_experts=12, width=768)
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
def test_at_most_three_models(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    peak, model = map(int, done.stdout.split())
    assert model > 30e6 and peak <= 3 * model
