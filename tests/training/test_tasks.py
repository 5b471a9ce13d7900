"""Cover and repaint training: the DiT has the same inputs as in inference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training import jobs

from acestep.conditioning.masks import task_context, tile_silence
from acestep.conditioning.prompt import task_instruction
from acestep.data import LatentBatch, TaskMix
from acestep.pipeline.pipeline import Pipeline
from acestep.training.datamodule import DataConfig, LatentDataModule
from acestep.training.dit import task_contexts


def drawn(store: Path, tasks: TaskMix) -> LatentBatch:
    data = LatentDataModule(DataConfig(path=str(store), held_out=2, tasks=tasks), seed=1)
    return data.collate([data.training[index] for index in range(6)])


def contexts(pipeline: Pipeline, batch: LatentBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Source latents and chunk mask of every song."""
    conditioner = pipeline.conditioner
    inputs = conditioner.encode(batch.songs, batch.frames, task_contexts(batch, conditioner.silence))
    with torch.no_grad():
        return pipeline.network.condition(inputs, conditioner.silence).context.split(64, dim=-1)


def test_repaint_source_is_the_song_outside_and_silence_inside_the_span(tiny: Path, store: Path) -> None:
    pipeline, batch = Pipeline.from_pretrained(tiny), drawn(store, TaskMix(repaint=1.0))
    source, generate = contexts(pipeline, batch)
    silence = tile_silence(pipeline.conditioner.silence, batch.mean.shape[1])[0]
    for row, (draw, frames) in enumerate(zip(batch.tasks, batch.frames, strict=True)):
        inside = torch.zeros(frames, dtype=torch.bool)
        inside[slice(*draw.span)] = True
        assert torch.equal(generate[row, :frames, 0].bool(), inside)
        torch.testing.assert_close(source[row, :frames][~inside], batch.mean[row, :frames][~inside].float())
        torch.testing.assert_close(source[row, :frames][inside], silence[:frames][inside])


def test_cover_source_is_reconstructed_from_codes(tiny: Path, store: Path) -> None:
    pipeline, batch = Pipeline.from_pretrained(tiny), drawn(store, TaskMix(cover=1.0))
    source, generate = contexts(pipeline, batch)
    assert all(generate[row, :frames].all() for row, frames in enumerate(batch.frames))
    assert not torch.allclose(source[0, : batch.frames[0]], batch.mean[0, : batch.frames[0]].float(), atol=0.1)
    tasks = task_contexts(batch, pipeline.conditioner.silence)
    assert {start.instruction for start in tasks} == {task_instruction("cover")}
    song = batch.mean[0, : batch.frames[0]].float()
    assert torch.equal(tasks[0].source, task_context("cover", song, pipeline.conditioner.silence, len(song)).source)


@pytest.mark.parametrize("tasks", [TaskMix(cover=0.5, repaint=0.5), TaskMix(repaint=0.4)])
def test_task_mix_trains(run, tmp_path: Path, tasks: TaskMix) -> None:
    module = run(tmp_path, steps=3, tasks=tasks)
    assert module.gradients.skipped == 0
    assert all(0 < loss < 100 for loss in jobs.curve(tmp_path).values())
