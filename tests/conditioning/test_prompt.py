"""A song's words as the networks read them."""

from __future__ import annotations

from acestep.conditioning.prompt import render
from acestep.types import Song


def test_a_full_song() -> None:
    song = Song(
        caption="warm piano",
        lyrics="[verse]\nla",
        language="fr",
        seconds=8.96,
        bpm=90,
        key="C major",
        time_signature="4",
    )
    prompt = render(song)
    assert prompt.text == (
        "# Instruction\nFill the audio semantic mask based on the given conditions:\n\n# Caption\nwarm piano\n\n"
        "# Metas\n- bpm: 90\n- timesignature: 4\n- keyscale: C major\n- duration: 8 seconds\n<|endoftext|>\n"
    )
    assert prompt.lyrics == "# Languages\nfr\n\n# Lyric\n[verse]\nla<|endoftext|>"


def test_an_empty_song_is_an_instrumental_of_unknown_metadata() -> None:
    prompt = render(Song(lyrics=" \n"))
    assert prompt.lyrics.endswith("# Lyric\n[Instrumental]<|endoftext|>")
    assert "- bpm: N/A\n- timesignature: N/A\n- keyscale: N/A\n- duration: 30 seconds\n" in prompt.text


def test_a_formatted_prompt_as_caption_is_reduced_to_its_caption() -> None:
    inner = render(Song(caption="the caption"))
    assert render(Song(caption=inner.text)) == inner
