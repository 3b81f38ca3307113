"""Makes prompts of turns with a model's own chat template, as the package transformers does.

A template is a program from elsewhere: it runs in Jinja's sandbox, which lets it touch nothing but
what it is given. What users and assistants say can't pass for a special token: a token's name
counts only where the template itself has written it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pit_jax.data.examples import Turns
from pit_jax.errors import UserError

# Characters that Unicode keeps for use inside of programs.
_INTERNAL = [chr(code) for code in range(0xFDD0, 0xFDF0)]


class ChatTemplate:
    """Renders turns as a prompt for the assistant's answer.

    Attributes:
      digest: a hash of the template.
      end: name of the special token that it writes after an assistant's turn; empty if none.
      lead: what it writes between the end of such a prompt and an answer.
    """

    def __init__(
        self,
        source: str,
        place: str,
        special_tokens: Iterable[tuple[str, bool, bool]],
        variables: Mapping[str, str],
    ):
        """Compiles the template and tries it.

        Args:
          source: the template.
          place: where it is from, for errors.
          special_tokens: of each special token its name, and whether the white space before and
            after it belongs to it.
          variables: what the template may use by name, such as `bos_token`.

        Raises:
          UserError: if it is no template, or refuses a question with its answer.
        """
        self._stripped = {name: (left, right) for name, left, right in special_tokens}
        longest_first = sorted(self._stripped, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._variables = dict(variables)
        self.digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        try:
            self._template = _environment().from_string(source)
            self.end, self.lead = self._around_an_answer()
        except Exception as error:
            reason = (str(error).splitlines() or [repr(error)])[0][:200]
            raise UserError(
                f"{place}: expected a chat template, which it isn't: {reason}"
            ) from None

    def split(self, turns: Turns) -> Iterator[tuple[str, bool]]:
        """Yields the prompt in parts: a text, and whether it is the name of a special token.

        Raises:
          ValueError: if the template refuses the turns, or leaves one out.
        """
        text = self._render(turns, prompt=True)
        for role, content in turns:
            if role != "assistant" and content.strip() not in text:
                raise ValueError(f"got a turn of role {role!r} that the chat template leaves out")
        at = 0
        for match in self._names.finditer(self._masked(turns, text)):
            start, end = match.span()
            left, right = self._stripped[match.group()]
            before = text[at:start].rstrip() if left else text[at:start]
            if before:
                yield before, False
            yield match.group(), True
            at = end + (len(text[end:]) - len(text[end:].lstrip()) if right else 0)
        if text[at:]:
            yield text[at:], False

    def _render(self, turns: Turns, prompt: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=prompt,
                **self._variables,
            )
        except Exception as error:  # whatever a program from elsewhere may raise
            reason = (str(error).splitlines() or [repr(error)])[0][:200]
            raise ValueError(f"got turns that the chat template refuses: {reason}") from None

    def _masked(self, turns: Turns, text: str) -> str:
        """Returns the rendered text with what the turns say made unreadable, at equal length."""
        said = "\n".join(content for _, content in turns)
        opening, closing = [mark for mark in _INTERNAL if mark not in said + text][:2]
        marked = tuple(
            (role, content.replace(core, f"{opening}{core}{closing}"))
            if (core := content.strip())
            else (role, content)
            for role, content in turns
        )
        rendered = self._render(marked, prompt=True)
        parts = re.split(f"[{opening}{closing}]", rendered)
        marks = re.sub(f"[^{opening}{closing}]", "", rendered)
        if "".join(parts) == text and marks == (opening + closing) * (len(parts) // 2):
            return "".join(opening * len(p) if n % 2 else p for n, p in enumerate(parts))
        # The template looks into what is said, so that marks in it change what it does.
        if name := self._names.search(said):
            raise ValueError(
                f"got {name.group()!r} in a turn, which the chat template writes as its own"
            )
        return text

    def _around_an_answer(self) -> tuple[str, str]:
        question, answer = ("user", "Question"), f"{_INTERNAL[0]}Answer{_INTERNAL[1]}"
        prompt = self._render((question,), prompt=True)
        whole = self._render((question, ("assistant", answer)), prompt=False)
        before, _, after = whole.partition(answer)
        end = self._names.match(after.lstrip())
        lead = before.removeprefix(prompt) if before.startswith(prompt) else ""
        return end.group() if end else "", lead


def _environment() -> Any:
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Reads `{% generation %}`, which some templates put around what assistants say."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    # One time for all prompts of a run.
    environment.globals["strftime_now"] = datetime.datetime.now().strftime
    return environment
