"""lm-evaluation-harness, run on a specialist's directory, measures the likelihood that we compute."""

import json
import math
import os
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from soe_model.files.soup import SoupOfExperts
from soe_model.model.backbone import token_losses
from tests.extras import needs
from tests.soe_model.toy_soup import write

TASK = """
task: local_words
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
"""
TEXTS = ["w3 w5 w7 w9", "w1 w2", "w30 w31 w32 w33 w34"]


def test_the_harness_measures_our_likelihood(made, tmp_path):
    needs("lm_eval", extra="exports")
    write(SoupOfExperts.open(made[0]), tmp_path / "model")
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/local_words.yaml").write_text(TASK.format(data=data))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "lm_eval",
                "run",
                "--model",
                "hf",
                "--device",
                "cpu",
                "--batch_size",
                "1",
            ),
            *("--model_args", f"pretrained={tmp_path / 'model'}", "--tasks", "local_words"),
            *("--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out")),
        ],
        env=os.environ | offline,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [result] = (tmp_path / "out").rglob("results*.json")
    found = json.loads(result.read_text())["results"]["local_words"]["word_perplexity,none"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        nats = sum(
            token_losses(model, torch.tensor([[0, *tokenizer(text).input_ids]])).sum().item()
            for text in TEXTS
        )
    expected = math.exp(nats / sum(len(text.split()) for text in TEXTS))
    assert abs(found / expected - 1) < 1e-4
