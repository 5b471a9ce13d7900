"""Songs and requests as plain text and numbers. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

MESSAGE_CHARACTERS = 60
"""Longest part of an invalid value that an error message repeats."""


@dataclass(frozen=True, kw_only=True)
class Song:
    """The text and metadata of one request or one training example.

    Fields that are ``None`` are written as ``N/A`` in the prompt.

    Attributes:
        caption: text description: style, instruments, mood, voice; up to about 500 characters.
        lyrics: with section tags such as ``[verse]``; empty for an instrumental; ``@FILE`` reads them from a file.
        language: of the lyrics, by code or English name.
        seconds: duration; default: that of the checkpoint.
        bpm: beats per minute, 30 to 300; default: the model's choice.
        key: such as ``C major`` or ``F# minor``; default: the model's choice.
        time_signature: beats per bar: 2, 3, 4 or 6; ``3/4`` is accepted too; default: the model's choice.
        seed: of the initial noise; the same seed gives the same song.
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
    """An adapter in a file or folder, and the factor on its weights: 0 disables it, 1 is as trained."""

    path: str
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Request(Song):
    """A song with a task, and the audio and parameters that the task needs.

    Attributes:
        name: file name, without a folder; default: made of the caption.
        task: ``text2music``; from a ``source``: ``cover`` (conditioned on its 5 Hz codes), ``cover-nofsq`` (on its
            latents), ``repaint`` (new audio from ``start`` to ``end``), ``edit`` (the same music with another caption),
            ``extract``, ``lego`` and ``complete`` (of ``tracks``).
        source: audio file to start from, of any sample rate and channel count; default: none.
        source_caption: for ``edit``, the caption of the source.
        source_lyrics: for ``edit``, the lyrics of the source.
        start: of the repainted span, in seconds of the source; a negative value extends the song at its start; default:
            the source's start.
        end: of the repainted span; a value after the source's end extends the song; default: the source's end.
        tracks: instruments for ``extract``, ``lego`` and ``complete``, such as ``drums``.
        references: audio files for the timbre.
        codes: 5 Hz audio codes in place of a source, as a planner writes them. Without ``seconds``, they determine the
            duration.
        cover_strength: share of the steps that are conditioned on the source or the codes; the other steps are
            conditioned on the text only.
        source_strength: initialisation from the source's latents: 0 starts from noise, 1 as close to the source as the
            schedule allows.
        repaint_strength: 0 keeps the transition to the surrounding audio smooth, 1 does not constrain it.
        splice: audio outside the repainted span: ``reconstruction``, the source decoded by the autoencoder; ``source``,
            the source's samples; ``none``, the decoder's output.
        edit_start: for ``edit``, share of the steps to skip; a larger share keeps more of the source.
        edit_stop: for ``edit``, share of the steps after which only the target prompt is followed.
        edit_draws: for ``edit``, noise samples to average over in each step.
        retake: weight of a second noise: 0 is the noise of ``seed``, 1 that of ``retake_seed``.
        retake_seed: of the second noise.
        adapters: applied together to this song; default: those of the whole call.
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
        # Configs and files have lists.
        for name in ("tracks", "references", "codes", "adapters"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))


AnySong = TypeVar("AnySong", bound=Song)


def shorten(value: object, limit: int = MESSAGE_CHARACTERS) -> str:
    """``value`` for an error message: one line, printable, at most ``limit`` characters and an ellipsis."""
    text = " ".join(str(value).split())
    text = "".join(letter if letter.isprintable() else "?" for letter in text[: limit + 1])
    return text if len(text) <= limit else f"{text[:limit]}…"


def error_line(error: BaseException) -> str:
    """The message of ``error`` in one line."""
    return " ".join(str(error).split())
