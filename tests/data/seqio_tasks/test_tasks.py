"""What seqio's tasks refuse."""

import pytest

from pit_jax.data.examples import Example
from pit_jax.data.layouts import Lengths
from pit_jax.data.seqio_tasks import sources, tasks
from pit_jax.data.vocabularies.load import load

WORDS = load("words:drafts")
LENGTHS = Lengths(prompt=12, reference=14, response=15)


def test_what_would_split_a_batch_is_refused():
    import seqio

    source = sources.ExampleSource({"train": [Example("x", "y", "z")]})
    shard = seqio.ShardInfo(index=0, num_shards=2)
    with pytest.raises(ValueError, match=r"shard_info: got .*num_shards=2.*expected None or one"):
        source.get_dataset("train", shard_info=shard)


def test_a_task_that_is_none_has_no_seqio_task():
    with pytest.raises(ValueError, match="task: got 'rm', expected one of pretrain, sft_policy"):
        tasks.build_task("name", "rm", None, WORDS, LENGTHS)
