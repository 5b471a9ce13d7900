"""Songs rendered as prompts."""

from __future__ import annotations

from acestep.conditioning.prompt import render_prompt
from acestep.songs import Song


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
    prompt = render_prompt(song)
    assert prompt.text == (
        "# Instruction\nFill the audio semantic mask based on the given conditions:\n\n# Caption\nwarm piano\n\n"
        "# Metas\n- bpm: 90\n- timesignature: 4\n- keyscale: C major\n- duration: 8 seconds\n<|endoftext|>\n"
    )
    assert prompt.lyrics == "# Languages\nfr\n\n# Lyric\n[verse]\nla<|endoftext|>"


def test_an_empty_song_is_an_instrumental_of_unknown_metadata() -> None:
    prompt = render_prompt(Song(lyrics=" \n"))
    assert prompt.lyrics.endswith("# Lyric\n[Instrumental]<|endoftext|>")
    assert "- bpm: N/A\n- timesignature: N/A\n- keyscale: N/A\n- duration: 30 seconds\n" in prompt.text


def test_a_formatted_prompt_as_caption_is_reduced_to_its_caption() -> None:
    inner = render_prompt(Song(caption="the caption"))
    assert render_prompt(Song(caption=inner.text)) == inner
