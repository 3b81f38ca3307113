"""Self-Refine (Madaan et al., 2023): M_P gives feedback on its response and then writes it anew.

What M_P is asked stands in a JSON file of two steps, `feedback` and `refine`:

    {
      "feedback": {
        "system": "You review what assistants write.",
        "user": "{prompt}\\n\\nAn answer:\\n{response}\\n\\nWhat is wrong with it?",
        "opening": "Review:"
      },
      "refine": {
        "user": "{prompt}\\n\\nAn answer:\\n{response}\\n\\n{feedback}\\n\\nImprove the answer."
      }
    }

`user` is what the user says. It has to have the fields `{prompt}` and `{response}`, and that of
`refine` `{feedback}` too; its other braces are doubled. A `system` turn and the `opening`, with
which the assistant's answer begins, may be left out; they have no fields. The feedback and the new
response are what is sampled after the opening, without it.

A step is rendered as every prompt is: by the chat template, or else as `Human: {x}Assistant:`,
where the system's text stands in front of the user's, after `Human: `, with a blank line between
them. It stands so too where a template takes no system turn. The opening follows as an answer's
first tokens do.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from pit_jax.data.examples import Turns, turns_of
from pit_jax.data.files import turns
from pit_jax.data.layouts import Layout
from pit_jax.data.vocabularies.base import HUMAN
from pit_jax.errors import UserError
from pit_jax.method import prompt_files
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.prompt_files import Step
from pit_jax.method.roles import Role
from pit_jax.method.sampler import Response, Tokens

# The prompts that come with the package; a file's name without `.json` stands for it.
SHIPPED = pathlib.Path(__file__).with_name("prompts")
_SETTING = "ImproveConfig.self_refine"
# Step -> the fields of its `user`.
_FIELDS = {
    "feedback": ("prompt", "response"),
    "refine": ("prompt", "response", "feedback"),
}


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Holds the prompts of both steps.

    Attributes:
      feedback: asks what is wrong with a response.
      refine: asks for a response that is better by this feedback.
    """

    feedback: Step
    refine: Step

    @property
    def words(self) -> tuple[str, ...]:
        """The words of all texts in their order, which a vocabulary of words has to know."""
        found: list[str] = []
        for step in (self.feedback, self.refine):
            asked = step.says(dict.fromkeys(_FIELDS["refine"], ""))
            found += " ".join((step.system, asked, step.opening)).split()
        return tuple(found)


def read(name: str) -> Prompts:
    """Reads prompts.

    Args:
      name: of prompts that come with the package, such as `dialogue`, or the path of a file.

    Raises:
      UserError: if there is no such file, or it isn't as this module's docstring says.
    """

    def made(found: dict[str, Any]) -> Prompts:
        prompt_files.check_keys(found, "the file", tuple(_FIELDS), tuple(_FIELDS))
        steps = {step: prompt_files.step(step, found[step], _FIELDS[step]) for step in _FIELDS}
        return Prompts(**steps)

    return prompt_files.read(_SETTING, SHIPPED, name, made)


class SelfRefine:
    """Improves responses by Self-Refine.

    Args:
      prompts: what M_P is asked.
      layout: builds the models' inputs.
      window: R, the most tokens of a response, EOS included.

    Raises:
      UserError: if the chat template refuses a step.
    """

    def __init__(self, prompts: Prompts, layout: Layout, window: int):
        self.prompts = prompts
        self._layout = layout
        self._window = window
        steps = {name: getattr(prompts, name) for name in _FIELDS}
        self._takes_system = {step: self._takes(step.system) for step in steps.values()}
        for name, fields in _FIELDS.items():
            step = steps[name]
            try:
                self.prompt(step, dict.fromkeys(fields, "text"))
            except ValueError as error:
                raise UserError(f"{_SETTING}: {name}: {error}") from None

    def prompt(self, step: Step, texts: Mapping[str, str]) -> Tokens:
        """Returns the ids of a step, up to where the model goes on.

        Args:
          step: a step of the prompts.
          texts: what stands in the place of the fields.

        Raises:
          ValueError: if the chat template refuses the turns.
        """
        said, system = step.says(texts), step.system
        asked: Turns = (("system", system), ("user", said))
        if not self._takes_system[step]:
            asked = (("user", f"{system}\n\n{said}".strip()),)
        opening = self._layout.vocabulary.encode(step.opening) if step.opening else []
        return self._layout.policy_prompt(turns.of_turns(asked)) + opening

    def __call__(
        self,
        role: Role,
        model: Any,
        prompts: Sequence[str],
        responses: Sequence[Response],
        rows: Sequence[int],
        key: jax.Array,
        sampling: SamplingConfig,
    ) -> list[Response]:
        """Samples feedback on each response and then a better response, both from M_P.

        Args:
          role: how M_P reads and writes.
          model: parameters of M_P.
          prompts: x, as text; a dialogue of several turns is given to M_P as one text.
          responses: what is improved.
          rows: a number that names each row, for its random draws.
          key: the key of both draws.
          sampling: temperature and filters.
        """
        given = [
            {"prompt": as_text(x), "response": role.text(response)}
            for x, response in zip(prompts, responses, strict=True)
        ]

        def answers(step: Step, key: jax.Array) -> list[Response]:
            built = [self.prompt(step, texts) for texts in given]
            # In steps, so that few widths are compiled.
            width = -(-max(map(len, built)) // 32) * 32
            sampled = role.respond(model, built, width, rows, key, sampling)
            return [self._goes_on(answer) for answer in sampled] if step.opening else sampled

        feedback_key, refine_key = jax.random.split(key)
        for texts, advice in zip(given, answers(self.prompts.feedback, feedback_key), strict=True):
            texts["feedback"] = role.text(advice).strip()
        return answers(self.prompts.refine, refine_key)

    def _takes(self, system: str) -> bool:
        """Whether there is a system text, and a turn for it that no template refuses."""
        try:
            self._layout.policy_prompt(turns.of_turns((("system", system), ("user", "text"))))
        except ValueError:
            return False
        return bool(system)

    def _goes_on(self, answer: Response) -> Response:
        """Makes an answer of what follows an opening: as in the data, it begins with no space."""
        vocabulary = self._layout.vocabulary
        text = vocabulary.decode(answer.tokens)
        if text == text.lstrip():
            return answer
        tokens = vocabulary.encode(text.lstrip())
        window = self._window - answer.ended
        ended = answer.ended and len(tokens) <= window
        tokens = tokens[:window]
        return Response(tokens, ended, text=vocabulary.decode(tokens))


def as_text(x: str) -> str:
    """Returns x as a part of a prompt; that a dialogue begins with the user is said there too."""
    said = [role for role, _ in turns_of(x) if role != "system"]
    return (HUMAN if len(said) > 1 else "") + x.strip()
