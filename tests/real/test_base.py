"""The real base model is built once from a package, is the expected one, and answers questions."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import real_base

pytestmark = pytest.mark.real


def ask(folder: Path, question: str) -> str:
    """Return the greedy answer of the model in a folder, loaded with transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(answer))


def test_the_base_answers_questions(base: Path) -> None:
    """The weights are those of the real model, and its end token ends the answer."""
    assert ask(base, "What is the capital of France?") == "The capital of France is Paris.<|im_end|>"


def test_the_base_has_the_published_size(base: Path) -> None:
    """The model has the architecture and the number of parameters of SmolLM2-135M, with tied embeddings."""
    model = AutoModelForCausalLM.from_pretrained(base)
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == 134_515_008


def test_each_digit_is_a_token(base: Path) -> None:
    """Digits are separated before the merges, as in the original tokenizer; spaces before a number are not."""
    tokens = AutoTokenizer.from_pretrained(base).tokenize("I paid  1234 euros")
    assert tokens == ["I", "Ġpaid", "ĠĠ", "1", "2", "3", "4", "Ġeuros"]


def test_a_complete_folder_is_not_built_again(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A complete folder needs no download; a file with one changed byte is detected."""

    def download(folder: Path) -> Path:
        raise AssertionError("download")

    monkeypatch.setattr(real_base, "download", download)
    assert real_base.build(base) == base
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert real_base.wrong_files(copy) == ["model.safetensors"]
    with pytest.raises(AssertionError, match="download"):
        real_base.build(copy)
    assert copy.is_dir()
