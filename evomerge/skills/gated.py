"""A model whose skills are weighed by each prompt: base, adapters and gate together, loaded from a folder."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from evomerge.config import Document, validate
from evomerge.errors import InputError, SourceError
from evomerge.library import Library, LibraryError, read_library
from evomerge.merging.checkpoint import atomic_folder
from evomerge.merging.live import live_model, load_tokenizer
from evomerge.skills.examples import prompt_ids
from evomerge.skills.folder import GATE, GATE_CONFIG, LIBRARY, GateConfig, is_gated
from evomerge.skills.gate import Gate, mean_pooled
from evomerge.skills.mixed import Mixed
from evomerge.skills.opened import OpenLibrary, open_library
from evomerge.skills.shelf import check_outside_libraries, write_index, written_base
from evomerge.sources import read_object
from evomerge.sources.adapter import CONFIG, WEIGHTS

IGNORED = -100


class GatedModel(nn.Module):
    """W(prompt) = W_0 + sum_i alpha_i(prompt) s_i B_i A_i, with alpha worked out once for each prompt.

        model = GatedModel.from_pretrained("gated")
        inputs = model.tokenizer(["a b c =", "d e f ="], return_tensors="pt", padding=True)
        ids = model.generate(**inputs, max_new_tokens=16)      # each row with weights of its own
        model.weights(**inputs)                                # alpha: [rows, groups, skills]

    There is no checkpoint that it equals: every prompt has a model of its own. One generation runs at a time.

    Args:
        opened: Base and skills.
        gate: Gives alpha.
        config: What the folder says of the gate.
        dtype: Type that the base computes in; None: float32 on a CPU, else the checkpoint's own. Gate and adapters are
            float32.
        device: Where it runs.

    Attributes:
        base: The base, a transformers model; as it is by itself, while nothing is generated.
        gate: The gate.
        tokenizer: The base's, padding on the left.
        skills: Names, in the order of the weights.
        trained: What the folder says of the gate's training.
    """

    def __init__(
        self, opened: OpenLibrary, gate: Gate, config: GateConfig, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> None:
        super().__init__()
        self._opened, self._config = opened, config
        self.trained = dict(config.trained)
        own = torch.float32 if dtype is None and device == "cpu" else dtype
        self.base = live_model(opened.base, dtype=own, device=device)
        self.tokenizer = load_tokenizer(opened.base)
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.skills = config.skills
        self.mixed = Mixed(self.base, [opened.skills[n] for n in config.skills], per_layer=config.groups > 1)
        self.gate = gate.to(self.base.device)
        self._takes_positions = "position_ids" in inspect.signature(self.base.forward).parameters
        self.eval()

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, base: str | None = None, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> GatedModel:
        """Load a folder that `evomerge skills gate` or `save_pretrained` wrote.

        Args:
            base: Where its base lies, when that is no longer where it was; its content must be the same.

        Raises:
            LibraryError: the folder is none, or base or adapters are not what the gate was trained with.
            SourceError: a model cannot be opened, or the gate's weights do not fit its configuration.
        """
        path = Path(folder)
        if not is_gated(path):
            raise LibraryError(f"{path}: has no {GATE_CONFIG}; expected a folder that `evomerge skills gate` wrote")
        config = validate(GateConfig, Document(read_object(path, GATE_CONFIG), str(path / GATE_CONFIG)), LibraryError)
        library = read_library(path / LIBRARY, base)
        opened = open_library(library, config.skills)
        _check_trained_with(config, library, path)
        if config.groups not in (1, opened.base.num_layers):
            raise LibraryError(
                f"{path / GATE_CONFIG}: groups = {config.groups}: expected 1, or as many as the base has layers "
                f"({opened.base.num_layers})"
            )
        gate = Gate(config.hidden_size, len(config.skills), config.groups, config.width)
        _load(gate, path / GATE)
        return cls(opened, gate, config, dtype, device)

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write gate, configuration and adapters, whole or not at all; the base is named, with its content hash.

        Raises:
            InputError: the folder is not empty (or, to be overwritten, holds no gated model), lies in a skill library,
                or cannot be written.
        """
        library = self._opened.library
        needed = sum(p.numel() * 4 for p in self.gate.parameters())
        needed += sum((library.place(n) / WEIGHTS).stat().st_size for n in self.skills)
        out = Path(folder)
        check_outside_libraries(out)
        with atomic_folder(out, overwrite, needed, GATE_CONFIG) as part:
            save_file({k: v.detach().cpu().contiguous() for k, v in self.gate.state_dict().items()}, part / GATE)
            (part / GATE).chmod(0o644)
            hashes = {n: library.index.skills[n].sha256 for n in self.skills}
            config = self._config.model_copy(
                update={
                    "trained": self.trained, "base_sha256": library.index.base.sha256, "skills_sha256": hashes,
                }
            )  # fmt: skip
            text = json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False)
            (part / GATE_CONFIG).write_text(text + "\n", encoding="utf-8")
            for name in self.skills:
                (part / LIBRARY / name).mkdir(parents=True)
                for file in (CONFIG, WEIGHTS):
                    shutil.copyfile(library.place(name) / file, part / LIBRARY / name / file)
            kept = {n: library.index.skills[n] for n in self.skills}
            named = library.index.base.model_copy(update={"model": written_base(self._opened.base, out / LIBRARY)})
            write_index(part / LIBRARY, library.index.model_copy(update={"base": named, "skills": kept}))

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.base.device

    @property
    def positions(self) -> int | None:
        """Most tokens of a text, as the base's configuration has it; None where it sets no bound."""
        found = getattr(self.base.config.get_text_config(), "max_position_embeddings", None)
        return found if isinstance(found, int) and found > 0 else None

    @property
    def config(self) -> Any:
        """The base's configuration, as transformers has it."""
        return self.base.config

    @property
    def generation_config(self) -> Any:
        """The base's settings of generation."""
        return self.base.generation_config

    def tie_weights(self) -> None:
        """Nothing: the base is loaded, and tied where it is."""

    def register_forward_hook(self, hook: Any, **kwargs: Any) -> Any:
        """Watch the passes of the base, which are all there are: `generate` does not come by `forward`."""
        return self.base.register_forward_hook(hook, **kwargs)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        pooled: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits, and with labels the loss, with weights by the prompt.

        Args:
            input_ids, attention_mask: [rows, tokens]; without a mask it is told from the padding, see `generate`.
            labels: What is to be said at each place, -100 where nothing is learned: mean cross entropy of the others.
            prompt_mask: Which tokens are the prompt's, [rows, tokens]; default: those without a label.
            pooled: z, where it is known already: [rows, hidden size].

        Returns:
            What the base returns; of a batch with labels its `loss`.

        Raises:
            InputError: nothing says which tokens are the prompt's: an answer must not be weighed by itself.
        """
        input_ids, mask = self._here(input_ids, attention_mask)
        labels = None if labels is None else labels.to(self.device)
        if pooled is None and prompt_mask is None and labels is None:
            raise InputError(
                "a gated model weighs its skills by the prompt, and this pass does not say which tokens that is; "
                "expected tasks of generate_until that are not read off likelihoods, or prompt_mask"
            )
        if pooled is None:
            own = prompt_mask
            if own is None and labels is not None:
                own = mask * (labels == IGNORED)
            pooled = self.pooled(input_ids, mask, own)
        # Learned positions are those of a row's own tokens, wherever it is padded, as transformers' `generate` has it.
        if self._takes_positions and "past_key_values" not in kwargs and not bool(mask.all()):
            kwargs.setdefault("position_ids", (mask.cumsum(-1) - 1).clamp(min=0))
        with self.mixed.weighed(self.gate(pooled.to(self.device))):
            return self.base(input_ids=input_ids, attention_mask=mask, labels=labels, **kwargs)

    @torch.no_grad()
    def pooled(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, prompt_mask: Tensor | None = None
    ) -> Tensor:
        """z: the mean last hidden state of the base, adapters off, over the prompt's tokens; [rows, hidden size]."""
        ids, mask = self._here(input_ids, attention_mask)
        own = mask if prompt_mask is None else prompt_mask.to(ids.device)
        if not bool(mask.all()):
            # Each row's tokens come first, so that they have the positions and the company that they have alone.
            order = (mask == 0).to(torch.int8).argsort(dim=1, stable=True)
            ids, mask, own = ids.gather(1, order), mask.gather(1, order), own.gather(1, order)
        with self.mixed.weighed(None):
            out = self.base(
                input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False, logits_to_keep=1
            )
        return mean_pooled(out.hidden_states[-1], own)

    @torch.no_grad()
    def weights(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        """alpha of each prompt: [rows, groups, skills], in the order of `skills`."""
        found: Tensor = self.gate(self.pooled(input_ids, attention_mask))
        return found

    def held(self, weights: Tensor) -> AbstractContextManager[None]:
        """Passes of `base` inside the block are with these weights, whatever they read.

        Args:
            weights: [rows or 1, groups, skills]; of n times as many rows (beams) each row has its own n times.

        Raises:
            InputError: they have another shape.
        """
        return self.mixed.weighed(self._checked(weights))

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, weights: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """What transformers' `generate` gives, with weights that are worked out from the prompts and held meanwhile.

        Args:
            input_ids, attention_mask: Prompts, padded on the left: [rows, tokens]. Without a mask padding is what
                transformers takes for it: tokens that are the padding token's, where that is not the end of text too.
            weights: Instead of the gate's: [rows or 1, groups, skills].
            **kwargs: Of transformers' `generate`.

        Raises:
            InputError: the weights have another shape, or nothing tells padding from an end of text.
        """
        ids, mask = self._here(input_ids, attention_mask)
        own = self.weights(ids, mask) if weights is None else self._checked(weights, len(ids))
        with self.held(own):
            base: Any = self.base
            return base.generate(input_ids=ids, attention_mask=mask, **kwargs)

    def answers(self, prompts: Sequence[str | Sequence[dict[str, str]]], **kwargs: Any) -> list[str]:
        """What is generated behind each prompt, a text or a conversation, special tokens left out.

        Args:
            **kwargs: Of transformers' `generate`.

        Raises:
            InputError: `prompts` is one text, or one of them is empty.
        """
        if isinstance(prompts, str):
            raise InputError("answers: got one text, expected a list of prompts: answers([prompt])")
        ids = [prompt_ids(p, self.tokenizer) for p in prompts]
        for number, found in enumerate(ids):
            if not found:
                raise InputError(f"answers: prompts[{number}] has no token; expected a text")
        if not ids:
            return []
        inputs = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt", padding_side="left")
        out = self.generate(inputs["input_ids"], inputs["attention_mask"], **kwargs)
        new = out[:, inputs["input_ids"].shape[1] :]
        return list(self.tokenizer.batch_decode(new, skip_special_tokens=True))

    def _here(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ids and mask, where the base is."""
        ids = input_ids.to(self.device)
        if ids.dim() != 2 or not ids.shape[1]:
            raise InputError(f"input_ids of shape {list(ids.shape)}: expected [rows, tokens], one token at least")
        if attention_mask is not None:
            return ids, attention_mask.to(self.device)
        settings = self.base.generation_config
        pad, eos = settings.pad_token_id, settings.eos_token_id
        pad = self.tokenizer.pad_token_id if pad is None else pad
        padding = ids == (-1 if pad is None else pad)
        if pad is None or pad not in (eos if isinstance(eos, list) else [eos]):
            return ids, (~padding).long()
        # Texts may begin and end with an end of text; a batch in which some do, and some do not, is padded.
        for edge in (padding[:, 0], padding[:, -1]):
            if bool(edge.any()) and not bool(edge.all()):
                raise InputError(
                    "the padding token is the end of text too, and no attention_mask says which is which; expected one"
                )
        return ids, torch.ones_like(ids)

    def _checked(self, weights: Tensor, rows: int | None = None) -> Tensor:
        """Weights where the base is, [rows, groups, skills].

        Args:
            rows: How many there must be, if not 1; None: any.
        """
        expected = (self.mixed.groups, self.mixed.skills)
        fits = weights.dim() == 3 and tuple(weights.shape[1:]) == expected and len(weights) > 0
        if not fits or (rows is not None and len(weights) not in (1, rows)):
            number = "rows" if rows is None else rows
            raise InputError(
                f"weights of shape {list(weights.shape)}: expected [{number} or 1, {expected[0]}, {expected[1]}] "
                "(rows, groups, skills)"
            )
        return weights.to(self.device)


def _check_trained_with(config: GateConfig, library: Library, folder: Path) -> None:
    """Raise LibraryError where a gate was trained with another base or other skills than lie beside it."""
    index = library.index
    wrong = [n for n, digest in config.skills_sha256.items() if n in config.skills and index.skills[n].sha256 != digest]
    if config.base_sha256 not in (None, index.base.sha256):
        raise LibraryError(f"{folder}: its gate was trained on another base than the one in {LIBRARY}; train it again")
    if wrong:
        raise LibraryError(
            f'{folder}: its gate was trained with another skill "{wrong[0]}" than the one in {LIBRARY}; train it again'
        )


def _load(gate: Gate, file: Path) -> None:
    if not file.is_file():
        raise SourceError(f"{file}: no such file; expected the gate's weights, write the gate again")
    try:
        found = load_file(file)
    except Exception as e:  # safetensors raises an error of its own
        raise SourceError(f"{file}: cannot be read ({' '.join(str(e).split())[:200]}); write the gate again") from None
    for name, own in gate.state_dict().items():
        if name not in found or found[name].shape != own.shape:
            got = list(found[name].shape) if name in found else "nothing"
            raise SourceError(f'{file}: "{name}" has shape {got}, expected {list(own.shape)} by {GATE_CONFIG}')
    gate.load_state_dict({name: found[name].float() for name in gate.state_dict()})
