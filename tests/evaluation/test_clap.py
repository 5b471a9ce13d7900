"""The real CLAP libraries on random weights, offline, in a process of their own: they read their cache's place once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHECK = """
import json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[3]]
import clap_cache
import numpy as np
import torch
from acestep.audio import Audio
from acestep.evaluation.clap import LaionClap, read_laion_checkpoint
from acestep.types import Song

checkpoint = Path(sys.argv[1]) / "630k-audioset-best.pt"
if not checkpoint.exists():
    clap_cache.write_laion_checkpoint(checkpoint)
embedder = LaionClap(weights=str(checkpoint)).load()
samples = 0.2 * torch.randn(2, 48_000 * 23, generator=torch.Generator().manual_seed(0))
samples[:, : 48_000 * 10] *= torch.linspace(0, 1, 48_000 * 10)
windows = embedder.audio(Audio(samples, 48_000))
songs = [Song(caption="a piano song"), Song(caption="fast drums " * 20)]
texts = embedder.text(songs)

import laion_clap
direct = laion_clap.CLAP_Module(enable_fusion=False, amodel="HTSAT-base", device="cpu")
direct.model.load_state_dict(read_laion_checkpoint(checkpoint))
direct.eval()
mono = samples.mean(0).numpy()
np.random.seed(1)
peer = direct.get_audio_embedding_from_data(x=np.stack([mono[:480_000], mono[480_000:960_000]]))
peer_text = direct.get_text_embedding([song.caption for song in songs])
from laion_clap.hook import float32_to_int16
print(json.dumps({
    "name": embedder.name,
    "shape": list(windows.shape),
    "error": float(np.abs(windows.numpy() - peer).max()),
    "text_error": float(np.abs(texts.numpy() - peer_text).max()),
    "hex": windows.numpy().tobytes().hex(),
    "sixteen": float32_to_int16(np.array([0.5, -0.5, 1.0, 1e-5], np.float32)).tolist(),
}))
"""
TRANSFORMERS = """
import json, sys
sys.path[:0] = [sys.argv[2], sys.argv[3]]
import torch
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizer
from acestep.audio import Audio
from acestep.evaluation.clap import TransformersClap
from acestep.types import Song

folder = sys.argv[1] + "/clap-tiny"
torch.manual_seed(0)
text = {"vocab_size": 128, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "max_position_embeddings": 130}
audio = {"patch_embeds_hidden_size": 16, "depths": [1, 1], "num_attention_heads": [1, 2], "hidden_size": 32,
         "enable_fusion": False, "num_mel_bins": 64, "spec_size": 256}
ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=24)).save_pretrained(folder)
tokenizer = RobertaTokenizer.from_pretrained("roberta-base")
ClapProcessor(ClapFeatureExtractor(truncation="rand_trunc"), tokenizer).save_pretrained(folder)
embedder = TransformersClap(weights=folder).load()
samples = 0.2 * torch.randn(2, 44_100 * 21, generator=torch.Generator().manual_seed(0))
first, second = (embedder.audio(Audio(samples, 44_100)) for _ in range(2))
texts = embedder.text([Song(caption="a"), Song(caption="slow drums " * 30)])
print(json.dumps({"name": embedder.name, "shape": list(first.shape), "same": torch.equal(first, second),
                  "norms": [*first.norm(dim=-1).tolist(), *texts.norm(dim=-1).tolist()]}))
"""


def run(script: str, home: Path) -> dict[str, object]:
    """The JSON that ``script`` prints last, run offline on the cache in ``home``."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", script, str(home), str(HERE.parent.parent), str(HERE)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face cache with what the libraries load on import."""
    folder = tmp_path_factory.mktemp("hf")
    subprocess.run([sys.executable, str(HERE / "clap_cache.py"), str(folder)], check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_laion_clap_is_the_library_on_fixed_windows_bit_for_bit_in_every_process(home: Path):
    found = run(CHECK, home)
    assert found["name"] == "clap-laion-audio"
    assert found["shape"] == [2, 512]
    assert found["error"] < 1e-5
    assert found["text_error"] < 1e-5
    assert found["sixteen"] == [16383, -16383, 32767, 0]
    assert run(CHECK, home)["hex"] == found["hex"]


@pytest.mark.slow
def test_transformers_clap_hears_fixed_windows(home: Path):
    found = run(TRANSFORMERS, home)
    assert found["name"] == "clap-clap-tiny"
    assert found["shape"] == [2, 24]
    assert found["same"]
    assert found["norms"] == pytest.approx([1.0] * 4, abs=1e-5)
