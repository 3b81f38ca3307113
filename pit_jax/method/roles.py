"""Says how the models of a role read and write text: by their network, vocabulary and windows.

A run has four roles: M_P, M_PIT, R_P and R_PIT. They may be of different sizes, families and
vocabularies, so from a model of one role to a model of another goes text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from pit_jax.data.layouts import Layout, Lengths, Widths
from pit_jax.data.vocabularies.base import Vocabulary
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.sampler import Reflecting, Response, Sampler, Tokens
from pit_jax.models.config import NetworkConfig

POLICY, PIT, POLICY_REWARD, GAP_REWARD = ROLES = ("policy", "pit", "policy_reward", "gap_reward")


@dataclasses.dataclass(frozen=True, eq=False)
class Role:
    """Holds what the models of a role share; roles of the same settings are one.

    Attributes:
      network: their network.
      layout: builds their inputs, in ids of their vocabulary.
      lengths: their windows in tokens.
      sampler: decodes and scores.
    """

    network: NetworkConfig
    layout: Layout
    lengths: Lengths
    sampler: Sampler

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of their ids."""
        return self.layout.vocabulary

    @property
    def widths(self) -> Widths:
        """The array widths of their inputs."""
        return self.layout.widths(self.lengths)

    def answers(
        self,
        model: Any,
        prompts: Sequence[str],
        rows: Sequence[int],
        key: jax.Array,
        sampling: SamplingConfig,
    ) -> list[Response]:
        """Samples M_P's response to each prompt, x as text."""
        built = [self.layout.policy_prompt(x) for x in prompts]
        return self.respond(model, built, self.widths.policy, rows, key, sampling)

    def respond(
        self,
        model: Any,
        built: Sequence[Tokens],
        width: int,
        rows: Sequence[int],
        key: jax.Array,
        sampling: SamplingConfig,
        reflecting: Reflecting | None = None,
    ) -> list[Response]:
        """Samples as `Sampler.respond` does, and adds what each response says."""
        more = () if reflecting is None else (reflecting,)
        sampled = self.sampler.respond(model, built, width, rows, key, sampling, *more)
        decode = self.vocabulary.decode
        return [dataclasses.replace(each, text=decode(each.tokens)) for each in sampled]

    def text(self, response: Response) -> str:
        """What a response says; without a text, its tokens are of this role's vocabulary."""
        return self.vocabulary.decode(response.tokens) if response.text is None else response.text

    def reference(self, response: Response) -> Tokens:
        """Makes a y_ref of a response: the ids of its text, cut to the reference window.

        A model may sample a text in other pieces than a tokenizer splits it into. From one model
        to the next goes the text, as whoever serves them passes it on.
        """
        return self.vocabulary.encode(self.text(response))[: self.lengths.reference]

    def reading(self, response: Response, writer: Role) -> Response:
        """Returns a response as a reward model of this role reads it.

        One that was sampled in this vocabulary is read in the pieces that it was sampled in. The
        text of any other is encoded; what is then longer than the window is cut, and doesn't end.

        Args:
          response: a response.
          writer: the role whose model has sampled it.
        """
        if writer.vocabulary == self.vocabulary:
            return response
        return self.read(writer.text(response), response.ended)

    def read(self, text: str, ended: bool = True) -> Response:
        """Returns the response that says a text; one over the window is cut, and doesn't end."""
        tokens, window = self.vocabulary.encode(text), self.lengths.response
        return Response(tokens[:window], ended and len(tokens) < window, text=text)
