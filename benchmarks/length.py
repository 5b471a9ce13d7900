"""Cost by song length: of sliding layers alone, and of whole songs by a checkpoint, each in its own process.

``python -m acestep bench length --json FILE``; ``--weights none`` skips the songs. Attention is the time of torch's
fused kernel; only the full layers' part of it grows faster than linearly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from time import process_time

import torch
from torch.profiler import ProfilerActivity, profile

from acestep.flow import CFG, Euler, Linear, Sampler
from acestep.memory import peak_memory
from acestep.models.acestep import AceStep
from acestep.models.attention import SLIDING
from acestep.pipeline.pipeline import Pipeline
from acestep.songs import Song
from acestep.weights.open import find_folder
from benchmarks.measure import CLOCKS, FASTEST, Run, add_timing, bench_parser, best_seconds, machine
from benchmarks.sampler import SIZES, Case, random_conditions

ATTENTION = "scaled_dot_product"
LAYERS = 2
NONE = "none"
READING = """An exponent of 1 is linear growth of the time with the length. For a song: processor seconds, those of
them in attention, and the process's peak memory."""
"""Explanation of the lines."""


@dataclass(frozen=True, kw_only=True)
class Sliding:
    """Time of a sampling step by a DiT of sliding layers only."""

    seconds: float
    step_s: float


@dataclass(frozen=True, kw_only=True)
class SongCost:
    """Cost of one song.

    Attributes:
        seconds: duration.
        cpu_s: processor seconds for conditions, sampling and decoding, without saving.
        attention_s: those of them in attention.
        peak: peak bytes of the process.
    """

    seconds: float
    cpu_s: float
    attention_s: float
    peak: int


@torch.no_grad()
def sliding(size: str, lengths: Sequence[float], rounds: int, clock: Callable[[], float]) -> list[Sliding]:
    """Time of one guided step of ``LAYERS`` sliding layers, for each length in seconds."""
    config = replace(SIZES[size], num_hidden_layers=LAYERS, layer_types=(SLIDING,) * LAYERS)
    generator = torch.Generator().manual_seed(0)
    network = AceStep(config).eval()
    network.init_weights(generator)
    sampler = Sampler(schedule=Linear(steps=1), solver=Euler(), guidance=CFG(scale=7.0))
    tasks = []
    for seconds in lengths:
        conditions = random_conditions(Case(size=size, seconds=seconds, batch=1, steps=1), config, generator)
        noise = torch.randn(1, conditions.context.shape[1], 64, generator=generator)
        null, field = network.null(conditions), network.cached_velocity()
        tasks.append(lambda f=field, n=noise, c=conditions, e=null: sampler(f, n, c, e))
        tasks[-1]()
    times = best_seconds(*tasks, rounds=rounds, clock=clock)
    return [Sliding(seconds=seconds, step_s=taken) for seconds, taken in zip(lengths, times, strict=True)]


def exponent(rows: Sequence[Sliding]) -> float:
    """Exponent of the growth of the time with the length, from the shortest to the longest."""
    first, last = min(rows, key=lambda row: row.seconds), max(rows, key=lambda row: row.seconds)
    return math.log(last.step_s / first.step_s) / math.log(last.seconds / first.seconds)


def make(weights: str, seconds: float, steps: int, threads: int) -> SongCost:
    """Measure one song, in a new process."""
    torch.set_num_threads(threads)
    pipeline = Pipeline.from_pretrained(weights)
    sampler = replace(pipeline.sampler, schedule=Linear(steps=steps))
    song = Song(caption="a song", seconds=seconds, seed=0)
    started = process_time()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in pipeline.generate([song], sampler):
            pass
    taken = process_time() - started
    kernels = [event for event in seen.key_averages() if ATTENTION in event.key]
    attention = sum(event.self_cpu_time_total for event in kernels) / 1e6 * threads
    return SongCost(seconds=seconds, cpu_s=taken, attention_s=attention, peak=peak_memory(torch.device("cpu")))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the results."""
    parser = bench_parser("length", __doc__, READING)
    parser.add_argument("--size", choices=SIZES, default="100m", help="of the sliding layers (default 100m)")
    parser.add_argument(
        "--seconds", nargs="+", type=float, default=[60.0, 600.0], metavar="S", help="of music (default 60 600)"
    )
    parser.add_argument("--weights", default="micro", help="checkpoint of the songs, or none (default micro)")
    parser.add_argument("--steps", type=int, default=8, help="sampler steps of a song (default 8)")
    add_timing(parser)
    run = Run.parse(parser, arguments)
    options = run.options
    if len(set(options.seconds)) < 2:
        raise ValueError(f"seconds={options.seconds[0]:g}: need two lengths to compare; add another")
    if options.weights != NONE:
        find_folder(options.weights)
    layers = sliding(options.size, options.seconds, options.rounds, CLOCKS[options.clock])
    for row in layers:
        print(f"sliding layers  {row.seconds:>6g} s  {row.step_s:>9.3f} s a step")
    print(f"sliding layers  time grows with the length to the power {exponent(layers):.3f}")
    record = {"sliding": [asdict(row) for row in layers], "exponent": exponent(layers), "songs": []}
    songs: list[SongCost] = []
    for seconds in options.seconds if options.weights != NONE else ():
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            made = pool.submit(make, options.weights, seconds, options.steps, torch.get_num_threads()).result()
        songs.append(made)
        whole, attention = (1e3 * taken / seconds for taken in (made.cpu_s, made.attention_s))
        each = f"{whole:.1f} ms a second of audio, {attention:.1f} of attention"
        print(f"{options.weights:<15} {seconds:>6g} s  {made.cpu_s:>9.1f} s  {each}, peak {made.peak / 2**20:.0f} MiB")
    if songs:
        shares = {
            "peak": songs[-1].peak / songs[0].peak,
            "time per second": songs[-1].cpu_s / songs[-1].seconds / (songs[0].cpu_s / songs[0].seconds),
        }
        rest = [(made.cpu_s - made.attention_s) / made.seconds for made in songs]
        shares["time per second outside attention"] = rest[-1] / rest[0]
        for name, share in shares.items():
            print(f"{options.weights:<15} last over first: {name} {share:.2f}")
        record |= {"songs": [asdict(made) for made in songs], "last_over_first": shares}
    run.write(machine(("torch",)), f"steps of sliding layers: {FASTEST}; a song: once", **record)


if __name__ == "__main__":
    main()
