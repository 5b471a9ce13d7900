"""Planning with a tiny Qwen3 of random weights: every output is a valid plan, independent of its batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_language import language_model
from transformers import GenerationConfig

from acestep.evaluation.planner_study import rule_violations
from acestep.planner import prompts
from acestep.planner.decoding import Decoding
from acestep.planner.grammar import KEY_NAMES, OutputGrammars, Rules
from acestep.planner.model import LanguageModel
from acestep.planner.plan import Planner, PlannerConfig, plan_metadata
from acestep.songs import Song
from acestep.weights.checkpoint import Lengths

SHORT = Rules(seconds=(1, 3), caption_tokens=6, lyric_tokens=8)
FULL = Song(
    caption="bells", lyrics="[verse]\nla", seconds=2.0, bpm=90, key="C major", time_signature="4", language="en"
)


def planner(model: LanguageModel, batch_size: int = 8, rules: Rules = SHORT, **decoding: float) -> Planner:
    return Planner(model, PlannerConfig(path="", batch_size=batch_size, rules=rules, decoding=Decoding(**decoding)))


def songs(count: int) -> list[Song]:
    """Requests of different lengths and open fields."""
    return [
        Song(seed=0),
        Song(caption="a waltz for strings", time_signature="3", seed=1),
        replace(FULL, key=None, seed=2),
        Song(lyrics="[verse]\nla la la la la\n[chorus]\noh", language="fr", seconds=1.0, seed=3),
        *(Song(caption="x" * index, seed=index) for index in range(4, count)),
    ][:count]


@pytest.mark.parametrize("decoding", [{}, {"temperature": 0.0}, {"top_k": 5, "repetition_penalty": 1.3}])
def test_plans_do_not_depend_on_the_batch(language: LanguageModel, decoding: dict) -> None:
    asked = songs(5)
    assert planner(language, batch_size=5, **decoding).plan(asked) == planner(language, 1, **decoding).plan(asked)


def test_plans_depend_on_the_seed_only(language: LanguageModel) -> None:
    torch.manual_seed(torch.seed())
    first, again, other = (planner(language).plan([Song(seed=seed)])[0] for seed in (1, 1, 2))
    assert first == again
    assert first.codes != other.codes


@pytest.mark.parametrize("guided", [False, True])
def test_generation_with_and_without_the_kv_cache_is_equal(language: LanguageModel, guided: bool) -> None:
    grammars, words = OutputGrammars(language.vocabulary, SHORT), language.vocabulary
    asked = [
        words.encode(prompts.generation_prompt(caption, "la", prompts.EMPTY_PLAN).text)
        for caption in ("a", "a longer one")
    ]
    negative = [words.encode(prompts.unconditional_prompt().text)] * 2 if guided else None

    def written(use_cache: bool) -> list[list[int]]:
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        matchers = [grammars.codes(12), grammars.codes(5)]
        return language.generate(asked, matchers, generators, Decoding(), negative, use_cache=use_cache)

    kept = written(use_cache=True)
    assert kept == written(use_cache=False)
    assert [len(answer) for answer in kept] == [13, 6]


def test_guidance_extrapolates_from_the_unconditional_logits_of_allowed_codes(language: LanguageModel) -> None:
    words = language.vocabulary
    asked, negative = (
        words.encode(prompts.generation_prompt("a", "b", prompts.EMPTY_PLAN).text),
        words.encode("nothing"),
    )
    logits = [language.network(torch.tensor([row])).logits[0, -1] for row in (asked, negative)]
    first = slice(words.first_code, words.first_code + words.codes)
    wanted = (logits[1] + 3.0 * (logits[0] - logits[1]))[first].argmax()
    matcher = OutputGrammars(words, SHORT).codes(1)
    decoding = Decoding(temperature=0.0, guidance=3.0)
    (answer,) = language.generate([asked], [matcher], [torch.Generator()], decoding, [negative])
    assert answer == [words.first_code + int(wanted), words.end]
    assert wanted != logits[0][first].argmax()


def test_fields_of_the_request_are_kept_and_open_fields_filled(language: LanguageModel) -> None:
    for request, plan in zip(songs(4), planner(language).plan(songs(4)), strict=True):
        assert not rule_violations(plan, SHORT, codes=1000)
        assert plan.request == request
        given = {name: value for name, value in plan_metadata(request).items() if value is not None}
        assert given.items() <= plan_metadata(plan.song).items()
        assert plan.song.lyrics == request.lyrics


def test_a_complete_request_is_not_planned(language: LanguageModel) -> None:
    (plan,) = planner(language).plan([FULL])
    assert plan.song == FULL
    assert len(plan.codes) == 10
    assert plan.block == prompts.write_plan(plan_metadata(FULL))


def test_the_caption_is_rewritten_only_with_rewrite_caption(language: LanguageModel) -> None:
    config = PlannerConfig(path="", rules=SHORT, rewrite_caption=True, codes=False)
    (plan,) = Planner(language, config).plan([FULL])
    assert plan.request.caption == "bells"
    assert plan.song.caption != "bells"
    assert not plan.codes


def test_codes_are_described(language: LanguageModel) -> None:
    described = planner(language, temperature=2.0, top_p=1.0).describe([[1, 2, 3] * 5, [], [7]], seeds=[0, 1, 2])
    assert described[0].song.seconds == 3.0
    for found in described:
        assert found.song.key in KEY_NAMES
        assert found.song.caption
        assert found.genres


def test_a_model_not_trained_on_captioning_refuses_to_describe() -> None:
    planner_only = PlannerConfig(path="micro_planner").load()
    with pytest.raises(ValueError, match=r"planner\.path=micro_planner: was not trained to describe codes"):
        planner_only.describe([[1, 2]], [0])


def test_a_saved_model_gives_the_same_plans(language: LanguageModel, tmp_path: Path) -> None:
    folder = language.save(tmp_path / "lm")
    loaded = PlannerConfig(path=str(folder), rules=SHORT).load(lengths=Lengths(min_seconds=1.5, default_seconds=2.0))
    assert loaded.config.rules.seconds == (2, 3)
    assert isinstance(loaded.model.network.generation_config, GenerationConfig)
    whole = Song(caption="x", seconds=2.0, bpm=60, key="C major", time_signature="3")
    assert loaded.plan([whole]) == planner(language).plan([whole])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", '{"model_type": "bert"}'),  # transformers would initialise all weights at random
        ("tokenizer.json", None),
        ("tokenizer.json", "{"),
        ("model.safetensors", None),
        ("model.safetensors", "cut off"),
    ],
)
def test_a_broken_folder_is_a_one_line_error(
    language: LanguageModel, tmp_path: Path, file: str, content: str | None
) -> None:
    folder = language.save(tmp_path / "lm")
    (folder / file).unlink()
    if content:
        (folder / file).write_text(content)
    with pytest.raises(ValueError, match=r"planner\.path=.*lm: .*; copy the whole folder") as refused:
        LanguageModel.from_folder(folder)
    assert "\n" not in str(refused.value)


def test_a_request_longer_than_the_context_is_refused() -> None:
    small = language_model(max_position_embeddings=200)
    with pytest.raises(ValueError, match="the language model's context is 200; shorten the lyrics"):
        planner(small).plan([Song(lyrics="la " * 300)])
    with pytest.raises(ValueError, match=r"song\.seconds: the language model's context is full"):
        planner(small).plan([replace(FULL, seconds=300.0)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, r"planner\.decoding\.temperature=-1: need >= 0"),
        ({"top_p": 0.0}, r"planner\.decoding\.top_p=0: need 0 < top_p <= 1"),
        ({"top_k": -1}, r"planner\.decoding\.top_k=-1: need >= 0"),
        ({"guidance": 0.5}, r"planner\.decoding\.guidance=0\.5: need >= 1"),
        ({"repetition_penalty": 0.0}, r"planner\.decoding\.repetition_penalty=0: need > 0"),
    ],
)
def test_invalid_decoding_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(**settings)


def test_samples_follow_the_probabilities() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0])
    generator = torch.Generator().manual_seed(0)

    def shares(**settings: float) -> list[float]:
        rows = logits.expand(1500, -1)
        drawn = Decoding(**settings).sample(rows, [generator] * len(rows))
        return (drawn.bincount(minlength=4) / 1500).tolist()

    assert shares(temperature=1.0, top_p=1.0) == pytest.approx(logits.softmax(0).tolist(), abs=0.05)
    assert shares(temperature=2.0, top_p=1.0) == pytest.approx((logits / 2).softmax(0).tolist(), abs=0.05)
    assert shares(temperature=1.0, top_p=1.0, top_k=2)[0::3] == [0, 0]
    assert shares(temperature=1.0, top_p=0.7)[0::3] == [0, 0]
    assert shares(temperature=1.0, top_p=0.1) == [0, 1, 0, 0]
