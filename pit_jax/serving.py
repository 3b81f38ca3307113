"""Explains the command `improve`, and is it where its models are those of an exported directory.

The models are loaded here, or they are served elsewhere and reached by `--endpoint`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

from pit_jax import bindings
from pit_jax.errors import UserError

# What its help says of its files.
IMPROVE = """
input:
  prompt, text or turns {role, content}; response, the text to improve, sampled where it is missing
  or null; other keys come back as they are. Files are JSON lines, JSON or parquet, also packed.

output, a line for each row of the input, in order:
  responses    the texts: the response that was improved, then one for each iteration
  ended        whether each ended within the window of responses
  gaps         R_PIT's gap of each iteration; above 0 it is better than what it was made of
  best         which of responses is the best by gap, counted from 0; null without a gap model
  response     the result: the best, or the last with --gin.ImproveConfig.keep=last
  stop_reason  iterations, unchanged, gap or time
  truncated    whether a window cut a response, or cut one that the next was made of
  models       stage@step of each role
  seed         the seed of all draws
  settings     the fields of ImproveConfig that aren't their defaults
  status       ok; of a row that --on_error=skip has skipped, file:line: what is wrong
  reflections  what the model wrote before the response of each iteration, if its task is
               sft_pit_reflection

  {"id": 7, "prompt": "2+2?", "responses": ["5", "4"], "ended": [true, true], "gaps": [1.2],
   "best": 1, "response": "4", "stop_reason": "iterations", "truncated": false,
   "models": {"policy": "rl_policy@60", "pit": "rl_pit@60", "gap_model": "rm_gap@80"}, "seed": 0,
   "settings": {}, "status": "ok"}

sampling, which has temperature, top_k and top_p:
  --gin.policy/SamplingConfig.temperature=0.7   of the responses that are missing
  --gin.pit/SamplingConfig.temperature=0.4      of the improvements

  Rows are worked on in shards of RunConfig.shard_size, which are written to OUTPUT.parts as they
  are done. Ended at any time, the same command goes on after the last of them.
"""
# Fields of RunConfig that say how to improve; all others are the directory's.
_SETTABLE = ("seed", "sampling_batch", "shard_size", "improve")
_KEY = "--key_variable"


def add_flags(command: argparse.ArgumentParser) -> None:
    """Adds what `improve` takes for an exported directory."""
    title = "with an exported directory, in place of gin files"
    add = command.add_argument_group(title).add_argument
    add("--exported", metavar="DIR", help="what convert --to=hf has written of all models")
    add("--endpoint", metavar="URL", help="its models are served at this OpenAI-compatible API")
    add("--model", metavar="NAME", help="of the PIT model there; NAME@URL for another server")
    add("--policy_model", metavar="NAME", help="likewise, of the policy")
    add("--gap_model", metavar="NAME", help="likewise, of the gap model; without it no gaps")
    add(_KEY, default="", metavar="NAME", help="environment variable with the API's key, if any")
    add("--concurrency", type=int, default=16, metavar="N", help="requests at once (16)")
    add("--timeout", type=float, default=300.0, metavar="S", help="seconds for an answer (300)")
    add("--retries", type=int, default=6, metavar="N", help="of a request without an answer (6)")


def improve(options: argparse.Namespace, flags: Sequence[tuple[str, str]]) -> None:
    """Improves the rows of a file with an exported directory's models.

    Raises:
      UserError: for flags that don't go together, and for all that `improve` refuses.
    """
    if not options.exported:
        raise UserError("--endpoint: expected --exported=DIR, what its models were exported to")
    if options.gin_file:
        raise UserError("--exported takes no gin file; the directory has its settings")
    if options.endpoint and options.distributed:
        raise UserError("--endpoint: several hosts would ask for everything twice, expected one")
    from etils import epath

    from pit_jax.run import exported, improver, improving
    from pit_jax.run.config import RunConfig
    from pit_jax.runtime import processes, signals

    folder = epath.Path(options.exported)
    config = exported.config_of(folder, exported.read(folder))
    changes = bindings.over(exported.gin_text(config), flags, RunConfig)
    for name in changes:
        if name not in _SETTABLE:
            raise UserError(f"--gin.RunConfig.{name}: the directory says it, expected no other one")
    with signals.Signals() as caught, open(os.devnull, "w") as silence:
        if options.distributed:
            processes.initialize()
        with contextlib.redirect_stdout(sys.stdout if processes.is_first() else silence):
            run = _run(folder, options, changes)
            run.signals = caught
            made = improver.RunImprover(run, run.stages)
            job = improving.Job(made, options.input, options.output, options.on_error)
            if not made.has_gaps:
                print("note: without a gap model there are no gaps, and the result is the last one")
            if options.dry_run:
                print(job.describe())
            else:
                job()


def _run(folder, options, changes):
    from pit_jax.run import client, exported, served

    roles = {"pit": options.model, "policy": options.policy_model, "gap_model": options.gap_model}
    if not options.endpoint:
        given = [name for name, value in roles.items() if value]
        if given or options.key_variable:
            raise UserError(
                "--model, --policy_model, --gap_model, --key_variable: expected --endpoint=URL too"
            )
        return exported.ExportedRun(folder, changes=changes)
    if options.concurrency < 1 or options.retries < 0 or options.timeout <= 0:
        raise UserError(
            f"--concurrency, --retries, --timeout: got {options.concurrency}, {options.retries}, "
            f"{options.timeout}, expected at least 1, at least 0, above 0"
        )
    models = served.served_of(roles, options.endpoint)
    for each in models.values():
        client.check_url("--endpoint", each.url)
    client.check_url("--endpoint", options.endpoint)
    client.check_key_variable(_KEY, options.key_variable)
    key = client.key_of(_KEY, options.key_variable)
    sender = client.Client(key, options.timeout, options.retries)
    return served.ServedRun(folder, models, sender, options.concurrency, changes)
