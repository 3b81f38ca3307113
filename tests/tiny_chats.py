"""Tiny models' tokenizers as they are published: special tokens, BOS, ends and a chat template.

The templates are written here, in the styles of the families that they are named after.
"""

import dataclasses
import json

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.tiny_tokenizers import CORPUS, byte_level_bpe

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{- m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no system turn here') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] + eos_token }}{% else %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
# Looks into what is said, as templates of models that think do.
THINKING = (
    "{% for m in messages %}{% set said = m['content'].split('</think>')[-1] %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Chat:
    """A tokenizer's folder as its family publishes it, and what is true of it."""

    folder: str
    own: int  # number of the tokenizer's own ids
    bos: str  # what prompts begin with; empty if with text
    ends: tuple[str, ...]  # with the template; the first is EOS
    base_ends: tuple[str, ...]  # without
    padding: str  # empty if an id is appended for it
    lead: str  # what stands between prompt and answer


def sentence_bpe(prefix, specials):
    """Like the tokenizers of Llama 2, Mistral and Gemma: pieces with ▁, and bytes for the rest.

    Args:
      prefix: `prepend` or `first` puts a space before texts, `none` doesn't.
      specials: special tokens, among the pieces, of which the first is the unknown one.
    """
    spaces = normalizers.Replace(" ", "▁")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()  # a piece is part of one word
    trainer = trainers.BpeTrainer(vocab_size=260, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(model["vocab"], key=model["vocab"].get)
    tokenizer = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            [tuple(pair) for pair in model["merges"]],
            unk_token=specials[0],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    elif prefix == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = spaces
    if prefix != "none":
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([*specials])
    return tokenizer


def put_first(tokenizer, bos):
    """The post-processor of a model that was trained with BOS."""
    pair = (bos, tokenizer.token_to_id(bos))
    tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", None, [pair])


def write(folder, tokenizer, config, template, ends=None):
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)
    if ends is not None:
        ids = [tokenizer.token_to_id(name) for name in ends]
        generation = {"eos_token_id": ids[0] if len(ids) == 1 else ids}
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return str(folder), max(tokenizer.get_vocab().values()) + 1


def make_chats(root):
    """name -> Chat, each in a folder under `root`."""
    found = {}

    # As SmolLM2 and Qwen base: padding is an end, and no token says that a text begins.
    tokenizer = byte_level_bpe()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    config = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    config["add_bos_token"] = False
    made = write(root / "chatml", tokenizer, config, CHATML, ("<|im_end|>", "<|endoftext|>"))
    ends = ("<|im_end|>", "<|endoftext|>")
    found["chatml"] = Chat(*made, "", ends, ends, "", "")

    tokenizer = byte_level_bpe()
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer.add_special_tokens([*names, "<|eom_id|>", "<|eot_id|>"])
    put_first(tokenizer, "<|begin_of_text|>")
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    ends = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
    made = write(root / "llama3", tokenizer, config, LLAMA3, ends)
    with_template = ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")
    found["llama3"] = Chat(*made, "<|begin_of_text|>", with_template, ends, "", "")

    names = ["<unk>", "<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = sentence_bpe("none", names)
    put_first(tokenizer, "<bos>")
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    config["add_bos_token"] = True
    made = write(root / "gemma", tokenizer, config, GEMMA, ("<eos>", "<end_of_turn>"))
    ends = ("<end_of_turn>", "<eos>")
    found["gemma"] = Chat(*made, "<bos>", ends, ends[::-1], "<pad>", "")

    for name, prefix in (("llama2", "prepend"), ("mistral", "first")):
        tokenizer = sentence_bpe(prefix, ["<unk>", "<s>", "</s>"])
        put_first(tokenizer, "<s>")
        config = {"bos_token": {"__type": "AddedToken", "content": "<s>"}}
        config |= {"eos_token": "</s>", "pad_token": None}
        made = write(root / name, tokenizer, config, MISTRAL, ("</s>",))
        found[name] = Chat(*made, "<s>", ("</s>",), ("</s>",), "", " ")

    # As Zephyr: answers begin a line, so no space is before them.
    tokenizer = sentence_bpe("first", ["<unk>", "<s>", "</s>"])
    put_first(tokenizer, "<s>")
    lines = (
        "{% for m in messages %}{{ '|' + m['role'] + '|\n' + m['content'] + eos_token + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '|assistant|\n' }}{% endif %}"
    )
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    made = write(root / "lines", tokenizer, config, lines)
    found["lines"] = Chat(*made, "<s>", ("</s>",), ("</s>",), "", "")
    return found
