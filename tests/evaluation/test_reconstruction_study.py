"""Reconstruction metrics on differences of known size."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.mel import MelEmbedder
from acestep.evaluation.metrics import FrechetDistance, OracleAdherence
from acestep.evaluation.prompts import FolderPrompts, ListPrompts, MicroPrompts
from acestep.evaluation.reconstruction_study import (
    ReconstructionStudy,
    level_error,
    reconstruction_metrics,
    round_trip_metrics,
    si_sdr,
    stereo_errors,
)
from acestep.evaluation.results import merge_results
from acestep.pipeline.build import load_autoencoder
from acestep.pipeline.pipeline import Pipeline
from acestep.synth.foundation import fitted_autoencoder
from acestep.synth.oracles import FACTORS

SONG = 0.3 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
OTHER = 0.3 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("ratio", [-10.0, 0.0, 20.0])
def test_si_sdr_is_the_ratio_of_song_to_noise_at_any_level(ratio: float) -> None:
    noise = OTHER - (OTHER * SONG).sum(-1, keepdim=True) / SONG.square().sum(-1, keepdim=True) * SONG
    noise *= (SONG.square().sum(-1, keepdim=True) / noise.square().sum(-1, keepdim=True)).sqrt()
    for level in (0.1, 1.0, 3.0):
        assert si_sdr(level * (SONG + noise * 10 ** (-ratio / 20)), SONG) == pytest.approx(ratio, abs=0.1)


def test_level_balance_and_width_are_measured_separately() -> None:
    assert level_error(SONG / 2, SONG) == pytest.approx(20 * math.log10(2), abs=1e-4)
    louder_left = SONG * torch.tensor([[2.0], [1.0]])
    assert stereo_errors(louder_left, SONG)["balance_error_db"] == pytest.approx(20 * math.log10(2), abs=1e-4)
    middle, side = (SONG[0] + SONG[1]) / 2, (SONG[0] - SONG[1]) / 2
    wider = torch.stack([middle + 2 * side, middle - 2 * side])
    assert stereo_errors(wider, SONG)["width_error_db"] == pytest.approx(20 * math.log10(2), abs=1e-4)
    assert all(value < 1e-9 for value in stereo_errors(SONG, SONG).values())


def test_the_identity_is_the_best_reconstruction() -> None:
    best, worse = reconstruction_metrics(SONG, SONG, 4000), reconstruction_metrics(SONG + 0.1 * OTHER, SONG, 4000)
    assert best["si_sdr_db"] > worse["si_sdr_db"]
    assert all(best[name] < worse[name] for name in best.keys() - {"si_sdr_db"})


def test_songs_of_any_sample_rate_are_reconstructed_and_timed(tiny: Path) -> None:
    metrics = list(round_trip_metrics(Pipeline.from_pretrained(tiny), [Audio(SONG, 4000), Audio(SONG[:1], 2000)]))
    assert [values["seconds"] for values in metrics] == [1, 2]
    assert all(values["seconds_per_second"] > 0 and math.isfinite(values["si_sdr_db"]) for values in metrics)


def study(folder: Path, songs: int) -> ReconstructionStudy:
    prompts = MicroPrompts(path=str(folder), songs=songs, seed=24_000)
    fad = FrechetDistance(embedder=MelEmbedder())
    return ReconstructionStudy(prompts=prompts, metrics={"adherence": OracleAdherence(), "fad": fad})


@pytest.mark.slow
def test_oracle_scores_of_the_shipped_autoencoders_reconstructions_equal_the_originals(tmp_path: Path) -> None:
    pipeline = Pipeline.from_pretrained("micro")
    results = study(tmp_path / "world", 12)(pipeline, pipeline.sampler, tmp_path / "out")
    summary = results.summary()["reconstruction"]
    scores = summary["kept"]
    assert set(scores) == {f"adherence.{name}" for name in ("mean", *FACTORS)}
    assert all(scores[name]["original"] > 0.95 and scores[name]["share"] >= 0.95 for name in scores)
    assert summary["n"] == len(results.values("near.si_sdr_db", "rebuilt")) == 12
    assert summary["sets"]["fad"]["fad"] > 0
    two = merge_results({"one": results, "other": results}, "autoencoder")
    assert set(two.extra["reconstruction"]) == {"one", "other"}
    assert len(two.points) == 4


def test_recordings_outside_the_output_folder_are_named_by_absolute_path(tiny: Path, tmp_path: Path) -> None:
    Audio(SONG.repeat(1, 3), 4000).save(tmp_path / "songs" / "a.flac")
    pipeline = Pipeline.from_pretrained(tiny)
    wanted = ReconstructionStudy(prompts=FolderPrompts(path=str(tmp_path / "songs")), metrics={})
    results = wanted(pipeline, pipeline.sampler, tmp_path / "out")
    results.write(tmp_path / "out")
    audio = {row["cell"]: row["audio"] for row in pq.read_table(tmp_path / "out" / "songs.parquet").to_pylist()}
    assert audio["original"] == str(tmp_path / "songs" / "a.flac")
    assert (tmp_path / "out" / audio["rebuilt"]).is_file()


def test_recordings_are_needed(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "songs.jsonl").write_text('{"caption": "x"}\n')
    pipeline = Pipeline.from_pretrained(tiny)
    wanted = ReconstructionStudy(prompts=ListPrompts(path=str(tmp_path / "songs.jsonl")), metrics={})
    with pytest.raises(ValueError, match=r"eval\.prompts: holds no recordings"):
        wanted(pipeline, pipeline.sampler, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.long
def test_the_shipped_autoencoder_equals_a_fitted_one() -> None:
    """To the half precision that it is stored in."""
    made, shipped = fitted_autoencoder(seed=0).state_dict(), load_autoencoder("micro").state_dict()
    assert made.keys() == shipped.keys()
    for name, value in shipped.items():
        torch.testing.assert_close(made[name], value, rtol=1e-3, atol=1e-4)
