"""The real CLAP libraries on random weights, offline, in processes of their own: they read their cache's place once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
BEGIN = """
import json, sys
from pathlib import Path
home = Path(sys.argv[1])
sys.path[:0] = sys.argv[2:]
import clap_cache
import torch
from acestep.audio.audio import Audio
from acestep.evaluation.embedders.clap import LaionClap
from acestep.songs import Song

checkpoint = home / "630k-audioset-best.pt"
samples = 0.2 * torch.randn(2, 48_000 * 23, generator=torch.Generator().manual_seed(0))
samples[:, : 48_000 * 10] *= torch.linspace(0, 1, 48_000 * 10)
embedder = LaionClap(weights=str(checkpoint), architecture="HTSAT-tiny")
"""
LAION = """
clap_cache.write_cache(home)
import laion_clap
import numpy as np
from laion_clap.hook import float32_to_int16
from acestep.evaluation.embedders.cache import FeatureCache
from acestep.evaluation.metrics import ClapAdherence
from acestep.evaluation.prompts import EvaluationPrompt

torch.manual_seed(1)
direct = laion_clap.CLAP_Module(enable_fusion=False, amodel="HTSAT-tiny", device="cpu").eval()
clap_cache.write_laion_checkpoint(direct.model, checkpoint)
windows = embedder.embed_audio(Audio(samples, 48_000))
songs = [Song(caption="a piano song"), Song(caption="fast drums " * 20)]
texts = embedder.embed_text(songs)
mono = samples.mean(0).numpy()
np.random.seed(1)
peer = direct.get_audio_embedding_from_data(x=np.stack([mono[:480_000], mono[480_000:960_000]]))
peer_text = direct.get_text_embedding([song.caption for song in songs])

metric = ClapAdherence(embedder=embedder)
prompts = {"a.wav": EvaluationPrompt(id="a", song=songs[0]), "b.wav": EvaluationPrompt(id="b", song=songs[1])}
def scores(folder, names):
    cache = FeatureCache(home / folder)
    return {n: metric.score(cache.features(metric.extractor, home / n), prompts[n])["of_mean"] for n in names}
Audio(samples[:, :480_000], 48_000).save(home / "a.wav")
Audio(samples[:, 480_000:960_000], 48_000).save(home / "b.wav")
ordered = scores("heard", ["a.wav", "b.wav"])
shuffled = scores("again", ["b.wav", "a.wav"])
Audio(samples[:, :480_000].flip(1) * 0.1, 48_000).save(home / "a.wav")
laion = {
    "name": embedder.name,
    "shape": list(windows.shape),
    "error": float(np.abs(windows.numpy() - peer).max()),
    "text_error": float(np.abs(texts.numpy() - peer_text).max()),
    "hex": windows.numpy().tobytes().hex(),
    "sixteen": float32_to_int16(np.array([0.5, -0.5, 1.0, 1e-5], np.float32)).tolist(),
    "ordered": ordered, "shuffled": shuffled, "overwritten": scores("heard", ["a.wav", "b.wav"]),
}
"""
TRANSFORMERS = """
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizer
from acestep.evaluation.embedders.clap import TransformersClap

torch.manual_seed(0)
text = {"vocab_size": 128, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "max_position_embeddings": 130}
audio = {"patch_embeds_hidden_size": 16, "depths": [1, 1], "num_attention_heads": [1, 2], "hidden_size": 32,
         "enable_fusion": False, "num_mel_bins": 64, "spec_size": 256}
folder = str(home / "clap-tiny")
ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=24)).save_pretrained(folder)
tokenizer = RobertaTokenizer.from_pretrained("roberta-base")
ClapProcessor(ClapFeatureExtractor(truncation="rand_trunc"), tokenizer).save_pretrained(folder)
embedder = TransformersClap(weights=folder)
samples = 0.2 * torch.randn(2, 44_100 * 21, generator=torch.Generator().manual_seed(0))
first, second = (embedder.embed_audio(Audio(samples, 44_100)) for _ in range(2))
texts = embedder.embed_text([Song(caption="a"), Song(caption="slow drums " * 30)])
print(json.dumps({"laion": laion, "transformers": {
    "name": embedder.name, "shape": list(first.shape), "same": torch.equal(first, second),
    "norms": [*first.norm(dim=-1).tolist(), *texts.norm(dim=-1).tolist()]}}))
"""
AGAIN = "print(json.dumps(embedder.embed_audio(Audio(samples, 48_000)).numpy().tobytes().hex()))"


def run(script: str, home: Path) -> Any:
    """The JSON that ``script`` prints last, run offline on the cache in ``home``."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", BEGIN + script, str(home), str(HERE.parents[2]), str(HERE.parent)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def outputs(home: Path) -> dict[str, Any]:
    """What both libraries give in one process."""
    return run(LAION + TRANSFORMERS, home)


@pytest.mark.slow
def test_laion_clap_is_the_library_on_fixed_windows(outputs: dict[str, Any]):
    laion = outputs["laion"]
    assert laion["name"] == "clap-laion-audio"
    assert laion["shape"] == [2, 512]
    assert laion["error"] < 1e-5
    assert laion["text_error"] < 1e-5
    assert laion["sixteen"] == [16383, -16383, 32767, 0]


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_agree_bit_for_bit(outputs: dict[str, Any], home: Path):
    assert run(AGAIN, home) == outputs["laion"]["hex"]


@pytest.mark.slow
def test_a_score_belongs_to_a_songs_bytes_not_to_its_place_or_name(outputs: dict[str, Any]):
    laion = outputs["laion"]
    assert laion["shuffled"] == laion["ordered"]
    assert laion["overwritten"]["b.wav"] == laion["ordered"]["b.wav"]
    assert laion["overwritten"]["a.wav"] != laion["ordered"]["a.wav"]


@pytest.mark.slow
def test_transformers_clap_on_fixed_windows(outputs: dict[str, Any]):
    clap = outputs["transformers"]
    assert clap["name"] == "clap-clap-tiny"
    assert clap["shape"] == [2, 24]
    assert clap["same"]
    assert clap["norms"] == pytest.approx([1.0] * 4, abs=1e-5)
