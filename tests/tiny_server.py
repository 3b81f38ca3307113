"""A stand-in for a server of exported models: OpenAI's completions, and vLLM's `/classify`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from tests import tiny_api

Body = dict[str, Any]


class Models(tiny_api.Api):
    """Answers for models by their names; every model gets the token ids and the request.

    Attributes:
      complete: name -> what it writes: token ids, or a text alone, and the reason of its end.
      classify: name -> its score.
      trouble: answers that come first, in order.
    """

    def __init__(
        self,
        complete: dict[str, Callable[[list[int], Body], tuple[list[int] | str, str]]],
        classify: dict[str, Callable[[list[int]], float]],
    ):
        super().__init__(lambda said: "")
        self.complete, self.classify = complete, classify
        self.trouble: list[tiny_api.Reply] = []

    def answer(self, path: str, body: Body) -> tiny_api.Reply:
        with self._lock:
            if self.trouble:
                return self.trouble.pop(0)
        assert path in ("/classify", "/v1/completions")
        models: Any = self.classify if path == "/classify" else self.complete
        if body["model"] not in models:
            said = {"error": {"message": f"The model `{body['model']}` does not exist."}}
            return 404, {}, json.dumps(said).encode()
        if path == "/classify":
            score = models[body["model"]](body["input"])
            data = [{"index": 0, "label": "score", "probs": [score], "num_classes": 1}]
            return 200, {}, json.dumps({"object": "list", "data": data}).encode()
        found, reason = models[body["model"]](body["prompt"], body)
        choice = {"index": 0, "text": "", "finish_reason": reason, "token_ids": found}
        if isinstance(found, str):
            choice = {"index": 0, "text": found, "finish_reason": reason}
        return 200, {}, json.dumps({"choices": [choice]}).encode()


@contextlib.contextmanager
def serving(complete, classify=None) -> Iterator[Models]:
    """Serves until the block ends."""
    with tiny_api.served(Models(complete, classify or {})) as server:
        yield server
