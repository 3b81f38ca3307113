"""Samples a round's references into its store, which is of the model that improved them."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from typing import Any

from etils import epath

from pit_jax.data.datasets import MixtureConfig
from pit_jax.data.examples import Example
from pit_jax.data.reference_store import ReferenceMeta, ReferenceStore, ReferenceWriter, is_closed
from pit_jax.errors import UserError
from pit_jax.method import curriculum
from pit_jax.method.curriculum import Round
from pit_jax.method.roles import POLICY
from pit_jax.run.run import Run
from pit_jax.run.stages import RLStage, Stage
from pit_jax.runtime import digests, processes


def check_sampled(run: Run, stage: RLStage, number: int) -> None:
    """Refuses to sample the references of a round anew when its model has learnt from them.

    Raises:
      UserError: if they aren't all there.
    """
    directory = references_folder(run, stage, number)
    if not is_closed(directory):
        raise UserError(
            f"{directory}: isn't whole any more, and the model that it was sampled from is gone; "
            f"bring it back from a copy, or delete {run.folder(stage.name)} to train the stage "
            "again"
        )


def sample_references(
    run: Run, stage: RLStage, number: int, round_: Round, actor: Any, begins: bool = False
) -> str:
    """Fills the round's reference store, from where a crash left it; returns its directory.

    A store that another `actor` has improved is refused where the round `begins` with this one.
    """
    directory = references_folder(run, stage, number)
    policy_step = round_.policy_step or run.result(round_.policy)["model_step"]
    checkpoint = f"{round_.policy}@{policy_step}"
    examples: Sequence[Example] = run.data.examples("train", "rl")
    if not isinstance(run.data.config, MixtureConfig):  # rates may ask for more of a small dataset
        seed = seed_of(run, stage, number, "references")
        examples = curriculum.to_sample(examples, round_, stage.batch_size, seed)
    model = digests.of_arrays(actor) if begins and round_.source == "pit" else ""
    who = number, round_.source, checkpoint, run.config.seed, len(examples), stage.name, model
    meta = ReferenceMeta(*who)
    open_writer = functools.partial(ReferenceWriter, directory, run.config.shard_size, meta)
    writer = open_writer(write=False)
    processes.wait()  # all have read how far the store is
    if processes.is_first():
        writer = open_writer()
    if writer.closed:
        return str(directory)
    print(f"{stage.name}: sampling references of round {number} from {round_.source}", flush=True)
    curriculum.sample_references(
        round_,
        writer,
        examples,
        policy=run.load_frozen(round_.policy, policy_step, POLICY),
        policy_role=run.role(POLICY),
        improver=run.improver(actor),
        key=run.key("references", stage.name, number),
        shard_size=run.config.shard_size,
    )
    processes.wait()  # the first one has closed the store
    store = ReferenceStore(directory)
    cut = f"{store.unended} of them cut because they didn't end"
    print(f"{stage.name}: {len(store)} references, {cut}", flush=True)
    return str(directory)


def seed_of(run: Run, stage: Stage, *more: int | str) -> int:
    """Returns the seed of a stage for one purpose, by what else names it."""
    return zlib.crc32(" ".join(map(str, (run.config.seed, stage.name, *more))).encode())


def references_folder(run: Run, stage: Stage, number: int) -> epath.Path:
    """Returns the folder of a round's reference store."""
    return run.folder(stage.name) / "references" / f"round-{number}"
