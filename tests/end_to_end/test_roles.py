"""Each role with a network of its own family and size and a vocabulary of its own, all stages.

M_P reads words, M_PIT bytes, R_P pieces of a Unigram model and R_PIT those of a byte-level BPE.
"""

from __future__ import annotations

import json

import pytest

from pit_jax.data.reference_store import ReferenceStore
from pit_jax.data.vocabularies.load import load
from pit_jax.method import self_refine
from tests import tiny_runs, tiny_tokenizers

WINDOWS = ("prompt", "reference", "response")

pytestmark = pytest.mark.slow

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
    assert {"PIT vs Original", "RL vs SFT", "Self-Refine vs Original"} <= names
    sizes = {row["name"]: row["parameters"] for row in report["stages"]}
    assert sizes["sft_policy"] == sizes["rl_policy"] == sizes["pretrain"]
    assert sizes["sft_pit"] == sizes["rl_pit"] == sizes["pretrain_pit"]
    models = ("rl_policy", "rl_pit", "rm_policy", "rm_gap")
    assert len({sizes[model] for model in models}) == 4


def test_references_go_from_policy_to_pit_as_text(mixed):
    """Of words that M_P writes, M_PIT's references are the bytes."""
    folder, _ = mixed
    store = ReferenceStore(str(folder / "rl_pit/references/round-1"))
    records = list(store)
    assert len(records) > 10 and any(record["text"] for record in records)
    for record in records:
        text = record["text"].encode()
        assert len(record["reference_tokens"]) == len(text)
        offset = {t - b for t, b in zip(record["reference_tokens"], text, strict=True)}
        assert len(offset) <= 1


def test_improve_passes_text_from_model_to_model(mixed, tmp_path, capsys):
    folder, gin = mixed
    rows = [{"prompt": "x2 ? from 3"}, {"prompt": "x2 ? from 3", "response": "from 3"}]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = (f"--input={source}", f"--output={target}", "--gin.ImproveConfig.iterations=2")
    assert tiny_runs.command("improve", folder, *flags, gin=gin) == 0
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [len(line["responses"]) for line in lines] == [3, 3]
    assert lines[1]["responses"][0] == "from 3" and len(lines[0]["gaps"]) == 2
    words = load("words:drafts", self_refine.read("words").words)
    assert words.decode(words.encode(lines[0]["responses"][0])) == lines[0]["responses"][0]


def test_windows_of_another_role_are_a_change(mixed, capsys):
    folder, gin = mixed
    changed = gin + "pit/run_config.RoleConfig.lengths = @pit/layouts.Lengths()\n"
    changed += "pit/layouts.Lengths:\n    prompt = 60\n    reference = 90\n    response = 91\n"
    (folder / "rl_policy/result.json").rename(folder / "rl_policy/kept.json")
    try:
        flags = ("--gin.STAGE='rl_policy'",)
        assert tiny_runs.command("train", folder, *flags, gin=changed) == 2
    finally:
        (folder / "rl_policy/kept.json").rename(folder / "rl_policy/result.json")
    told = capsys.readouterr().err
    assert "was started with other settings" in told and "lengths of pit.prompt" in told
