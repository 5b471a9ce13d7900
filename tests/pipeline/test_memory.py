"""Memory modes: predicted bytes equal stored ones, 8 bits change little, offloading moves parts back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import NETWORK

from acestep.__main__ import main
from acestep.audio.tiling import tiled_decode
from acestep.cli.bench_memory import memory_table, predicted_table
from acestep.memory import (
    GIB,
    PUBLISHED_PARAMETERS,
    Placement,
    choose_mode,
    estimate_memory,
    estimate_modes,
    first_fitting,
    predicted_bytes,
    quantize_network,
    stored_bytes,
)
from acestep.memory_modes import AUTO_MODES, MEMORY_MODES, MemoryMode
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.models.autoencoder import Oobleck, OobleckConfig
from acestep.pipeline.build import build_network
from acestep.pipeline.pipeline import DECODE_CHUNK, DECODE_OVERLAP, Pipeline
from acestep.songs import Song
from acestep.training.memory_estimate import AllocationTracker
from acestep.weights.open import open_checkpoint

ROOT = Path(__file__).parents[2]
HALF = torch.bfloat16
OTHERS = {part: 2 * count for part, count in PUBLISHED_PARAMETERS.items()}


@pytest.fixture(scope="module")
def xl() -> dict[MemoryMode, object]:
    return {mode: estimate_memory(AceStepConfig(), OTHERS, mode, 60.0, HALF) for mode in MEMORY_MODES}


@pytest.mark.slow
def test_the_xl_dit_in_8_bits_takes_at_most_4_6_gb() -> None:
    with torch.device("meta"):
        network = AceStep(AceStepConfig()).to(HALF)
    quantize_network(network, "int8")
    measured = stored_bytes(network.decoder)
    assert measured <= 4.6e9
    with torch.device("meta"):
        plain = AceStep(AceStepConfig()).decoder
    assert predicted_bytes(plain, HALF, "int8") == measured
    assert predicted_bytes(plain, HALF) == 2 * 4_168_897_088


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_8_bits_change_the_velocity_little(kind: str) -> None:
    pipeline = Pipeline.from_pretrained("micro")
    song = pipeline.resolve(Song(caption="a song with flute, bright major", seconds=pipeline.lengths.min_seconds))
    frames = pipeline._frames(song.seconds)
    inputs = pipeline.conditioner.encode([song], [frames])
    x_t = torch.randn(1, frames, 64, generator=torch.Generator().manual_seed(0))

    def velocities(network: AceStep) -> torch.Tensor:
        with torch.no_grad():
            conditions = network.condition(inputs, pipeline.conditioner.silence)
            return torch.cat([network.velocity(x_t, torch.tensor([t]), conditions) for t in (0.1, 0.5, 0.9)])

    full = velocities(pipeline.network)
    quantize_network(pipeline.network, kind)
    cosine = torch.cosine_similarity(full.flatten(1), velocities(pipeline.network).flatten(1))
    assert cosine.min() >= (0.999 if kind == "int8" else 0.99)
    plain = build_network(open_checkpoint("micro"), "cpu", torch.float32).decoder
    expected = predicted_bytes(plain, torch.float32, kind)
    assert stored_bytes(pipeline.network.decoder) == pytest.approx(expected, rel=0 if kind == "int8" else 0.02)


def test_songs_in_every_mode(tiny: Path) -> None:
    (full,) = Pipeline.from_pretrained(tiny).generate([Song()])
    (offloaded,) = Pipeline.from_pretrained(tiny, memory="offload").generate([Song()])
    assert torch.equal(full.samples, offloaded.samples)
    pipeline = Pipeline.from_pretrained(tiny, memory="int8_offload")
    (small,) = pipeline.generate([Song()])
    with pytest.raises(ValueError, match="8-bit weights take no adapters"):
        pipeline.adapter_set.load("any")
    assert small.samples.isfinite().all()
    assert not torch.equal(full.samples, small.samples)
    with pytest.raises(ValueError, match="memory=little: use auto or full"):
        Pipeline.from_pretrained(tiny, memory="little")


def test_placement_moves_parts_to_the_device_and_back() -> None:
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    with Placement(torch.device("meta"), offload=False)(first):
        assert first.weight.device.type == "cpu"

    class Watched(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places: list[str] = []

        def to(self, device: object) -> Watched:
            self.places.append(str(device))
            return self

    watched = Watched()
    with Placement(torch.device("meta"), offload=True)(watched, "no module", second):
        assert watched.places == ["meta"]
        assert second.weight.device.type == "meta"
        second = second.to_empty(device="cpu")
    assert watched.places == ["meta", "cpu"]


def test_auto_selects_the_first_mode_that_fits(xl: dict[MemoryMode, object]) -> None:
    found = {gigabytes: first_fitting(xl, gigabytes * GIB, "cuda").mode for gigabytes in (6, 8, 12, 16, 20, 24, 80)}
    order = [AUTO_MODES.index(mode) for mode in found.values()]
    assert order == sorted(order, reverse=True)
    assert found[20] in (MemoryMode.full, MemoryMode.int8)
    assert found[80] is MemoryMode.full
    assert xl[MemoryMode.int8_offload].peak(offload=True) < 12e9
    assert not found[20].offloads
    assert "GiB" in first_fitting(xl, 12 * GIB, "cuda").reason
    assert first_fitting(xl, GIB, "cuda").mode is MemoryMode.int8_offload


def test_offloading_and_quantization_lower_the_peak(xl: dict[MemoryMode, object]) -> None:
    peaks = {mode: stages.peak(mode.offloads) for mode, stages in xl.items()}
    assert peaks[MemoryMode.full] > peaks[MemoryMode.offload] > peaks[MemoryMode.int8_offload]
    assert peaks[MemoryMode.full] > peaks[MemoryMode.int8] > peaks[MemoryMode.int8_offload]
    assert sum(xl[MemoryMode.full].weights.values()) == sum(OTHERS.values()) + 2 * 4_987_308_678


@pytest.mark.parametrize("dtype", [HALF, torch.float32])
@pytest.mark.parametrize("seconds", [10, 60, 300])
def test_decoding_memory_equals_the_prediction(seconds: int, dtype: torch.dtype) -> None:
    with torch.device("meta"):
        published = Oobleck(OobleckConfig()).to(dtype)
    latents = torch.zeros(1, seconds * 25, 64, dtype=dtype, device="meta")
    with torch.no_grad(), AllocationTracker() as alive:
        tiled_decode(published, latents, DECODE_CHUNK, DECODE_OVERLAP).float()
    predicted = estimate_memory(AceStepConfig(), OTHERS, MemoryMode.full, seconds, dtype).activations["decoding"]
    assert 0.95 * alive.peak < predicted < 1.6 * alive.peak


def test_stages_of_a_checkpoint_and_the_cpu(tiny: Path) -> None:
    checkpoint, config = open_checkpoint(tiny), AceStepConfig.from_dict(NETWORK)
    stages = estimate_modes(checkpoint, config, 1.0, torch.float32)
    with torch.device("meta"):
        decoder = AceStep(config).decoder
    assert stages[MemoryMode.full].weights["sampling"] == stored_bytes(decoder)
    chosen = choose_mode(checkpoint, config, torch.device("cpu"), torch.float32, None, 1)
    assert chosen.mode is MemoryMode.full
    assert "no other memory to offload to" in chosen.reason


def test_prediction_grows_with_the_batch(capsys: pytest.CaptureFixture[str]) -> None:
    peaks = []
    for songs in (1, 64):
        assert main(["bench", "memory", "--model", "micro", "--songs", str(songs), "--dtype", "float32"]) == 0
        head, _, full, *_ = capsys.readouterr().out.splitlines()
        assert head.startswith(f"micro, {songs} x 60 s, float32")
        peaks.append(float(full.split()[2]))  # of sampling: songs are decoded one by one
    assert peaks[1] > 2 * peaks[0]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("mode", ["int8", "fp8"])
def test_8_bits_compile(mode: str) -> None:
    code = f"""
import sys
from dataclasses import replace
from acestep import Pipeline, Song
pipeline = Pipeline.from_pretrained("micro", memory={mode!r})
sampler = replace(pipeline.sampler, schedule=replace(pipeline.sampler.schedule, steps=2))
song = Song(caption="a song", seconds=pipeline.lengths.min_seconds, seed=0)
eager, compiled = (
    next(iter(one.generate([song], sampler))).samples for one in (pipeline, replace(pipeline, compiled=True))
)
sys.exit(not (compiled - eager).norm() < 1e-4 * eager.norm())
"""
    # In a process without the checks of shapes that tests run under, which the compiler does not take.
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.long
def test_bench_prints_a_line_per_mode(tiny: Path) -> None:
    lines = list(memory_table(str(tiny), 1.0, "cpu", steps=1))
    assert [line.split()[0] for line in lines[2:]] == ["full", "offload", "int8", "int8_offload", "fp8"]
    full, offload, int8, int8_offload, fp8 = (float(line.split()[-1]) for line in lines[2:])
    assert full == offload == 0 < int8 == int8_offload < fp8 < 0.1
    assert len(list(predicted_table(AceStepConfig(), "xl_sft", 60.0))) == len(lines)
