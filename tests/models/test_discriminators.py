"""Judges and spectral distances: what they must tell apart, and what they must not."""

from __future__ import annotations

import pytest
import torch

from acestep.models.discriminators import (
    Discriminator,
    DiscriminatorConfig,
    deceive_loss,
    feature_loss,
    judge_loss,
)
from acestep.models.reconstruction import gaussian_kl, mel_distance, stereo_distance, stft_distance, sum_difference

AUDIO = 0.3 * torch.randn(2, 2, 400, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def judges() -> Discriminator:
    judges = Discriminator(DiscriminatorConfig(channels=4, sizes=(64, 32)))
    judges.init_weights(torch.Generator().manual_seed(0))
    return judges


def test_start_values_follow_the_generator_alone(judges: Discriminator) -> None:
    again = Discriminator(judges.config)
    again.init_weights(torch.Generator().manual_seed(0))
    assert all(torch.equal(one, other) for one, other in zip(judges.parameters(), again.parameters(), strict=True))


def test_judges_learn_to_tell_noise_from_silence(judges: Discriminator) -> None:
    optimizer = torch.optim.Adam(judges.parameters(), lr=1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        loss = judge_loss(judges(AUDIO), judges(0.01 * AUDIO))
        loss.backward()
        optimizer.step()
    real, made = judges(AUDIO), judges(0.01 * AUDIO)
    assert loss < 1.0
    assert deceive_loss(real) < deceive_loss(made)


def test_features_of_the_same_sound_are_the_same(judges: Discriminator) -> None:
    verdicts = judges(AUDIO)
    assert [len(verdict.features) for verdict in verdicts] == [5, 5]
    assert feature_loss(verdicts, verdicts) == 0
    assert feature_loss(verdicts, judges(0.5 * AUDIO)) > 0.01


def test_a_piece_shorter_than_the_window_is_judged(judges: Discriminator) -> None:
    assert all(verdict.logits.isfinite().all() for verdict in judges(AUDIO[..., :20]))


def test_distances_are_zero_for_the_same_and_grow_with_noise() -> None:
    noise = torch.randn(AUDIO.shape, generator=torch.Generator().manual_seed(1))
    for distance in (stft_distance, lambda one, other: mel_distance(one, other, 400)):
        values = [float(distance(AUDIO + level * noise, AUDIO)) for level in (0.0, 0.01, 0.1, 1.0)]
        assert values[0] == 0
        assert values == sorted(values)


def test_the_difference_hears_what_the_channels_alone_do_not() -> None:
    mono = AUDIO.mean(1, keepdim=True).expand(-1, 2, -1)
    near = mono * torch.tensor([1.001, 0.999])[None, :, None]
    found = stereo_distance(near, mono)
    assert found["stft_sum_difference"] > 10 * found["stft"]
    assert set(stereo_distance(AUDIO[:, :1], AUDIO[:, :1])) == {"stft"}
    torch.testing.assert_close(sum_difference(sum_difference(AUDIO)), AUDIO / 2)


def test_a_batch_is_judged_as_its_songs_are(judges: Discriminator) -> None:
    """Whatever a song is batched with: then ranks and batches of any size make the same step."""
    wanted = AUDIO * torch.logspace(0, -3, len(AUDIO))[:, None, None]
    made = wanted + 0.01 * torch.randn(AUDIO.shape, generator=torch.Generator().manual_seed(1))

    def losses(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        real, other = judges(wanted), judges(made)
        spectral = [stft_distance(made, wanted), mel_distance(made, wanted, 400), stereo_distance(made, wanted)["stft"]]
        return torch.stack([*spectral, judge_loss(real, other), deceive_loss(other), feature_loss(real, other)])

    alone = [losses(one[None], other[None]) for one, other in zip(made, wanted, strict=True)]
    torch.testing.assert_close(losses(made, wanted), torch.stack(alone).mean(0), rtol=1e-4, atol=1e-5)


def test_silence_does_not_drown_out_music() -> None:
    quiet = torch.zeros_like(AUDIO)
    assert stft_distance(quiet + 1e-3, quiet) < stft_distance(torch.zeros_like(AUDIO), AUDIO)


def test_distances_have_finite_gradients_in_silence() -> None:
    made = torch.zeros_like(AUDIO, requires_grad=True)
    (stft_distance(made, torch.zeros_like(AUDIO)) + mel_distance(made, AUDIO, 400)).backward()
    assert made.grad.isfinite().all()


def test_kl_is_that_of_torch() -> None:
    mean, scale = AUDIO.transpose(1, 2), AUDIO.transpose(1, 2).abs() + 0.1
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, scale), torch.distributions.Normal(0, 1)
    )
    torch.testing.assert_close(gaussian_kl(mean, scale), wanted.sum(-1).mean())


def test_transforms_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match=r"discriminator\.sizes=\[4\]"):
        DiscriminatorConfig(sizes=(4,))
