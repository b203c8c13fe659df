"""Gradient checkpointing, on and off again without a trace. Runs on the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def use_checkpointing(model: PreTrainedModel) -> None:
    """Compute blocks again in the backward pass."""
    enable = getattr(model, "activation_checkpointing_enable", None)  # its name in transformers from 5.20 or so
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def stop_checkpointing(model: PreTrainedModel) -> None:
    """Off again, with the hooks that PEFT and transformers put on the embeddings for it (transformers 5.23)."""
    if not model.is_gradient_checkpointing:
        return
    disable: Any = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    disable()
    hooks = model.get_input_embeddings()._forward_hooks  # noqa: SLF001 -- torch has no public way to find them
    for key in [key for key, hook in hooks.items() if "make_inputs_require_grads" in getattr(hook, "__name__", "")]:
        del hooks[key]
