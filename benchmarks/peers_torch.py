"""Does what `peers.py` compares, with transformers and trl: a worker of it, see peers_protocol.py.

Models run as these libraries run them by default, which is without torch.compile, and with as many
threads as there are processors.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import tempfile
import time
from typing import Any

import numpy as np
import peers_cases as cases
import torch
import transformers
from peers_protocol import Prepared, clock, serve

torch.set_num_threads(len(os.sched_getaffinity(0)))


def model_of(case: cases.Case, path: str, scalar: bool = False) -> Any:
    """A Llama with the weights of a file, with logits or with one label."""
    size = case.network
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.embed,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": size.theta},
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        num_labels=1,
    )
    kinds = transformers.LlamaForCausalLM, transformers.LlamaForSequenceClassification
    model = kinds[scalar](config)
    arrays = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    missing, left = model.load_state_dict(arrays, strict=False)
    assert not left and set(missing) <= {"lm_head.weight"}, (missing, left)
    return model


def adamw(model: Any) -> torch.optim.Optimizer:
    """AdamW in one kernel, which is the Trainer's default."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=cases.LEARNING_RATE,
        betas=(cases.B1, cases.B2),
        eps=cases.EPSILON,
        weight_decay=0.0,
        fused=True,
    )


def training(place, one, tokens: float) -> Prepared:
    """Prepares steps: `place(number)` makes a batch of tensors, `one(batch)` gives its loss."""
    number = 0

    def loss() -> float:
        nonlocal number
        number += 1
        return one(place((number - 1) % cases.BATCHES)).item()

    losses: list[float] = []
    first = clock(lambda: losses.append(loss()))
    losses += [loss(), loss()]

    def go(times: int) -> dict:
        nonlocal number
        start, placing = time.perf_counter(), 0.0
        for _ in range(times):
            before = time.perf_counter()
            batch = place(number % cases.BATCHES)
            placing += time.perf_counter() - before
            one(batch)
            number += 1
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": times * tokens, "phases": {"input": placing}}

    checks = {"loss": losses[0], "loss after 2 steps": losses[2]}
    return Prepared(go, checks, compile_seconds=first)


def train(message: dict, paths: dict[str, str]) -> Prepared:
    """A step of a causal language model: forward, backward, clipping, AdamW."""
    case = cases.Case(**message)
    model = model_of(case, paths["actor"]).train()
    optimizer = adamw(model)
    rows = [cases.training_rows(case, n) for n in range(cases.BATCHES)]

    def place(number: int):
        inputs, targets, weights = rows[number]
        labels = np.where(weights > 0, targets, -100).astype(np.int64)
        return torch.from_numpy(inputs.astype(np.int64)), torch.from_numpy(labels)

    def one(batch):
        inputs, labels = batch
        loss = model(input_ids=inputs, labels=labels, shift_labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cases.CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return training(place, one, case.rows * (case.prompt + case.response))


def decode(message: dict, paths: dict[str, str], until_ends: bool = False) -> Prepared:
    """`generate`: greedy to full length, or sampling to ends."""
    case = cases.Case(**message)
    model = model_of(case, paths["actor"]).eval()
    count = cases.WAITING if until_ends else cases.BATCHES
    prompts = [cases.tokens(case, n, case.prompt) for n in range(count)]
    how: dict[str, Any] = {"do_sample": False, "eos_token_id": None}
    if until_ends:
        how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        how["eos_token_id"] = list(cases.ends(case, 0.5))

    def one(number: int) -> list[np.ndarray]:
        """A batch; where rows end all of them, one after another."""
        return [batch(n) for n in (range(len(prompts)) if until_ends else [number % len(prompts)])]

    def batch(number: int) -> np.ndarray:
        prompt = torch.from_numpy(prompts[number].astype(np.int64))
        with torch.inference_mode():
            rows = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=case.response,
                pad_token_id=0,
                **how,
            )
        return rows[:, case.prompt :].numpy()

    found: list[list[np.ndarray]] = []
    torch.manual_seed(0)
    first = clock(lambda: found.append(one(0)))
    checks = {} if until_ends else {"tokens": found[0][0].tolist()}

    def real(rows: np.ndarray) -> int:
        if not until_ends:
            return rows.size
        ended = np.isin(rows, how["eos_token_id"])
        return int(np.sum(np.cumsum(ended, axis=1) - ended == 0))

    def go(times: int) -> dict:
        tokens = 0
        start = time.perf_counter()
        for number in range(times):
            tokens += sum(map(real, one(number)))
        return {"seconds": time.perf_counter() - start, "tokens": tokens}

    return Prepared(go, checks, compile_seconds=first)


def reward(message: dict, paths: dict[str, str]) -> Prepared:
    """A pairwise step of trl's RewardTrainer: what its loop does with one batch."""
    import datasets
    import tokenizers
    import trl

    case = cases.Case(**message)
    model = model_of(case, paths["reward"], scalar=True)
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "<eos>": 1}))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>"
    )
    P, R = case.prompt, case.response
    examples = []
    for n in range(cases.BATCHES):
        for row in cases.tokens(case, n, P + 2 * R).tolist():
            examples.append({"chosen_ids": row[: P + R], "rejected_ids": row[:P] + row[P + R :]})
    folder = tempfile.mkdtemp()
    trainer = trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=case.rows,
            max_length=None,
            report_to="none",
            disable_tqdm=True,
            disable_dropout=True,
        ),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(examples),
    )
    optimizer = adamw(trainer.model)
    trainer.current_gradient_accumulation_steps = 1  # which `train` sets

    def place(number: int):
        some = examples[number * case.rows : (number + 1) * case.rows]
        return trainer.data_collator([dict(example) for example in some])

    def one(batch):
        loss = trainer.training_step(trainer.model, batch)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), cases.CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return training(place, one, 2 * case.rows * (P + R))


def machine(message: dict, paths: dict[str, str]) -> Prepared:
    """What the machine does at its best, by torch."""
    del message, paths
    one, other = torch.full((2048, 2048), 1 / 2048), torch.empty(2048, 2048)
    halves, half = one.bfloat16(), other.bfloat16()
    long, total = torch.ones(2**25), torch.ones(2**25)
    wide, vector = torch.ones(8192, 8192), torch.ones(8192)

    def rate(work: float, function) -> float:
        function()
        return 3 * work / clock(lambda: [function() for _ in range(3)])

    def go(times: int) -> dict:
        del times
        work = 2 * 2048**3
        rates = {
            "float32": rate(work, lambda: torch.mm(one, one, out=other)),
            "bfloat16": rate(work, lambda: torch.mm(halves, halves, out=half)),
            "bandwidth": max(
                rate(3 * long.nbytes, lambda: total.add_(long, alpha=0.5)),
                rate(wide.nbytes, lambda: torch.mv(wide, vector)),
            ),
        }
        return {"seconds": 1.0, "tokens": 0, "rates": rates}

    return Prepared(go, {})


TASKS = {
    "train": train,
    "decode": decode,
    "ends": functools.partial(decode, until_ends=True),
    "reward": reward,
    "machine": machine,
}


def versions() -> dict[str, str]:
    """Of torch, transformers and the packages that the command line names."""
    packages = ("torch", "transformers", *sys.argv[1:])
    found = {name: importlib.import_module(name).__version__ for name in packages}
    return found | {"threads": str(torch.get_num_threads())}


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    serve(TASKS, versions())
