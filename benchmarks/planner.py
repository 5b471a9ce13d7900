"""Cost of the planner's grammar: constrained compared with unconstrained decoding of as many tokens, alternating.

``python -m acestep bench planner --json FILE``. The peer is transformers' ``generate`` on the same network and prompts
without constraint; at temperature 0 it is the cheapest decoding there is, so that the difference is the constraint
alone. Sizes: the shipped planner, and one with the published vocabulary of 217,204 tokens and random weights, whose
network is far smaller than a published one, so that the constraint weighs more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from acestep.flow.noise import song_generators
from acestep.planner import prompts
from acestep.planner.codes import CODES
from acestep.planner.decoding import Decoding
from acestep.planner.grammar import GrammarMatcher, OutputGrammars, Rules
from acestep.planner.init import ScratchInit
from acestep.planner.model import LanguageModel
from acestep.planner.vocabulary import Vocabulary, extend
from benchmarks.measure import CLOCKS, Run, add_timing, bench_parser, machine

PACKAGES = ("torch", "transformers", "tokenizers")
TEXTS = ("bpm: 120\ncaption: calm piano, rain\nduration: 30\nkeyscale: C major\nlanguage: en\ntimesignature: 4\n",) * 4
WORDS, ROWS = 151_643, 217_204
"""Tokens of Qwen3's text, and rows of the published embedding."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CAPTION_TOKENS, CODE_COUNT = 32, 100
READING = """ours s, free s: seconds of whole calls with and without the grammar. cost: additional time of the grammar,
as a fraction of free decoding."""
"""Explanation of the columns."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison; times are of whole calls, ``cost`` is the median over rounds of ``ours / free - 1``."""

    name: str
    batch: int
    temperature: float
    tokens: int
    ours_s: float
    free_s: float
    cost: float


def published_size(width: int, layers: int) -> LanguageModel:
    """A planner with random weights and the published vocabulary size."""
    learned = ScratchInit(vocabulary=400)(TEXTS, 1, torch.Generator().manual_seed(0)).vocabulary.tokenizer
    described = json.loads(learned.to_str())
    words = {word: token for word, token in described["model"]["vocab"].items() if token < 400}
    number = 0
    while len(words) < WORDS:
        words.setdefault(_word(number), len(words))
        number += 1
    described["model"]["vocab"], described["added_tokens"] = words, []
    vocabulary = Vocabulary(extend(Tokenizer.from_str(json.dumps(described)), CODES))
    torch.manual_seed(0)
    size = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers, "head_dim": 64}
    heads = {"num_attention_heads": max(1, width // 64), "num_key_value_heads": max(1, width // 128)}
    config = Qwen3Config(vocab_size=ROWS, tie_word_embeddings=True, max_position_embeddings=4096, **size, **heads)
    network = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    network.generation_config = GenerationConfig()
    return LanguageModel(network, vocabulary)


def _word(number: int) -> str:
    """Words that no merge produces, every second one after a space, which byte-level BPE writes as U+0120."""
    letters = ""
    rest = number // 2
    while rest or not letters:
        rest, letter = divmod(rest, len(LETTERS))
        letters += LETTERS[letter]
    return ("\u0120" if number % 2 else "") + letters


@dataclass(frozen=True, kw_only=True)
class Task:
    """Plans or codes for some songs, constrained or free."""

    model: LanguageModel
    grammars: OutputGrammars
    phase: str
    batch: int
    temperature: float

    def matchers(self) -> list[GrammarMatcher]:
        make = partial(self.grammars.plan, {}) if self.phase == "plan" else partial(self.grammars.codes, CODE_COUNT)
        return [make() for _ in range(self.batch)]

    def prompt_tokens(self) -> list[list[int]]:
        plan = prompts.EMPTY_PLAN if self.phase == "codes" else None
        question = prompts.generation_prompt("calm piano, rain", "[verse]\nla la", plan)
        return [self.model.vocabulary.encode(question.text)] * self.batch

    def ours(self) -> list[list[int]]:
        """Constrained decoding."""
        decoding = Decoding(temperature=self.temperature, guidance=1.0)
        return self.model.generate(self.prompt_tokens(), self.matchers(), song_generators(range(self.batch)), decoding)

    def free(self, tokens: int) -> Any:
        """Unconstrained decoding of ``tokens`` tokens."""
        start = self.matchers()[0].advance_forced()
        ids = torch.tensor([[*row, *start] for row in self.prompt_tokens()])
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": Decoding().top_p, "top_k": 0}
        config = GenerationConfig(
            pad_token_id=self.model.vocabulary.pad,
            max_new_tokens=tokens,
            **(drawn if self.temperature else {"do_sample": False}),
        )
        return self.model.network.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)


def compare(name: str, task: Task, rounds: int, clock: Callable[[], float]) -> Row:
    """Time both in alternation, after a call of each to warm up."""
    tokens = max(map(len, task.ours())) - len(task.matchers()[0].advance_forced())
    written = task.free(tokens)
    assert written.shape[1] == len(task.prompt_tokens()[0]) + len(task.matchers()[0].advance_forced()) + tokens
    pairs = []
    for _ in range(rounds):
        started = clock()
        task.ours()
        between = clock()
        task.free(tokens)
        pairs.append((between - started, clock() - between))
    return Row(
        name=f"{name}, {task.phase}",
        batch=task.batch,
        temperature=task.temperature,
        tokens=tokens,
        ours_s=min(ours for ours, _ in pairs),
        free_s=min(free for _, free in pairs),
        cost=median(ours / free for ours, free in pairs) - 1,
    )


def measure(
    name: str, model: LanguageModel, batches: Sequence[int], rounds: int, clock: Callable[[], float]
) -> tuple[list[Row], float]:
    """All phases, batches and temperatures, and the one-time cost of the grammar in seconds."""
    started = clock()
    grammars = OutputGrammars(model.vocabulary, Rules(caption_tokens=CAPTION_TOKENS))
    once = clock() - started
    first = Task(model=model, grammars=grammars, phase="plan", batch=1, temperature=0.0)
    first.free(1)
    cold = clock()
    first.ours()  # compiles the allowed tokens of the states that it reaches
    warm = clock()
    first.ours()
    once += (warm - cold) - (clock() - warm)
    tasks = [
        Task(model=model, grammars=grammars, phase=phase, batch=batch, temperature=temperature)
        for phase in ("plan", "codes")
        for batch in batches
        for temperature in (0.0, Decoding().temperature)
    ]
    return [compare(name, task, rounds, clock) for task in tasks], once


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the results."""
    parser = bench_parser("planner", __doc__, READING)
    parser.add_argument("--planner", default="micro_planner", help="name or folder (default micro_planner)")
    parser.add_argument(
        "--width", type=int, default=256, help="of the large planner's network; 0 skips it (default 256)"
    )
    parser.add_argument("--layers", type=int, default=4, help="of the large planner's network (default 4)")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1, 8], metavar="N", help="songs at a time (default 1 8)"
    )
    add_timing(parser, rounds=7, clock="cpu")
    run = Run.parse(parser, arguments)
    options = run.options
    models = {"micro": partial(LanguageModel.from_folder, options.planner)}
    if options.width:
        models[f"{ROWS} tokens, width {options.width}"] = partial(published_size, options.width, options.layers)
    rows: list[Row] = []
    once = {}
    for name, load in models.items():
        measured, once[name] = measure(name, load(), options.batch, options.rounds, CLOCKS[options.clock])
        rows += measured
    table = Table("name")
    for column in ("batch", "temperature", "tokens", "ours s", "free s", "cost"):
        table.add_column(column, justify="right")
    for row in rows:
        times = f"{row.ours_s:.3f}", f"{row.free_s:.3f}", f"{row.cost:+.1%}"
        table.add_row(row.name, str(row.batch), f"{row.temperature:g}", str(row.tokens), *times)
    Console(width=110).print(table)
    for name, seconds in once.items():
        print(f"{name}: {seconds:.2f} s once, before the first plan")
    counts = "times: the fastest round of each; cost: the median over rounds, both taking turns"
    run.write(machine(PACKAGES), counts, once_s=once, rows=[asdict(row) for row in rows])


if __name__ == "__main__":
    main()
