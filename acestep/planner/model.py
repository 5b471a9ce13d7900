"""The language model: a causal network and its vocabulary, generating under a grammar. Works on tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Generator, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)

from acestep.adapters import adapter_base, is_adapter, load_adapter
from acestep.files import replacing
from acestep.planner.decoding import AllMatchersDone, Decoding, GrammarLogitsProcessor
from acestep.planner.grammar import GrammarMatcher
from acestep.planner.vocabulary import Vocabulary, read_tokenizer
from acestep.weights.open import shipped_or_path


@dataclass(frozen=True)
class LanguageModel:
    """A causal network of ``transformers`` and the vocabulary that it was trained on."""

    network: PreTrainedModel
    vocabulary: Vocabulary

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        key: str = "planner.path",
    ) -> LanguageModel:
        """A language model with code tokens: a shipped name, a Hugging Face folder, a run folder or an adapter.

        Pickled weights are not read. ``key`` is the config key that names the folder, for messages.
        """
        folder = language_folder(folder)
        if is_adapter(folder):
            model = cls.from_folder(adapter_base(folder), device, dtype, key)
            load_adapter(model.network, folder)
            model.network.to(device, dtype).eval().requires_grad_(False)  # type: ignore[arg-type]  # its decorator has no types
            return model
        if not (folder / "config.json").is_file():
            raise ValueError(f"{key}={folder}: no language model there; name the folder with its config.json")
        vocabulary = Vocabulary(read_tokenizer(folder, key), f"{key}={folder}")
        network = read_network(folder, key, dtype)
        rows = embedding_rows(network)
        if rows < vocabulary.size:
            raise ValueError(f"{key}={folder}: its tokenizer has {vocabulary.size} tokens, its network {rows}")
        network.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]  # its decorator has no types
        return cls(network, vocabulary)

    def save(self, folder: str | Path) -> Path:
        """Write network and tokenizer to ``folder``, atomically, replacing what is there."""
        folder = Path(folder)
        with replacing(folder) as aside:
            self.network.save_pretrained(aside)
            self.vocabulary.tokenizer.save(str(aside / "tokenizer.json"), pretty=False)
        return folder

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        matchers: Sequence[GrammarMatcher],
        generators: Sequence[Generator],
        decoding: Decoding,
        negative_prompts: Sequence[Sequence[int]] | None = None,
        use_cache: bool = True,
    ) -> list[list[int]]:
        """The tokens that the network generates after each prompt, up to the end of its grammar.

        Args:
            prompts: tokens, one row each.
            matchers: one grammar for each row; they are advanced to their ends.
            generators: random generator of each row.
            decoding: sampling settings. Its guidance is used only with ``negative_prompts``.
            negative_prompts: prompts of the guidance's unconditional branch.
            use_cache: keep keys and values between steps.

        Raises:
            ValueError: a prompt and its output are longer than the network's context.
        """
        forced = [matcher.advance_forced() for matcher in matchers]
        if all(matcher.done for matcher in matchers):
            return forced
        is_guided = negative_prompts is not None and decoding.guidance != 1
        branches = [prompts, negative_prompts or ()] if is_guided else [prompts]
        rows = [[*prompt, *begin] for branch in branches for prompt, begin in zip(branch, forced, strict=True)]
        longest = max(map(len, rows))
        context = self.network.config.max_position_embeddings
        if longest >= context:
            raise ValueError(
                f"song.lyrics: the request takes {longest} tokens, and the language model's context is {context}; "
                "shorten the lyrics"
            )
        pad, device = self.vocabulary.pad, self.network.device
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
        generate: Any = self.network.generate  # from a mixin that PreTrainedModel does not declare
        generated = generate(
            ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                do_sample=False, use_cache=use_cache, pad_token_id=pad, max_new_tokens=context - longest
            ),
            logits_processor=LogitsProcessorList(
                [GrammarLogitsProcessor(matchers, generators, decoding, pad, is_guided)]
            ),
            stopping_criteria=StoppingCriteriaList([AllMatchersDone(matchers)]),
        )
        if not all(matcher.done for matcher in matchers):
            raise ValueError(
                "song.seconds: the language model's context is full before the codes are; use a shorter song"
            )
        outputs = generated[: len(prompts), longest:].tolist()
        return [begin + self._without_padding(output) for begin, output in zip(forced, outputs, strict=True)]

    def _without_padding(self, output: list[int]) -> list[int]:
        while output and output[-1] == self.vocabulary.pad:
            output.pop()
        return output


def embedding_rows(network: PreTrainedModel) -> int:
    return cast("nn.Embedding", network.get_input_embeddings()).num_embeddings


def language_folder(path: str | Path) -> Path:
    """The folder of a language model: a shipped one, the ``weights/`` of a run folder, or ``path`` itself."""
    folder = shipped_or_path(path)
    return folder / "weights" if (folder / "weights").is_dir() else folder


def read_network(folder: Path, key: str, dtype: torch.dtype) -> PreTrainedModel:
    """The causal network in ``folder``; ``key`` is the config key that names the folder, for messages."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        network: PreTrainedModel
        network, info = loaded
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        reason = str(error).partition("\n")[0].rstrip(".:")
        raise ValueError(f"{key}={folder}: cannot be read ({reason}); copy the whole folder again") from error
    # transformers initialises missing weights at random.
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{key}={folder}: its files have no {missing[0]}; copy the whole folder again")
    # The folder's own sampling settings would be merged into every call of generate.
    network.generation_config = GenerationConfig()
    return network
