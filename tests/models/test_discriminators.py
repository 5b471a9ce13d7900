"""The STFT discriminator and the reconstruction losses."""

from __future__ import annotations

import pytest
import torch

from acestep.models.discriminators import (
    Discriminator,
    DiscriminatorConfig,
    discriminator_loss,
    feature_loss,
    generator_loss,
)
from acestep.models.reconstruction import gaussian_kl, mel_distance, stereo_distance, stft_distance, sum_difference

AUDIO = 0.3 * torch.randn(2, 2, 400, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def discriminator() -> Discriminator:
    discriminator = Discriminator(DiscriminatorConfig(channels=4, sizes=(64, 32)))
    discriminator.init_weights(torch.Generator().manual_seed(0))
    return discriminator


def test_initialisation_depends_on_the_generator_only(discriminator: Discriminator) -> None:
    again = Discriminator(discriminator.config)
    again.init_weights(torch.Generator().manual_seed(0))
    assert all(
        torch.equal(one, other) for one, other in zip(discriminator.parameters(), again.parameters(), strict=True)
    )


def test_discriminator_learns_to_separate_two_signals(discriminator: Discriminator) -> None:
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        loss = discriminator_loss(discriminator(AUDIO), discriminator(0.01 * AUDIO))
        loss.backward()
        optimizer.step()
    real, made = discriminator(AUDIO), discriminator(0.01 * AUDIO)
    assert loss < 1.0
    assert generator_loss(real) < generator_loss(made)


def test_feature_loss_of_equal_audio_is_zero(discriminator: Discriminator) -> None:
    outputs = discriminator(AUDIO)
    assert [len(output.features) for output in outputs] == [5, 5]
    assert feature_loss(outputs, outputs) == 0
    assert feature_loss(outputs, discriminator(0.5 * AUDIO)) > 0.01


def test_audio_shorter_than_the_window_is_padded(discriminator: Discriminator) -> None:
    assert all(output.logits.isfinite().all() for output in discriminator(AUDIO[..., :20]))


def test_distances_are_zero_for_the_same_and_grow_with_noise() -> None:
    noise = torch.randn(AUDIO.shape, generator=torch.Generator().manual_seed(1))
    for distance in (stft_distance, lambda one, other: mel_distance(one, other, 400)):
        values = [float(distance(AUDIO + level * noise, AUDIO)) for level in (0.0, 0.01, 0.1, 1.0)]
        assert values[0] == 0
        assert values == sorted(values)


def test_sum_difference_is_more_sensitive_to_stereo_errors() -> None:
    mono = AUDIO.mean(1, keepdim=True).expand(-1, 2, -1)
    near = mono * torch.tensor([1.001, 0.999])[None, :, None]
    found = stereo_distance(near, mono)
    assert found["stft_sum_difference"] > 10 * found["stft"]
    assert set(stereo_distance(AUDIO[:, :1], AUDIO[:, :1])) == {"stft"}
    torch.testing.assert_close(sum_difference(sum_difference(AUDIO)), AUDIO / 2)


def test_losses_of_a_batch_are_the_mean_over_songs(discriminator: Discriminator) -> None:
    """So that ranks and batches of any size make the same step."""
    target = AUDIO * torch.logspace(0, -3, len(AUDIO))[:, None, None]
    made = target + 0.01 * torch.randn(AUDIO.shape, generator=torch.Generator().manual_seed(1))

    def losses(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        real, fake = discriminator(target), discriminator(made)
        spectral = [stft_distance(made, target), mel_distance(made, target, 400), stereo_distance(made, target)["stft"]]
        return torch.stack([*spectral, discriminator_loss(real, fake), generator_loss(fake), feature_loss(real, fake)])

    alone = [losses(one[None], other[None]) for one, other in zip(made, target, strict=True)]
    torch.testing.assert_close(losses(made, target), torch.stack(alone).mean(0), rtol=1e-4, atol=1e-5)


def test_silence_does_not_dominate_the_distance() -> None:
    quiet = torch.zeros_like(AUDIO)
    assert stft_distance(quiet + 1e-3, quiet) < stft_distance(torch.zeros_like(AUDIO), AUDIO)


def test_distances_have_finite_gradients_in_silence() -> None:
    made = torch.zeros_like(AUDIO, requires_grad=True)
    (stft_distance(made, torch.zeros_like(AUDIO)) + mel_distance(made, AUDIO, 400)).backward()
    assert made.grad.isfinite().all()


def test_kl_equals_torch_distributions() -> None:
    mean, scale = AUDIO.transpose(1, 2), AUDIO.transpose(1, 2).abs() + 0.1
    target = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, scale), torch.distributions.Normal(0, 1)
    )
    torch.testing.assert_close(gaussian_kl(mean, scale), target.sum(-1).mean())


def test_too_small_transforms_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"discriminator\.sizes=\[4\]"):
        DiscriminatorConfig(sizes=(4,))
