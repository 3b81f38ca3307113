"""Each role with a network of its own family and size and a vocabulary of its own, all stages.

M_P reads words, M_PIT bytes, R_P pieces of a Unigram model and R_PIT those of a byte-level BPE.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from pit_jax.data.reference_store import ReferenceStore
from pit_jax.method.roles import ROLES
from pit_jax.run.run import Run
from tests import tiny_runs, tiny_tokenizers

NETWORKS = {
    "pit": "vocab_size = 264, embed_dim = 24, head_dim = 6, num_heads = 4, norm = 'layer', "
    "gated_mlp = False, activation = 'gelu', parallel_blocks = True, tied_embeddings = False",
    "policy_reward": "vocab_size = 208, num_layers = 2, qk_norm = 'head', activation = 'gelu'",
    "gap_reward": "vocab_size = 320, embed_dim = 8, norm_offset = True, norm_place = 'both'",
}


def roles_gin(folder) -> str:
    folder.mkdir()
    for name in ("unigram", "byte_level_bpe"):
        tokenizer = getattr(tiny_tokenizers, name)()
        tokenizer.add_special_tokens(["</s>"])
        tokenizer.save(str(folder / f"{name}.json"))
    vocabularies = {
        "pit": "bytes",
        "policy_reward": f"tokenizer:{folder}/unigram.json",
        "gap_reward": f"tokenizer:{folder}/byte_level_bpe.json",
    }
    lines = [tiny_runs.GIN, "layouts.Lengths:", *(f"    {w} = 0" for w in WINDOWS)]
    for role, network in NETWORKS.items():
        lines += [f"{role}/config.NetworkConfig:", *(f"    {f}" for f in network.split(", "))]
        lines += [
            f"{role}/run_config.RoleConfig:",
            f"    network = @{role}/config.NetworkConfig()",
            f"    vocabulary = {vocabularies[role]!r}",
            f"    eos_token = {'' if role == 'pit' else '</s>'!r}",
            f"run_config.RunConfig.{role} = @{role}/run_config.RoleConfig()",
            f"{role}/stages.SupervisedStage:",
            f"    name = 'pretrain_{role}'",
            "    task = 'pretrain'",
            f"    role = {role!r}",
            "    steps = 2",
            "    batch_size = 8",
            "    optimizer = @pretrain/train_state.OptimizerConfig()",
        ]
    starts = {"sft_pit": "pit", "rm_policy": "policy_reward", "rm_gap": "gap_reward"}
    for stage, role in starts.items():
        kind = "RewardStage" if stage.startswith("rm") else "SupervisedStage"
        lines.append(f"{stage}/stages.{kind}.initial = 'pretrain_{role}'")
    lines += [
        "ppo.PPOConfig.critic_start = 'actor'",
        "run_config.RunConfig.stages = (",
        *(f"    @{role}/stages.SupervisedStage()," for role in ("pretrain", *NETWORKS)),
        *(f"    @{stage}/stages.SupervisedStage()," for stage in ("sft_policy", "sft_pit")),
        *(f"    @{stage}/stages.RewardStage()," for stage in ("rm_policy", "rm_gap")),
        *(f"    @{stage}/stages.RLStage()," for stage in ("rl_policy", "rl_pit")),
        ")",
    ]
    return "\n".join(lines) + "\n"


WINDOWS = ("prompt", "reference", "response")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The folder of a run of all stages and its report, and its gin file."""
    base = tmp_path_factory.mktemp("roles")
    gin = roles_gin(base / "tokenizers")
    assert tiny_runs.command("run", base / "run", gin=gin) == 0
    return base / "run", gin


def test_all_stages_train_and_the_report_is_written(mixed):
    folder, _ = mixed
    report = json.loads((folder / "report.json").read_text())
    names = {row["name"] for row in report["comparisons"]}
    assert {"PIT vs Original", "RL vs SFT"} <= names
    assert len(report["stages"]) == 10
    assert report["stages"][0]["parameters"] != report["stages"][1]["parameters"]
