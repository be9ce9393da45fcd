"""What stands around a path's layers: embeddings, final norm and head, and the configuration."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evomerge.errors import CandidateError
from evomerge.merging.config import lists_by_layer
from evomerge.routing.resident import Resident
from evomerge.routing.structure import sharing_copy
from evomerge.sources import LAYER_KEYS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Shell:
    """A copy of a resident model without its layers, over the same weights, with a configuration of its own.

    Everything before the layers is this model's. So is the configuration, as in the folded checkpoint.

    Attributes:
        model: Ready for inference once layers have been put in.
    """

    def __init__(self, resident: Resident) -> None:
        self._resident = resident
        live = resident.live
        self.model: PreTrainedModel = sharing_copy(live, without=live.get_submodule(resident.layers))
        # Loglikelihoods need no cache, and prefixes can only be reused without one; generate() asks for it by itself.
        self._config = self.model.config.get_text_config()
        self._config.use_cache = False
        self.model.config.use_cache = False
        self._counts = [key for key in LAYER_KEYS if key in resident.settings]

    @property
    def captures(self) -> bool:
        """Whether transformers put hooks into the modules that are in it now: layers put in later would lack them."""
        return any(getattr(m, "_output_capturing_hooks_installed", False) for m in self.model.modules())

    def put_layers(
        self, layers: Sequence[nn.Module], origins: Sequence[tuple[str, int]], settings: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Let the layers be these, and the configuration say so.

        Args:
            origins: Model and number of each.
            settings: Of every model among them and of this one.
        """
        parent, _, name = self._resident.layers.rpartition(".")
        setattr(self.model.get_submodule(parent), name, nn.ModuleList(layers))
        for key in self._counts:
            setattr(self._config, key, len(layers))
        own = self._resident.source
        for key, value in lists_by_layer(origins, own.reference, own.num_layers, settings).items():
            setattr(self._config, key, value)

    def check_kinds(self) -> None:
        """Check that the configuration has a layer's kind (dense, a mixture of experts) where the path has it.

        Some families tell the kind by the layer's number alone. The folded checkpoint would be another model then.

        Raises:
            CandidateError: it has another kind of layer there.
        """
        from transformers.initialization import no_init_weights

        with torch.device("meta"), no_init_weights():
            built = type(self.model)(copy.deepcopy(self.model.config)).state_dict()
        ours = self.model.state_dict()
        names = (n for n in dict.fromkeys((*built, *ours)) if n not in built or n not in ours)
        wrong = next(names, None) or next((n for n in ours if ours[n].shape != built[n].shape), None)
        if wrong is not None:
            raise CandidateError(
                f'path: "{self._resident.source.reference}" tells a layer\'s kind (dense, a mixture of experts) by its '
                f'number; on this path its configuration would have another kind where "{wrong}" is'
            )

    def put_head(self, of: Resident) -> None:
        """Let final norm and output head be another model's, where they are not tied to the embeddings.

        A text model calls them otherwise than a vision-language model does.
        """
        for place, name in of.after.items():
            module, _, tensor = name.rpartition(".")
            own, _, _ = self._resident.after[place].rpartition(".")
            setattr(self.model.get_submodule(own), tensor, getattr(of.live.get_submodule(module), tensor))
