"""Trainable safety modules for vision language models of the LLaVA family."""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"
_HOMES = {
    "Eta": "eta",
    "EtaSettings": "eta",
    "JsonLines": "decision.decision_log",
    "Policy": "decision.policy",
    "SafePipeline": "pipeline",
    "SafeResult": "pipeline",
    "SafeVLM": "model.safe_vlm",
    "SafetyConfig": "config",
    "Taxonomy": "taxonomy",
    "ask": "prompt.messages",
    "export": "checkpoints.export",
    "load": "checkpoints.load",
    "load_eta": "eta.config_file",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that the taxonomy alone does not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'safety_modules' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"safety_modules.{_HOMES[name]}"), name)
