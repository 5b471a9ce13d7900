"""What a person asks for, in words and numbers: before any tensor, file or network. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

SHOWN = 60
"""Characters of a wrong value that a message repeats."""


@dataclass(frozen=True, kw_only=True)
class Song:
    """One request or one training example, in words: what a person writes down before any tensor exists.

    What is left at ``None`` is written as ``N/A`` in the prompt.

    Attributes:
        caption: the music in words: style, instruments, mood, voice; up to some 500 characters.
        lyrics: with their structure in brackets, such as ``[verse]``; empty for an instrumental; ``@FILE`` is read.
        language: of the lyrics, by code or English name.
        seconds: how long it lasts; left out, the checkpoint's usual length.
        bpm: beats a minute, 30 to 300.
        key: such as ``C major`` or ``F# minor``.
        time_signature: beats in a bar: 2, 3, 4 or 6; ``3/4`` will do.
        seed: of its noise: the same one gives the same song.
    """

    caption: str = ""
    lyrics: str = ""
    language: str = "unknown"
    seconds: float | None = None
    bpm: int | None = None
    key: str | None = None
    time_signature: str | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class AdapterUse:
    """An adapter in a file or folder, and how much of it: 0 is none, 1 as it was trained."""

    path: str
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Request(Song):
    """A song that may start from audio: what one asks of ``Pipeline.generate`` beside the words.

    Attributes:
        name: of its file, without a folder; made of the caption where it is left out.
        task: ``text2music``; from a ``source``: ``cover`` (through its 5 Hz codes), ``cover-nofsq`` (through its
            latents), ``repaint`` (anew from ``start`` to ``end``), ``edit`` (the same music under another caption),
            ``extract``, ``lego`` and ``complete`` (by ``tracks``).
        source: audio file to start from, of any rate and channel count.
        source_caption: for ``edit``, what the source is like.
        source_lyrics: for ``edit``, what it sings.
        start: of what to repaint, in seconds of the source; below 0 the song begins that much earlier.
        end: of what to repaint; beyond the source's end the song grows; left out it is the source's end.
        tracks: instruments for ``extract``, ``lego`` and ``complete``, such as ``drums``.
        references: audio files whose timbre to take.
        codes: the music itself in place of a source, as 5 Hz audio codes, five a second: what a planner writes. Without
            ``seconds`` the song lasts as they do.
        cover_strength: share of the steps that hear the source, or the codes; the rest hears the words alone.
        source_strength: how near to the source's latents to start: 0 from noise, 1 as near as the schedule reaches.
        repaint_strength: 0 holds on to what surrounds the repainted part, 1 lets it go.
        splice: what stands outside the repainted part: ``reconstruction``, the source as the autoencoder gives it
            back; ``source``, its own samples; ``none``, what the decoder makes beside the new part.
        edit_start: for ``edit``, share of the steps to skip: more stays nearer to the source.
        edit_stop: for ``edit``, share of the steps after which the target's words alone are followed.
        edit_draws: for ``edit``, noise draws to average over in each step.
        retake: share of another take: 0 is the seed's own, 1 that of ``retake_seed``.
        retake_seed: of the other take.
        adapters: to use for this song, together; left out, those that the whole call uses.
    """

    name: str | None = None
    task: str = "text2music"
    source: str | None = None
    source_caption: str = ""
    source_lyrics: str = ""
    start: float | None = None
    end: float | None = None
    tracks: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    codes: tuple[int, ...] = ()
    cover_strength: float = 1.0
    source_strength: float = 0.0
    repaint_strength: float = 0.5
    splice: str = "reconstruction"
    edit_start: float = 0.0
    edit_stop: float = 1.0
    edit_draws: int = 1
    retake: float = 0.0
    retake_seed: int = 0
    adapters: tuple[AdapterUse, ...] | None = None

    def __post_init__(self) -> None:
        """Lists, as configs and files have them, become tuples."""
        object.__setattr__(self, "tracks", tuple(self.tracks))
        object.__setattr__(self, "references", tuple(self.references))
        object.__setattr__(self, "codes", tuple(self.codes))
        if self.adapters is not None:
            object.__setattr__(self, "adapters", tuple(self.adapters))


def shown(value: object, most: int = SHOWN) -> str:
    """``value`` as a message can hold it: in one line, printable, and not too long."""
    text = " ".join(str(value).split())
    text = "".join(letter if letter.isprintable() else "?" for letter in text[: most + 1])
    return text if len(text) <= most else f"{text[:most]}…"
