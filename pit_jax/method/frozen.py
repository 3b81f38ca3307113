"""Holds the models that a PPO step reads and doesn't change, with what they share only once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct

from pit_jax.models import adapters


class Frozen(flax.struct.PyTreeNode):
    """Holds what a PPO step reads and doesn't change, in which every backbone stands once.

    Attributes:
      models: the parameters of `reference` and `reward`, but for their backbones.
      backbones: the backbones of models with adapters (models/adapters.py), each under the first of
        its roles.
      backbone_of: pairs of a role and the entry of `backbones` that is its backbone; the roles are
        `actor`, `critic`, `reference` and `reward` (static).
    """

    models: dict[str, Any]
    backbones: dict[str, Any] = flax.struct.field(default_factory=dict)
    backbone_of: tuple[tuple[str, str], ...] = flax.struct.field(pytree_node=False, default=())

    @classmethod
    def share(cls, models: dict[str, Any], trained: dict[str, Any]) -> Frozen:
        """Finds the backbones that are the same tree.

        Args:
          models: the parameters of `reference` and `reward`.
          trained: the backbones of `actor` and `critic`, None for a model that is trained whole.
        """
        parts = {role: (backbone, None) for role, backbone in trained.items()}
        shared = [id(backbone) for backbone in trained.values()]
        for role, params in models.items():
            if isinstance(params, adapters.Adapted):
                parts[role] = params.backbone, params.own
            else:  # a model that is trained whole may be what others have adapters on
                parts[role] = (params, {}) if id(params) in shared else (None, params)
        backbones: dict[str, Any] = {}
        names: dict[int, str] = {}
        for role, (backbone, _) in parts.items():
            if backbone is not None and id(backbone) not in names:
                names[id(backbone)] = role
                backbones[role] = backbone
        backbone_of = ((role, names.get(id(backbone), "")) for role, (backbone, _) in parts.items())
        return cls(
            {role: parts[role][1] for role in models},
            backbones,
            tuple((role, name) for role, name in backbone_of if name),
        )

    def model(self, role: str, own: Any = None) -> Any:
        """Returns the parameters of a role's model; of a trained one, `own` is what is trained."""
        own = self.models[role] if own is None else own
        return adapters.on(self.backbones.get(dict(self.backbone_of).get(role, "")), own)

    def of_own(self, role: str, function: Callable) -> Callable:
        """Returns a function of a trained role's model as one of what is trained of it."""
        return lambda own, *rest: function(self.model(role, own), *rest)

    @property
    def of_trained(self) -> Frozen:
        """The backbones of actor and critic alone, which is all that the update reads."""
        backbone_of = tuple(pair for pair in self.backbone_of if pair[0] in ("actor", "critic"))
        kept = {name for _, name in backbone_of}
        backbones = {name: tree for name, tree in self.backbones.items() if name in kept}
        return Frozen({}, backbones, backbone_of)
