"""From a config.json to a Model: which reader belongs to which `model_type`, and reading files."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from costmodel.architecture import Model
from costmodel.huggingface import classic, decoders
from costmodel.huggingface.fields import ConfigError, Fields, short

FAMILIES: dict[str, Callable[[Fields], Model]] = {
    "llama": decoders.llama,
    "internlm": decoders.llama,
    "mistral": decoders.mistral,
    "mixtral": decoders.mixtral,
    "qwen2": decoders.qwen2,
    "qwen2_moe": decoders.qwen2_moe,
    "qwen3": decoders.qwen3,
    "qwen3_moe": decoders.qwen3_moe,
    "gpt_oss": decoders.gpt_oss,
    "gemma": decoders.gemma,
    "gemma2": decoders.gemma2,
    "gemma3_text": decoders.gemma3,
    "deepseek_v2": decoders.deepseek,
    "deepseek_v3": decoders.deepseek,
    "kimi_k2": decoders.deepseek,
    "glm4_moe": decoders.glm4_moe,
    "minimax_m2": decoders.minimax_m2,
    "llama4_text": decoders.llama4,
    "gpt2": classic.gpt2,
    "gpt_neo": classic.gpt_neo,
    "gpt_neox": classic.gpt_neox,
    "gptj": classic.gptj,
    "opt": classic.opt,
    "bloom": classic.bloom,
    "falcon": classic.falcon,
    "RefinedWeb": classic.falcon,
    "RefinedWebModel": classic.falcon,
    "mpt": classic.mpt,
}
MOST_BYTES = 10_000_000


def from_config(config: Mapping[str, Any], name: str = "", source: str = "") -> Model:
    """The Model of a Hugging Face config.json given as a mapping.

    A multi-modal config is read by its nested `text_config`. `name` defaults to the model type; `source` is
    carried into Model.source and into errors. Whatever was not stated is listed in Model.assumed.
    Raises ConfigError for an unknown architecture, a missing size, or a value of a wrong type or range.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(_at(source, f"a model config must be a JSON object, not {type(config).__name__}"))
    text, notes = _language_model(config)
    family = text.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ConfigError(_at(source, _unknown(family)))
    fields = Fields(text, family, source)
    model = FAMILIES[family](fields)
    return replace(model, name=name or family, source=source, assumed=(*notes, *model.assumed))


def _language_model(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The part of a config that describes the language model, and a note where it is a nested part."""
    nested = config.get("text_config")
    outer = config.get("model_type")
    if (isinstance(outer, str) and outer in FAMILIES) or not isinstance(nested, Mapping):
        return config, ()
    tie = config.get("tie_word_embeddings")
    note = f"only the language model (text_config) of the {short(outer)} config is read"
    return ({} if tie is None else {"tie_word_embeddings": tie}) | dict(nested), (note,)


def _unknown(family: object) -> str:
    if family is None:
        return f"missing model_type; supported: {', '.join(FAMILIES)}"
    near = difflib.get_close_matches(short(family).strip("'"), FAMILIES, n=1, cutoff=0.0)
    return (f"architecture {short(family)} (model_type) is not supported; nearest: {near[0]}; "
            f"supported: {', '.join(FAMILIES)}")


def from_file(path: str | Path, name: str = "") -> Model:
    """The Model of a config.json, or of the folder that holds one; `name` defaults to the folder's name.

    Raises ConfigError, with the path, when it cannot be read: absent, over 10 MB, no JSON, no object.
    """
    file = Path(path)
    try:
        file = file / "config.json" if file.is_dir() else file
        config = _load(file)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConfigError(_at(str(file), reason)) from error
    return from_config(config, name or file.resolve().parent.name, str(file))


def _load(file: Path) -> Any:
    if not file.is_file():
        raise ValueError("no such file; expected a config.json or a folder that holds one")
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{size:,} bytes is too large for a config.json (at most {MOST_BYTES:,})")
    return json.loads(file.read_text(encoding="utf-8-sig"))


def _at(source: str, message: str) -> str:
    return f"{source}: {message}" if source else message
