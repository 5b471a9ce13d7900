"""The module: what trains, what a step draws, what validation measures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from training import jobs

from acestep.pipeline.pipeline import Pipeline
from acestep.songs import Song
from acestep.training.dit import condition_parts, sample_latents
from acestep.training.module import derived_generator, derived_seed, freeze


class Draws(Callback):
    """Keeps the songs, times and losses of every batch."""

    def __init__(self) -> None:
        self.songs: list[int] = []
        self.times: list[float] = []
        self.gradients: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        self.songs += batch.indices
        self.times += outputs["t"].tolist()

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        grads = [p.grad.flatten() for p in module.network.parameters() if p.grad is not None]
        self.gradients.append(torch.cat(grads).clone())


@pytest.mark.parametrize(
    ("trainable", "prefixes"),
    [
        (r"^decoder\.", ("decoder.",)),
        (r"^(decoder|encoder)\.|^null_condition_emb$", ("decoder.", "encoder.", "null_condition_emb")),
        (r"self_attn\..*_proj", ("decoder.layers", "encoder.", "tokenizer.", "detokenizer.")),
    ],
)
def test_freeze_leaves_matching_parameters_trainable(tiny: Path, trainable: str, prefixes: tuple[str, ...]) -> None:
    network = Pipeline.from_pretrained(tiny).network
    freeze(network, trainable)
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert names
    assert all(name.startswith(prefixes) for name in names)


def test_only_trainable_parameters_change(run, tiny: Path, tmp_path: Path) -> None:
    before = Pipeline.from_pretrained(tiny).network.state_dict()
    after = run(tmp_path, steps=2, task=jobs.DiT(trainable=r"^encoder\.")).network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("encoder.") for name in changed)


def test_the_null_embedding_trains_where_conditions_are_dropped(run, tiny: Path, tmp_path: Path) -> None:
    before = Pipeline.from_pretrained(tiny).network.null_condition_emb
    assert not torch.equal(run(tmp_path, steps=4).network.null_condition_emb, before)


def test_accumulated_batches_equal_one_large_batch(run, tmp_path: Path) -> None:
    large, small = Draws(), Draws()
    run(tmp_path / "large", steps=1, batch_size=4, callbacks=[large])
    run(tmp_path / "small", steps=1, batch_size=2, trainer={"accumulate": 2}, callbacks=[small])
    assert large.songs == small.songs
    assert large.times == small.times


def test_every_step_has_new_random_draws(run, tmp_path: Path) -> None:
    draws = Draws()
    run(tmp_path, steps=6, callbacks=[draws])
    assert len(set(draws.times)) == len(draws.times)


def test_every_epoch_contains_every_song_once(run, tmp_path: Path) -> None:
    draws = Draws()
    run(tmp_path, steps=3, batch_size=3, callbacks=[draws])
    assert len(set(draws.songs)) == 9


def test_latents_are_sampled_from_the_posterior(store: Path) -> None:
    from acestep.data import LatentDataset, collate

    batch = collate([LatentDataset(store)[index] for index in range(3)])
    drawn = torch.stack([sample_latents(batch, [derived_generator(n, row) for row in range(3)]) for n in range(200)])
    valid = batch.frame_mask
    torch.testing.assert_close(drawn.mean(0)[valid], batch.mean.float()[valid], atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.std(0)[valid], batch.scale.float()[valid], atol=0.03, rtol=0)
    assert (drawn.transpose(0, 1)[~valid[:, None].expand(-1, 200, -1)] == 0).all()


def test_condition_parts_locate_the_tokens(tiny: Path) -> None:
    pipeline = Pipeline.from_pretrained(tiny)
    songs = [Song(caption="a long caption of a song"), Song(caption="b", lyrics="[verse]\nla la la")]
    inputs, silence = pipeline.conditioner.encode(songs, [10, 7]), pipeline.conditioner.silence
    encoder = pipeline.network.encoder
    with torch.no_grad():
        conditions = pipeline.network.condition(inputs, silence)
        text, lyrics = encoder.text_projector(inputs.text), encoder.lyric_encoder(inputs.lyrics, inputs.lyrics_mask)
    parts = condition_parts(inputs, conditions, silence)
    assert torch.equal(sum(rows.int() for rows in parts.rows.values()), conditions.mask.int())
    for song in range(2):
        states = conditions.states[song]
        assert torch.equal(states[parts.rows["text"][song]], text[song][inputs.text_mask[song]])
        assert torch.equal(states[parts.rows["lyrics"][song]], lyrics[song][inputs.lyrics_mask[song]])
        assert parts.rows["timbre"][song].sum() == 1
    assert torch.equal(parts.context[0], conditions.context[0])  # a text-to-music song has no other context


def test_seeds_of_different_counters_differ_and_stay() -> None:
    seeds = {derived_seed(seed, name, step) for seed in range(5) for name in ("a", "b") for step in range(50)}
    assert len(seeds) == 500
    assert derived_seed(1, 23) != derived_seed(12, 3)
    assert derived_seed(0, "training", 7) == derived_seed(0, "training", 7)
    assert all(0 <= seed < 2**63 for seed in seeds)
