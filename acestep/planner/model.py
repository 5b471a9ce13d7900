"""The language model itself: a causal network and its vocabulary, writing what machines allow. Knows tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Generator
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)

from acestep.adapters import adapter_base, is_adapter, load_adapter
from acestep.files import replacing
from acestep.planner.decoding import Decoding, Draws, Finished
from acestep.planner.grammar import Machine
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
        """A language model with code tokens: a shipped name, a Hugging Face folder, a run's folder, or an adapter's.

        Pickled weights are not read. ``key`` is what names the folder in messages.
        """
        folder = language_folder(folder)
        if is_adapter(folder):
            model = cls.from_folder(adapter_base(folder), device, dtype, key)
            load_adapter(model.network, folder)
            model.network.to(device, dtype).eval().requires_grad_(False)
            return model
        if not (folder / "config.json").is_file():
            raise ValueError(f"{key}={folder}: no language model there; name the folder with its config.json")
        vocabulary = Vocabulary(read_tokenizer(folder, key), f"{key}={folder}")
        network = read_network(folder, key, dtype)
        rows = network.get_input_embeddings().num_embeddings
        if rows < vocabulary.size:
            raise ValueError(f"{key}={folder}: its tokenizer has {vocabulary.size} tokens, its network {rows}")
        return cls(network.to(device).eval().requires_grad_(False), vocabulary)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write network and tokenizer to ``folder``, aside and then renamed, replacing what is there."""
        folder = Path(folder)
        moved: dict[int, torch.Tensor] = {}  # what is shared stays shared, and is written once
        weights = {
            name: moved.setdefault(value.data_ptr(), value.to(dtype))
            for name, value in self.network.state_dict().items()
        }
        with replacing(folder) as aside:
            self.network.save_pretrained(aside, state_dict=weights)
            self.vocabulary.tokenizer.save(str(aside / "tokenizer.json"), pretty=False)
        return folder

    @torch.no_grad()
    def write(
        self,
        prompts: Sequence[Sequence[int]],
        machines: Sequence[Machine],
        generators: Sequence[Generator],
        decoding: Decoding,
        unasked: Sequence[Sequence[int]] | None = None,
        use_cache: bool = True,
    ) -> list[list[int]]:
        """What the network writes after each prompt, as its machine allows.

        Args:
            prompts: tokens, one row each.
            machines: one for each row; they are moved to their ends.
            generators: of each row's draws.
            decoding: how tokens are chosen. Its guidance counts only with ``unasked``.
            unasked: prompts that guidance moves away from.
            use_cache: keep keys and values; without, every step computes the whole row anew.

        Raises:
            ValueError: if a prompt leaves no room for an answer.
        """
        forced = [machine.forced() for machine in machines]
        guided = unasked is not None and decoding.guidance != 1
        rows = [[*prompt, *begun] for prompt, begun in zip(prompts, forced, strict=True)]
        if guided:
            rows += [[*prompt, *begun] for prompt, begun in zip(unasked or (), forced, strict=True)]
        if all(machine.done for machine in machines):
            return forced
        longest = max(map(len, rows))
        room = self.network.config.max_position_embeddings - longest
        if room < 1:
            raise ValueError(
                f"song.lyrics: the request takes {longest} tokens, and the language model reads "
                f"{self.network.config.max_position_embeddings}; shorten the lyrics"
            )
        pad = self.vocabulary.pad
        device = self.network.device
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
        written = self.network.generate(
            ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                do_sample=False, use_cache=use_cache, pad_token_id=pad, max_new_tokens=room
            ),
            logits_processor=LogitsProcessorList([Draws(machines, generators, decoding, pad, guided)]),
            stopping_criteria=StoppingCriteriaList([Finished(machines)]),
        )
        if not all(machine.done for machine in machines):
            raise ValueError("song.seconds: the language model's window is full before the codes are; ask for less")
        answers = written[: len(prompts), longest:].tolist()
        return [begun + self._without_pads(answer) for begun, answer in zip(forced, answers, strict=True)]

    def _without_pads(self, answer: list[int]) -> list[int]:
        while answer and answer[-1] == self.vocabulary.pad:
            answer.pop()
        return answer


def language_folder(path: str | Path) -> Path:
    """Where a language model is: a shipped one, a run's result, or the folder itself."""
    folder = shipped_or_path(path)
    return folder / "weights" if (folder / "weights").is_dir() else folder


def read_network(folder: Path, key: str, dtype: torch.dtype) -> PreTrainedModel:
    """The causal network in ``folder``, which ``key`` names."""
    try:
        network, told = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        reason = str(error).partition("\n")[0].rstrip(".:")
        raise ValueError(f"{key}={folder}: cannot be read ({reason}); copy the whole folder again") from error
    # transformers draws by chance what the files do not hold.
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"{key}={folder}: its files hold no {missing[0]}; copy the whole folder again")
    # What a folder says about sampling would be merged into every call of generate.
    network.generation_config = GenerationConfig()
    return network
