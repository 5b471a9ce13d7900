"""Tasks with a source recording: what is kept, conditions, strengths, validation, adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch

from acestep.audio.audio import Audio
from acestep.conditioning.prompt import task_instruction
from acestep.flow import CFG, Euler, Heun, NoGuidance, Sampler, Shifted
from acestep.pipeline.pipeline import Pipeline
from acestep.pipeline.prepare import crossfade
from acestep.songs import AdapterUse, Request, Song

SAMPLER = Sampler(Shifted(steps=4, shift=1.0), Euler(), CFG(scale=2.0))
RATE, HOP = 48_000, 1920


@pytest.fixture(scope="module")
def pipeline(tiny: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of stereo tones that change in time."""
    time = torch.arange(2 * RATE) / RATE
    notes = torch.stack([torch.sin(6.2832 * 220 * time * (1 + time)), torch.sin(6.2832 * 330 * time)])
    return Audio(0.1 * notes, RATE).save(tmp_path_factory.mktemp("source") / "source.wav")


def made(pipeline: Pipeline, request: Song, sampler: Sampler = SAMPLER) -> torch.Tensor:
    (audio,) = pipeline.generate([request], sampler, normalize="none")
    return audio.samples


def reconstruction(pipeline: Pipeline, samples: torch.Tensor) -> torch.Tensor:
    return pipeline.decode(pipeline.encode(Audio(samples, RATE)).mean)[0]


def read(path: Path) -> torch.Tensor:
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0].T.copy())


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.9, 1.0])
def test_a_repaint_keeps_the_reconstruction_outside_the_span(pipeline: Pipeline, source: Path, strength: float) -> None:
    request = Request(task="repaint", source=str(source), start=0.8, end=1.2, repaint_strength=strength, caption="new")
    samples, kept = made(pipeline, request), reconstruction(pipeline, read(source))
    fade = round(25 * (1 - strength)) * HOP
    first, end = 20 * HOP - fade, 30 * HOP + fade
    torch.testing.assert_close(samples[:, : max(first, 0)], kept[:, : max(first, 0)], atol=1e-6, rtol=0)
    torch.testing.assert_close(samples[:, end:], kept[:, end:], atol=1e-6, rtol=0)
    assert (samples - kept)[:, 20 * HOP : 30 * HOP].abs().max() > 1e-2
    jumps = (samples - kept)[:, max(first - 1, 0) : end + 1].diff(dim=1).abs()
    assert strength == 1 or jumps[:, :2].max() < 0.05


def test_splice_source_and_none(pipeline: Pipeline, source: Path) -> None:
    request = Request(task="repaint", source=str(source), start=0.8, end=1.2, splice="source")
    samples, own = made(pipeline, request), read(source)
    ramp = int(0.025 * RATE)
    assert torch.equal(samples[:, : 20 * HOP - ramp], own[:, : 20 * HOP - ramp])
    assert torch.equal(samples[:, 30 * HOP + ramp :], own[:, 30 * HOP + ramp :])
    loose = made(pipeline, Request(task="repaint", source=str(source), start=0.8, end=1.2, splice="none"))
    assert not torch.allclose(loose[:, 20 * HOP : 21 * HOP], own[:, 20 * HOP : 21 * HOP], atol=1e-2)


@pytest.mark.parametrize(("start", "end", "frames", "kept"), [(-0.4, 0.0001, 60, (10, 60)), (2.0, 2.6, 65, (0, 50))])
def test_a_span_beyond_the_source_extends_the_song(
    pipeline: Pipeline, source: Path, start: float, end: float, frames: int, kept: tuple[int, int]
) -> None:
    request = Request(task="repaint", source=str(source), start=start, end=end, repaint_strength=1.0)
    samples = made(pipeline, request)
    assert samples.shape == (2, frames * HOP)
    before, after = (round(max(0.0, seconds) * RATE) for seconds in (-start, end - 2))
    whole = reconstruction(pipeline, torch.nn.functional.pad(read(source), (before, after)))
    first, last = (edge * HOP for edge in kept)
    first += HOP  # the frame in which start=0.0001 falls is made
    torch.testing.assert_close(samples[:, first:last], whole[:, first:last], atol=1e-6, rtol=0)


def test_conditions_of_cover_and_edit(pipeline: Pipeline, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    encode = type(pipeline.conditioner).encode
    monkeypatch.setattr(
        type(pipeline.conditioner),
        "encode",
        lambda self, songs, frames, layouts: seen.append((songs, layouts)) or encode(self, songs, frames, layouts),
    )
    base = {"source": str(source), "caption": "x"}
    made(pipeline, Request(task="cover", cover_strength=0.5, **base))
    (_, (first,)), (_, (second,)) = seen
    assert first.is_cover
    assert not second.is_cover
    assert first.instruction == task_instruction("cover")
    assert second.instruction == task_instruction("text2music")
    assert torch.equal(second.source, pipeline.conditioner.silence.repeat(1, 2, 1)[0, :50])
    assert torch.allclose(first.source, pipeline.encode(Audio(read(source), RATE)).mean[0])
    seen.clear()
    made(pipeline, Request(task="edit", source_caption="a", source_lyrics="b", lyrics="c", **base))
    assert [(songs[0].caption, songs[0].lyrics) for songs, _ in seen] == [("x", "c"), ("a", "b")]


def test_strengths_and_their_limits(pipeline: Pipeline, source: Path) -> None:
    whole, none = (Request(task="cover", source=str(source), cover_strength=share) for share in (1.0, 0.0))
    plain = Song(seconds=2.0)
    assert not torch.allclose(made(pipeline, whole), made(pipeline, none), atol=1e-3)
    torch.testing.assert_close(made(pipeline, none), made(pipeline, plain))
    still = Sampler(Shifted(steps=20, shift=1.0), Euler(), NoGuidance())
    clean = pipeline.encode(Audio(read(source), RATE)).mean[0]
    away = []
    for share in (0.0, 0.5, 0.95):
        song = pipeline.resolve(Request(task="cover", source=str(source), source_strength=share))
        away.append(float((pipeline.latents([song], still)[0] - clean).square().mean()))
    assert away[0] > away[1] > away[2]
    edit = pipeline.resolve(Request(task="edit", source=str(source), edit_start=1.0, caption="other"))
    torch.testing.assert_close(pipeline.latents([edit], still)[0], clean)
    steps: list[int] = []
    pipeline.latents([replace(edit, edit_start=0.5, edit_stop=0.8)], still, lambda step, x, v: steps.append(step.index))
    assert steps == list(range(10, 20))
    with pytest.raises(ValueError, match=r"^solver=.*: task edit supports Euler steps"):
        pipeline.latents([edit], replace(still, solver=Heun()))
    takes = [
        pipeline.latents([pipeline.resolve(Request(retake=share, retake_seed=9))], still)[0] for share in (0, 0.5, 1)
    ]
    (other,) = pipeline.latents([pipeline.resolve(Song(seed=9))], still)
    torch.testing.assert_close(takes[2], other, atol=1e-4, rtol=1e-4)
    assert (takes[1] - takes[0]).norm() < (takes[2] - takes[0]).norm()


def test_references_are_conditions(pipeline: Pipeline, source: Path, tmp_path: Path) -> None:
    short = Audio(torch.rand(1, 4_000) - 0.5, 16_000).save(tmp_path / "short.wav")
    alone = made(pipeline, Song())
    one = made(pipeline, Request(references=(str(source),)))
    two = made(pipeline, Request(references=(str(source), str(short))))
    assert not torch.equal(alone, one)
    assert not torch.equal(two, one)
    (item,) = pipeline._prepare([pipeline.resolve(Request(references=(str(source), str(short))))])
    samples, window = read(source), 3 * HOP
    parts = [samples[:, :window], samples[:, RATE * 2 // 3 :][:, :window], samples[:, -4 * HOP :]]
    expected = pipeline.encode(Audio(torch.cat(parts, dim=1), RATE)).mean[0]
    torch.testing.assert_close(item.context.references[0], expected)
    assert item.context.references.shape == (2, 10, 64)
    silent = Audio(torch.zeros(2, 48_000), 48_000).save(tmp_path / "silent.wav")
    with pytest.raises(ValueError, match=r"song\.references=.*is silent"):
        made(pipeline, Request(references=(str(silent),)))


def test_mixed_requests_equal_single_ones(pipeline: Pipeline, source: Path) -> None:
    base = {"source": str(source), "seed": 4}
    requests = [
        Song(seconds=0.4),
        Request(task="cover", **base),
        Request(task="cover", references=(str(source),), **base),
        Request(task="repaint", start=1.0, **base),
        Request(task="repaint", start=0.2, end=0.4, **base),
        Request(seconds=1.0, references=(str(source),)),
    ]
    together = list(pipeline.generate(requests, SAMPLER, batch_size=4, normalize="none"))
    for request, audio in zip(requests, together, strict=True):
        torch.testing.assert_close(audio.samples, made(pipeline, request), atol=2e-4, rtol=1e-4)


def test_sources_of_any_kind(pipeline: Pipeline, tmp_path: Path) -> None:
    noise = torch.rand(96_000, 2) - 0.5
    files = [
        ("a.wav", noise[:8_000, :1], 8_000, "PCM_U8"),
        ("b.flac", noise, 192_000, "PCM_24"),
        ("c.ogg", noise, 44_100, None),
    ]
    for name, samples, rate, subtype in files:
        soundfile.write(tmp_path / name, samples.numpy(), rate, subtype=subtype)
        song = pipeline.resolve(Request(task="cover-nofsq", source=str(tmp_path / name)))
        assert song.seconds == pytest.approx(len(samples) / rate, abs=0.04)
        assert made(pipeline, song).shape == (2, round(song.seconds * RATE))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"task": "covr"}, "song.task=covr: did you mean cover?"),
        ({"task": "cover", "source": None}, "song.source: task cover starts from a recording"),
        ({"task": "cover", "source": "none.wav"}, "song.source=none.wav: no such file"),
        ({"task": "text2music"}, "song.source=.*: task text2music takes none"),
        ({"task": "repaint"}, "song.start: task repaint needs"),
        ({"task": "repaint", "start": 3.0, "end": 4.0}, "song.start=3: the source is 2.00 s long"),
        ({"task": "repaint", "start": 1.0, "end": 0.5}, "song.end=0.5: need more than"),
        ({"task": "repaint", "start": 1.0, "end": 99.0}, "song.end=99.0: the song would last 99 s"),
        ({"task": "repaint", "start": -99.0, "end": 1.0}, "song.start=-99.0: the song would last"),
        ({"task": "repaint", "start": float("nan")}, "song.start=nan"),
        ({"task": "cover", "start": 1.0}, "song.start=1: only tasks repaint and lego"),
        ({"task": "cover", "seconds": 1.0}, "song.seconds=1: task cover lasts as long as its source, 2 s"),
        ({"task": "cover", "cover_strength": 1.5}, "song.cover_strength=1.5: need 0 to 1"),
        ({"task": "cover", "splice": "hard"}, "song.splice=hard: there are"),
        ({"task": "cover", "tracks": ("drums",)}, "song.tracks=drums: task cover takes none"),
        ({"task": "lego", "tracks": ("drum",)}, "song.tracks=drum: did you mean drums?"),
        ({"task": "lego"}, "song.task=lego: .* was not trained for it"),
    ],
)
def test_invalid_requests_are_refused_with_the_field(
    pipeline: Pipeline, source: Path, values: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        pipeline.generate([Request(**({"source": str(source)} | values))])


def test_untrained_tasks_on_demand(tiny: Path, source: Path) -> None:
    pipeline = Pipeline.from_pretrained(tiny, allow_untrained=True)
    tracks = {"extract": ("vocals",), "lego": ("drums",), "complete": ("bass", "brass")}
    for task, named in tracks.items():
        assert made(pipeline, Request(task=task, source=str(source), tracks=named)).shape[1] == 50 * HOP


def test_adapters_are_switched_by_request_and_merged(tiny: Path, adapters: list[str]) -> None:
    pipeline = Pipeline.from_pretrained(tiny)
    first, second = (AdapterUse(path=path) for path in adapters)
    plain = made(pipeline, Song())
    requests = [
        Request(adapters=(first,)),
        Request(),
        Request(adapters=(second, first)),
        Request(adapters=(AdapterUse(path=adapters[0], scale=0.0),)),
    ]
    one, none, both, nothing = (audio.samples for audio in pipeline.generate(requests, SAMPLER, 4, "none"))
    torch.testing.assert_close(none, plain)
    torch.testing.assert_close(nothing, plain, atol=1e-5, rtol=1e-5)
    alone = Pipeline.from_pretrained(adapters[0])
    torch.testing.assert_close(one, made(alone, Song()), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one, both, atol=1e-3)
    pipeline.adapter_set.merge([second, first])
    assert not any("lora" in name for name, _ in pipeline.network.named_parameters())
    for again in (Song(), requests[2]):
        torch.testing.assert_close(made(pipeline, again), both, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="others were merged into the weights"):
        made(pipeline, requests[0])


def test_merged_adapters_are_quantized(tiny: Path, adapters: list[str]) -> None:
    use = AdapterUse(path=adapters[0])
    merged = Pipeline.from_pretrained(tiny, memory="int8", merged=[use])
    close = made(merged, Request(adapters=(use,)))
    (plain,) = Pipeline.from_pretrained(tiny).generate([Request(adapters=(use,))], SAMPLER, normalize="none")
    assert (close - plain.samples).norm() < 0.2 * plain.samples.norm()
    assert (close - made(Pipeline.from_pretrained(tiny), Song())).norm() > 0.5 * plain.samples.norm()


def test_previews_follow_the_sampler(pipeline: Pipeline) -> None:
    seen = []
    list(pipeline.generate([Song()], SAMPLER, on_step=lambda step, x_t, velocity: seen.append((step.index, x_t.shape))))
    assert seen == [(index, (1, 10, 64)) for index in range(4)]


def test_crossfade_ramps_are_outside_the_span() -> None:
    mixed = crossfade(torch.ones(1, 10), torch.zeros(1, 10), 4, 6, 3)
    assert mixed[0].tolist() == [0, 0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0]
