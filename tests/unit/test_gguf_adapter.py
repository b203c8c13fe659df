"""What is refused on the way to an adapter for llama.cpp, and that the file is whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.gguf_bases import adapt, build_base, write_gguf
from tuner.worker.gguf_adapter import write_gguf_adapter


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(build_base("llama"), tmp_path_factory.mktemp("base") / "base.gguf")


def saved(folder: Path, changes: dict[str, Any] | None = None, **lora: Any) -> Path:
    """An adapter of PEFT's of a Llama that the base's sizes, or others, make."""
    adapt(build_base("llama", **changes or {}), folder / "adapter", **lora)
    return folder / "adapter"


def refusal(adapter: Path, base: Path) -> str:
    """Why it was not written; and nothing was."""
    out = adapter.parent / "out.gguf"
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the caller looks at all that it says
        write_gguf_adapter(adapter, base, out)
    assert list(adapter.parent.glob("out.gguf*")) == []
    return str(caught.value)


def edit_config(adapter: Path, **changes: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(adapter: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


def tensors_in(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize(
    ("lora", "reason", "instead"),
    [
        ({"use_dora": True}, "use_dora=True: DoRA's magnitudes have no place", "merge the adapter"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "modules_to_save=['lm_head']", "with PEFT"),
        (
            {"trainable_token_indices": [3], "target_modules": ["q_proj"]},
            "trainable_token_indices",
            "merge the adapter",
        ),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'", "path_initial_model_for_weight_conversion"),
        ({"target_modules": ["embed_tokens"]}, "on a tied embedding llama.cpp aborts", "leave embeddings out"),
        ({"lora_alpha": 0}, "lora_alpha=0: llama.cpp takes 0 for a scale of 1", "leave the adapter away"),
    ],
)
def test_what_has_no_place_in_the_file_is_refused_with_what_to_do_instead(
    tmp_path: Path, base: Path, lora: dict[str, Any], reason: str, instead: str
) -> None:
    told = refusal(saved(tmp_path, **lora), base)

    assert reason in told
    assert instead in told


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bias": "lora_only"}, "bias='lora_only': biases have no place in the file"),
        ({"lora_bias": True}, "lora_bias=True: biases of B have no place in the file"),
    ],
)
def test_trained_biases_are_refused(tmp_path: Path, base: Path, changes: dict[str, Any], reason: str) -> None:
    adapter = saved(tmp_path)
    edit_config(adapter, **changes)

    assert reason in refusal(adapter, base)


def test_the_head_of_a_classifier_is_refused(tmp_path: Path, base: Path) -> None:
    adapter = saved(tmp_path)
    edit_config(adapter, task_type="SEQ_CLS", modules_to_save=["classifier", "score"])
    edit_tensors(adapter, lambda tensors: tensors.update({"base_model.model.score.weight": torch.ones(3, 64)}))

    told = refusal(adapter, base)

    assert "modules_to_save=['classifier', 'score']: whole modules, such as a classification head" in told
    assert "base_model.model.score.weight: no place in the file" in told


def test_another_kind_of_adapter_is_refused(tmp_path: Path, base: Path) -> None:
    adapter = saved(tmp_path)
    (adapter / "adapter_config.json").write_text('{"peft_type": "LOHA"}')

    assert "holds a LoHaConfig, llama.cpp knows LoRA alone; merge the adapter" in refusal(adapter, base)


def test_a_pair_with_one_half_is_refused(tmp_path: Path, base: Path) -> None:
    adapter, half = saved(tmp_path), "base_model.model.model.layers.1.mlp.up_proj"
    edit_tensors(adapter, lambda tensors: tensors.pop(f"{half}.lora_B.weight"))

    assert f"{half}: A and B are not of one rank, or one is missing" in refusal(adapter, base)


def test_an_adapter_of_nothing_is_refused(tmp_path: Path, base: Path) -> None:
    adapter = saved(tmp_path)
    edit_tensors(adapter, lambda tensors: tensors.clear())

    assert "it adapts no linear layer" in refusal(adapter, base)


def test_a_broken_safetensors_file_is_refused(tmp_path: Path, base: Path) -> None:
    adapter = saved(tmp_path)
    (adapter / "adapter_model.safetensors").write_bytes(b"none")

    assert "broken safetensors file" in refusal(adapter, base)


def test_an_adapted_output_is_refused_where_the_base_has_tied_it(tmp_path: Path) -> None:
    tied = write_gguf(build_base("llama", tie_word_embeddings=True), tmp_path / "tied.gguf")

    assert "lm_head: the output of tied.gguf is tied to its embedding; leave lm_head out" in refusal(
        saved(tmp_path), tied
    )


def test_layers_that_the_base_has_not_are_refused(tmp_path: Path, base: Path) -> None:
    told = refusal(saved(tmp_path, {"num_hidden_layers": 3}), base)

    assert "model.layers.2.mlp.down_proj, model.layers.2.mlp.gate_proj, model.layers.2.mlp.up_proj and 4 more" in told
    assert "llama of 2 blocks, has no such layer; name the base that the adapter was trained on" in told


def test_layers_of_another_size_are_refused(tmp_path: Path, base: Path) -> None:
    told = refusal(saved(tmp_path, {"intermediate_size": 80}, target_modules=["up_proj"]), base)

    assert "model.layers.1.mlp.up_proj: (out, in) is (80, 64), in base.gguf (96, 64)" in told


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path, base: Path) -> None:
    adapter = saved(tmp_path, use_dora=True)
    edit_config(adapter, bias="all")

    assert [line[:8] for line in refusal(adapter, base).splitlines()[1:]] == ["- use_do", "- bias='", "- base_m"]


def written(file: Path, architecture: str, **numbers: int) -> Path:
    """A GGUF file without tensors."""
    writer = gguf.GGUFWriter(file, architecture)
    for key, number in numbers.items():
        writer.add_uint32(key.replace("_", ".", 1), number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(
    ("architecture", "numbers", "message"),
    [
        ("gemma3", {}, "adapters are written for bases of llama, qwen2, qwen3, got 'gemma3'; merge the adapter"),
        ("llama", {"split_count": 2}, "is one part of several; join them"),
        ("llama", {}, "has no llama.attention.head_count: it is no model in GGUF"),
    ],
)
def test_a_base_that_cannot_be_used_is_refused(
    tmp_path: Path, architecture: str, numbers: dict[str, int], message: str
) -> None:
    assert message in refusal(saved(tmp_path), written(tmp_path / "other.gguf", architecture, **numbers))


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.gguf").write_bytes(b"none" * 10)

    assert "GGUF magic invalid" in refusal(saved(tmp_path), tmp_path / "none.gguf")


def test_missing_files_are_named(tmp_path: Path, base: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
        write_gguf_adapter(tmp_path, base, tmp_path / "out.gguf")
    with pytest.raises(FileNotFoundError, match=r"none\.gguf"):
        write_gguf_adapter(saved(tmp_path), tmp_path / "none.gguf", tmp_path / "out.gguf")


def test_weights_of_one_scale_are_written_as_they_were_trained(tmp_path: Path, base: Path) -> None:
    adapter = saved(tmp_path, target_modules=["v_proj"])
    write_gguf_adapter(adapter, base, tmp_path / "out.gguf")

    found, trained = tensors_in(tmp_path / "out.gguf"), load_file(adapter / "adapter_model.safetensors")
    for half, name in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
        expected = trained[f"base_model.model.model.layers.1.self_attn.v_proj.{name}.weight"].numpy()
        np.testing.assert_array_equal(found[f"blk.1.attn_v.weight.{half}"], expected)


def test_the_file_says_what_llama_cpp_asks_for(tmp_path: Path, base: Path) -> None:
    write_gguf_adapter(saved(tmp_path), base, tmp_path / "out.gguf")

    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    keys = ("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha")
    assert [fields[key].contents() for key in keys] == ["adapter", "llama", "lora", 16.0]


def test_a_layer_whose_alpha_is_zero_does_nothing_beside_others(tmp_path: Path, base: Path) -> None:
    adapter = saved(tmp_path, target_modules=["v_proj"], alpha_pattern={"layers.0.self_attn.v_proj": 0})
    write_gguf_adapter(adapter, base, tmp_path / "out.gguf")

    found = tensors_in(tmp_path / "out.gguf")
    assert not found["blk.0.attn_v.weight.lora_b"].any()
    assert found["blk.1.attn_v.weight.lora_b"].any()


def test_bfloat16_is_written_as_float32(tmp_path: Path, base: Path) -> None:
    adapter = saved(tmp_path, target_modules=["v_proj"])
    edit_tensors(adapter, lambda tensors: tensors.update({name: t.bfloat16() for name, t in tensors.items()}))
    write_gguf_adapter(adapter, base, tmp_path / "out.gguf")

    assert {values.dtype for values in tensors_in(tmp_path / "out.gguf").values()} == {np.dtype(np.float32)}


def test_a_full_disk_leaves_the_old_file_and_no_half_of_a_new_one(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(writer: gguf.GGUFWriter) -> None:
        message = "No space left on device"
        raise OSError(message)

    adapter, out = saved(tmp_path), tmp_path / "out.gguf"
    out.write_text("old")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", fail)

    with pytest.raises(OSError, match="No space left"):
        write_gguf_adapter(adapter, base, out)

    assert [file.read_bytes() for file in tmp_path.glob("out.gguf*")] == [b"old"]
