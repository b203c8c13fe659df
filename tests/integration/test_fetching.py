"""What several workers of a node need is fetched once: model and data from a hub, a converted GGUF file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from tests.gguf_bases import WORDS, write_gguf
from tests.models import tiny_llama_config, write_pairs, write_tiny_llama
from tests.small_hub import serving

ROOT = Path(__file__).parents[2]
NUM_WORKERS = 2
PREPARE = "import sys, torch\nfrom tuner.config import DataConfig, ModelConfig\nfrom tuner.worker import data, model\n"
WAIT = "print('ready', flush=True)\nsys.stdin.readline()\n"
LOAD = "model.load_base(ModelConfig(name={model!r}, quantization='none'), 'causal-lm', (), torch.device('cpu'))\n"
READ = "splits = data.load_splits(DataConfig(name='some/rows', validation=10), 'causal-lm')\nprint(len(splits.train))\n"


def run_together(code: str, home: Path, **environment: str) -> list[str]:
    """Run it in as many processes as there are workers, all from the same moment on; what each printed last."""
    given = {"HF_HOME": str(home / "hf"), "TUNER_CACHE": str(home / "tuner"), "PYTHONPATH": str(ROOT), **environment}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PREPARE + WAIT + code + "print('done')"],
            env={**os.environ, **given},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(NUM_WORKERS)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [(process.communicate(timeout=240), process.returncode) for process in processes]
    assert [code for _, code in ended] == [0] * NUM_WORKERS, ended[0][0][1] or ended[1][0][1]
    return [written.strip() for (written, _), _ in ended]


def test_workers_that_start_together_fetch_model_and_data_from_a_hub_once(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "hub" / "models" / "some")
    rows = tmp_path / "hub" / "datasets" / "some" / "rows"
    rows.mkdir(parents=True)
    write_pairs(rows)

    with serving(tmp_path / "hub", ("model.safetensors", NUM_WORKERS)) as hub:
        outputs = run_together(
            LOAD.format(model="some/tiny-llama") + READ,
            tmp_path,
            HF_ENDPOINT=hub.address,
            HF_HUB_OFFLINE="0",
            HF_HUB_DOWNLOAD_TIMEOUT="120",
            HF_HUB_ETAG_TIMEOUT="120",
            HF_HUB_DISABLE_TELEMETRY="1",
            NO_PROXY="127.0.0.1",
        )

    assert outputs == ["50\ndone"] * NUM_WORKERS
    assert hub.num_fetched["model.safetensors"] == 1
    assert hub.num_fetched["tokenizer.json"] == 1
    assert hub.num_fetched["pairs.jsonl"] == 1
    assert hub.num_asked["model.safetensors"] >= NUM_WORKERS


def test_workers_that_start_together_convert_a_gguf_file_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_gguf(LlamaForCausalLM(tiny_llama_config(vocab_size=len(WORDS))), tmp_path / "tiny.gguf")
    counted = (
        "from tuner.worker import gguf\nconvert = gguf._convert\n"
        "def counting(*given):\n    open({log!r}, 'a').write('once ')\n    convert(*given)\n"
        "gguf._convert = counting\n"
    ).format(log=str(tmp_path / "conversions"))

    run_together(counted + LOAD.format(model=str(tmp_path / "tiny.gguf")), tmp_path)

    assert (tmp_path / "conversions").read_text() == "once "
