"""Parameter counts against published totals and literal tensor lists; reading configs; errors under fuzzing.

`tests/golden/parameter_counts.csv`: published totals, and totals of models that Hugging Face transformers
built on its meta device (an implementation independent of ours), also of small odd variants of each family.
"""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from costmodel import parameters
from costmodel.architecture import Model
from costmodel.huggingface import (
    FAMILIES,
    ConfigError,
    catalog_config,
    catalog_model,
    catalog_names,
    from_config,
    from_file,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "parameter_counts.csv"
ROWS = list(csv.DictReader(GOLDEN.read_text(encoding="utf-8").splitlines()))


def _config(name: str, **changes: Any) -> dict[str, Any]:
    """A catalogue config without its notes, changed; a change to ... removes the field."""
    config = {key: value for key, value in catalog_config(name).items() if not key.startswith("_")} | changes
    return {key: value for key, value in config.items() if value is not ...}


# --- exact counts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=[f"{row['model']}-{row['counts']}" for row in ROWS])
def test_count_equals_the_published_total(row: dict[str, str]) -> None:
    model = from_config(json.loads(row["config"])) if row["config"] else catalog_model(row["model"])
    table = model.vocabulary * model.hidden
    ours = {
        "main": parameters.count(model),
        "main+mtp": parameters.count(model, mtp=True),
        "main+mtp+copies": parameters.count(model, mtp=True) + 2 * table * len(model.mtp_layers),
        "main+head": parameters.count(model) + table,
    }
    assert ours[row["counts"]] == int(row["parameters"]), row["source"]


def test_golden_file_covers_every_family_and_every_published_total() -> None:
    main = {row["model"]: int(row["parameters"]) for row in ROWS if row["counts"] == "main"}
    for name in catalog_names():
        published = catalog_config(name)["_published_parameters"]
        assert published is None or main[name] == published
    tested = {json.loads(row["config"])["model_type"] for row in ROWS if row["config"]}
    same_reader = {"internlm", "kimi_k2", "RefinedWeb", "RefinedWebModel"}
    assert tested == set(FAMILIES) - same_reader


@pytest.mark.parametrize(
    ("name", "millions", "digits"),
    [("gpt3-125m", 125, 0), ("gpt3-350m", 356, 0), ("gpt3-760m", 760, 0), ("gpt3-1.3b", 1320, -1),
     ("gpt3-2.7b", 2650, -1), ("gpt3-6.7b", 6660, -1), ("gpt3-13b", 12850, -1), ("gpt3-175b", 174600, -2)],
)
def test_gpt3_sizes_equal_the_paper_after_rounding(name: str, millions: int, digits: int) -> None:
    """arXiv:2005.14165, table D.1, column params (M), shown to three or four digits."""
    assert round(parameters.count(catalog_model(name)) / 1e6, digits) == millions


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [("gpt-oss-120b", 116.83, 5.13), ("gpt-oss-20b", 20.91, 3.61)],
)
def test_gpt_oss_active_parameters_equal_the_model_card(name: str, total: float, active: float) -> None:
    """arXiv:2508.10925 table 1 counts the head as active, the embedding not; billions to two decimals."""
    model = catalog_model(name)
    assert round(parameters.count(model) / 1e9, 2) == total
    assert round((parameters.active(model) - parameters.embedding_parameters(model)) / 1e9, 2) == active
    attention = {"gpt-oss-120b": 0.96, "gpt-oss-20b": 0.64}[name]
    assert round(parameters.by_component(model)["attention"] / 1e9, 2) == attention


@pytest.mark.parametrize(
    ("name", "billions"),
    [("mixtral-8x7b", 12.9), ("mixtral-8x22b", 39), ("qwen3-30b-a3b", 3.3), ("qwen3-235b-a22b", 22),
     ("qwen2-57b-a14b", 14), ("deepseek-v2", 21), ("deepseek-v3", 37), ("kimi-k2", 32), ("glm-4.5-air", 12),
     ("glm-4.6", 32), ("minimax-m2", 10), ("llama-4-scout", 17), ("llama-4-maverick", 17)],
)
def test_active_parameters_are_those_of_the_papers(name: str, billions: float) -> None:
    """Makers round, and differ in whether the embedding and the head count; ours counts both."""
    model = catalog_model(name)
    most = parameters.active(model)
    least = most - parameters.embedding_parameters(model) - parameters.head_parameters(model)
    rounding = 0.05 if billions % 1 else 0.5
    assert least / 1e9 - rounding <= billions <= most / 1e9 + rounding


# --- a second oracle: tensor shapes written out from the published code ----------------------------

Shapes = dict[str, tuple[int, ...]]


def _llama_shapes(c: dict[str, Any]) -> Shapes:
    h, heads, kv, d, inner = 4096, 32, 8, 128, 14336
    assert (c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]) == (h, heads, kv)
    layer = {"q": (heads * d, h), "k": (kv * d, h), "v": (kv * d, h), "o": (h, heads * d),
             "gate": (inner, h), "up": (inner, h), "down": (h, inner), "norm1": (h,), "norm2": (h,)}
    shapes: Shapes = {"embed": (128256, h), "norm": (h,), "head": (128256, h)}
    return shapes | {f"{i}.{name}": shape for i in range(32) for name, shape in layer.items()}


def _gpt2_shapes(c: dict[str, Any]) -> Shapes:
    h = c["n_embd"]
    layer = {"ln1.w": (h,), "ln1.b": (h,), "attn.w": (h, 3 * h), "attn.b": (3 * h,), "proj.w": (h, h),
             "proj.b": (h,), "ln2.w": (h,), "ln2.b": (h,), "fc.w": (h, 4 * h), "fc.b": (4 * h,),
             "out.w": (4 * h, h), "out.b": (h,)}
    shapes: Shapes = {"wte": (50257, h), "wpe": (1024, h), "lnf.w": (h,), "lnf.b": (h,)}
    return shapes | {f"{i}.{name}": shape for i in range(c["n_layer"]) for name, shape in layer.items()}


def _deepseek_shapes() -> Shapes:
    """DeepSeek-V3's stored tensors, main model (its modeling_deepseek.py and weight index)."""
    h = 7168
    attention = {"q_a": (1536, h), "q_a_norm": (1536,), "q_b": (128 * 192, 1536), "kv_a": (512 + 64, h),
                 "kv_a_norm": (512,), "kv_b": (128 * (128 + 128), 512), "o": (h, 128 * 128),
                 "norm1": (h,), "norm2": (h,)}
    dense = {"gate": (18432, h), "up": (18432, h), "down": (h, 18432)}
    expert = {"gate": (2048, h), "up": (2048, h), "down": (h, 2048)}
    moe = {f"e{e}.{name}": shape for e in range(257) for name, shape in expert.items()}
    moe |= {"router": (256, h), "balance": (256,)}
    shapes: Shapes = {"embed": (129280, h), "norm": (h,), "head": (129280, h)}
    for i in range(61):
        shapes |= {f"{i}.{name}": shape for name, shape in (attention | (dense if i < 3 else moe)).items()}
    return shapes


@pytest.mark.parametrize(
    ("name", "shapes"),
    [("llama-3.1-8b", _llama_shapes(catalog_config("llama-3.1-8b"))),
     ("gpt2", _gpt2_shapes(catalog_config("gpt2"))), ("gpt2-xl", _gpt2_shapes(catalog_config("gpt2-xl"))),
     ("deepseek-v3", _deepseek_shapes())],
)
def test_counts_equal_a_literal_list_of_tensors(name: str, shapes: Shapes) -> None:
    model = catalog_model(name)
    assert parameters.count(model) == sum(map(prod, shapes.values()))
    routed = sum(prod(shape) for key, shape in shapes.items() if ".e" in key)
    visited = {key: prod(shape) for key, shape in shapes.items() if key.split(".")[1:2] in (
        [[f"e{i}"] for i in range(9)])}  # 8 routed experts and the shared one, whichever they are
    assert parameters.active(model) == parameters.count(model) - routed + sum(visited.values())
    lookup = ("wpe",) if "wte" in shapes else ("embed",)  # tied: the embedding is the head's matrix
    passed = [prod(shape) for key, shape in shapes.items()
              if len(shape) == 2 and key not in lookup and (".e" not in key or key in visited)]
    assert parameters.matmul_parameters_per_token(model) == sum(passed)


def test_matmul_parameters_of_a_gpt_are_12_h_squared_a_layer_and_the_head() -> None:
    model = catalog_model("gpt3-175b")
    assert parameters.matmul_parameters_per_token(model) == 12 * 96 * 12288**2 + 50257 * 12288


def test_opt_350m_passes_both_embedding_projections() -> None:
    model = catalog_model("opt-350m")
    layers = 24 * 12 * 1024**2
    assert parameters.matmul_parameters_per_token(model) == layers + 2 * 512 * 1024 + 50272 * 512


def test_mtp_module_adds_a_layer_a_projection_and_a_pass_of_the_head() -> None:
    model = catalog_model("deepseek-v3")
    h, layer = 7168, parameters.layer_parameters(model.layers[-1], 7168)
    assert parameters.mtp_parameters(model) == layer + 2 * h * h + 3 * h
    plain = parameters.matmul_parameters_per_token(model)
    with_mtp = parameters.matmul_parameters_per_token(model, mtp=True)
    one_layer = parameters.layer_matmul_parameters_per_token(model.layers[-1], h)
    assert with_mtp - plain == one_layer + 2 * h * h + 129280 * h
    without = replace(model, mtp_layers=())
    assert parameters.count(model) == parameters.count(without) == parameters.count(without, mtp=True)


@pytest.mark.parametrize("name", catalog_names())
def test_parts_add_up_and_order_holds(name: str) -> None:
    model = catalog_model(name)
    parts = parameters.by_component(model)
    assert all(value >= 0 for value in parts.values())
    assert sum(parts.values()) == parameters.count(model, mtp=True)
    layers = sum(parameters.layer_parameters(layer, model.hidden, model.norm) for layer in model.layers)
    outside = parts["embedding"] + parts["positions"] + parts["head"] + (
        (model.final_norm + model.embedding_norm) * parameters.norm_parameters(model.norm, model.hidden))
    assert layers + outside == parameters.count(model)
    assert parameters.active(model) <= parameters.count(model)
    has_experts = any(layer.feed_forward.experts for layer in model.layers)
    assert has_experts == (parameters.active(model) < parameters.count(model))
    assert parameters.matmul_parameters_per_token(model) <= parameters.active(model) + parts["embedding"]
    if "llama-4" not in name:
        assert model.assumed == (), "the catalogue states everything"


# --- what is read ----------------------------------------------------------------------------------


def _windows(model: Model) -> list[int | None]:
    return [layer.attention.window for layer in model.layers]


def test_sliding_windows_of_the_families() -> None:
    assert _windows(catalog_model("gpt-oss-20b")) == [128, None] * 12
    assert _windows(catalog_model("gemma-2-9b")) == [4096, None] * 21
    assert _windows(catalog_model("gemma-3-27b")) == ([1024] * 5 + [None]) * 10 + [1024] * 2
    assert _windows(catalog_model("mistral-7b")) == [4096] * 32
    assert _windows(catalog_model("mistral-7b-v0.3")) == [None] * 32
    assert _windows(catalog_model("gpt-neo-2.7b")) == [None, 256] * 16
    assert _windows(catalog_model("llama-4-scout")) == ([8192] * 3 + [None]) * 12


def test_windows_without_layer_types_follow_the_family_and_are_noted() -> None:
    for name in ("gpt-oss-20b", "gemma-2-9b", "gemma-3-27b"):
        model = from_config(_config(name, layer_types=...))
        assert _windows(model) == _windows(catalog_model(name))
        assert any(note.startswith("layer_types") for note in model.assumed)


def test_qwen_windows_count_only_when_used() -> None:
    off = from_config(_config("qwen2.5-7b", sliding_window=131072, max_window_layers=20))
    assert _windows(off) == [None] * 28
    used = {"use_sliding_window": True, "sliding_window": 131072, "max_window_layers": 20}
    assert _windows(from_config(_config("qwen2.5-7b", **used))) == [None] * 20 + [131072] * 8


def test_dense_layers_among_experts() -> None:
    dense = [layer.feed_forward.experts == 0 for layer in catalog_model("deepseek-v3").layers]
    assert dense == [True] * 3 + [False] * 58
    mixed = from_config(_config("qwen3-30b-a3b", mlp_only_layers=[1], decoder_sparse_step=2))
    assert [layer.feed_forward.experts for layer in mixed.layers][:5] == [0, 0, 0, 128, 0]
    assert mixed.layers[0].feed_forward.width == 6144
    assert catalog_model("llama-4-maverick").layers[0].feed_forward.width == 16384


def test_equal_layers_are_one_object() -> None:
    for name, distinct in (("llama-3.1-405b", 1), ("deepseek-v3", 2), ("gemma-2-27b", 2), ("opt-175b", 1)):
        assert len({id(layer) for layer in catalog_model(name).layers}) == distinct


def test_what_is_not_stated_is_listed() -> None:
    bare = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 100}
    model = from_config(bare)
    assert {note.split(" = ")[0] for note in model.assumed} == {
        "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias", "tie_word_embeddings", "dropout"}
    assert "head_dim = 16 (hidden_size / num_attention_heads)" in model.assumed
    assert not model.tied_embeddings
    assert from_config(_config("gpt2", tie_word_embeddings=...)).tied_embeddings
    inner = from_config(_config("gpt2", n_inner=None))
    assert parameters.count(inner) == 124_439_808
    assert any(note.startswith("intermediate_size = 3072") for note in inner.assumed)


def test_aliases_give_the_same_model() -> None:
    spelled = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
               "n_positions": "max_position_embeddings", "n_inner": "intermediate_size"}
    other = {spelled.get(key, key): value for key, value in _config("gpt2").items()}
    assert from_config(other) == from_config(_config("gpt2"))
    config = _config("llama-3.1-8b", num_kv_heads=4)
    with pytest.raises(ConfigError, match="num_key_value_heads = 8, num_kv_heads = 4"):
        from_config(config)


def test_nested_text_config_is_read() -> None:
    text = _config("gemma-3-27b", tie_word_embeddings=...)
    outer = {"model_type": "gemma3", "tie_word_embeddings": True, "vision_config": {"hidden_size": 1152},
             "text_config": text}
    model = from_config(outer, name="gemma-3-27b")
    assert model.layers == catalog_model("gemma-3-27b").layers
    assert parameters.count(model) == parameters.count(catalog_model("gemma-3-27b"))
    assert "gemma3" in model.assumed[0]


def test_internlm_bias_is_llamas_attention_bias() -> None:
    config = _config("internlm-7b", model_type="internlm", attention_bias=..., bias=True)
    assert parameters.count(from_config(config)) == parameters.count(catalog_model("internlm-7b"))


def test_falcon_generations() -> None:
    norms = [catalog_model(f"falcon-{size}").layers[0].norms for size in ("7b", "11b", "40b", "180b")]
    assert norms == [1, 1, 2, 2]
    assert catalog_model("falcon-7b").layers[0].attention.kv_heads == 1
    old = from_config(_config("falcon-7b", multi_query=False, parallel_attn=False, num_kv_heads=71))
    assert old.layers[0].attention.kv_heads == 71
    assert old.layers[0].norms == 2


# --- the catalogue ---------------------------------------------------------------------------------


def test_catalogue_entries_are_complete_and_their_names_unique() -> None:
    taken: dict[str, str] = {}
    for name in catalog_names():
        entry = catalog_config(name)
        assert entry["_source"]
        assert entry["_title"]
        assert catalog_model(name).name == name
        for known in (name, *(alias.lower() for alias in entry["_aliases"])):
            assert taken.setdefault(known, name) == name, known


def test_catalogue_is_found_by_alias_in_any_case() -> None:
    assert catalog_model("meta-llama/LLAMA-3.1-8B") == catalog_model("llama-3-8b")
    assert catalog_model("llama-3-8b") == catalog_model("llama-3.1-8b")
    assert catalog_model(" DeepSeek-R1 ").name == "deepseek-v3"


@pytest.mark.parametrize("name", ["llama-3.1-8", "", "x" * 10_000, "../units", "nothing like it", None, 3])
def test_unknown_model_names_what_is_near(name: Any) -> None:
    near = r"catalogue; nearest: .*llama-3\.1-8b" if name == "llama-3.1-8" else "in the catalogue"
    with pytest.raises(ConfigError, match=near) as caught:
        catalog_model(name)
    assert len(str(caught.value)) < 3000


# --- errors ----------------------------------------------------------------------------------------


def test_unknown_architecture_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'lama'.*nearest: llama;.*supported:.*deepseek_v3"):
        from_config({"model_type": "lama"})


def test_all_missing_sizes_are_named_at_once() -> None:
    config = _config("qwen3-30b-a3b", head_dim=..., num_experts=None, vocab_size=...)
    message = r"here\.json: qwen3_moe: missing vocab_size, head_dim, num_experts or"
    with pytest.raises(ConfigError, match=message):
        from_config(config, source="here.json")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_no_family_accepts_an_empty_config(family: str) -> None:
    with pytest.raises(ConfigError, match=f"{family}: missing hidden_size"):
        from_config({"model_type": family})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama-3.1-8b", {"hidden_size": "4096"}, "hidden_size must be a whole number, not '4096'"),
        ("llama-3.1-8b", {"hidden_size": 4096.0}, "hidden_size must be a whole number"),
        ("llama-3.1-8b", {"hidden_size": True}, "hidden_size must be a whole number"),
        ("llama-3.1-8b", {"num_hidden_layers": 10**12}, "num_hidden_layers must be between 1 and 10000"),
        ("llama-3.1-8b", {"vocab_size": -1}, "vocab_size must be between 1"),
        ("llama-3.1-8b", {"num_key_value_heads": 5}, "32 is not divisible by num_key_value_heads 5"),
        ("llama-3.1-8b", {"num_attention_heads": 24, "head_dim": None}, "4096 is not divisible by"),
        ("llama-3.1-8b", {"attention_bias": "yes"}, "attention_bias must be true or false"),
        ("mistral-7b", {"sliding_window": ...}, "missing sliding_window"),
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, "9 is more than the 8 experts"),
        ("qwen3-30b-a3b", {"mlp_only_layers": ["a"]}, "mlp_only_layers must hold layer numbers, not 'a'"),
        ("gpt-oss-20b", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 24 layers"),
        ("gpt-oss-20b", {"layer_types": ["linear_attention"] * 24}, "not 'linear_attention'"),
        ("deepseek-v2-lite", {"q_lora_rank": ...}, "missing q_lora_rank; write null"),
        ("deepseek-v3", {"topk_method": "best"}, "topk_method must be one of"),
        ("deepseek-v3", {"num_nextn_predict_layers": 10**9}, "more than the 61 layers"),
        ("gpt2", {"n_head": 13}, "768 is not divisible by num_attention_heads 13"),
        ("gpt2", {"resid_pdrop": 2}, "resid_pdrop must be a number between 0 and 1"),
        ("gpt-neo-2.7b", {"attention_types": [[["global"], 10**12]]}, "attention_types must hold"),
        ("gpt-neo-2.7b", {"attention_types": [[["global"], 3]]}, "describe 3 layers of 32"),
        ("opt-125m", {"layer_norm_elementwise_affine": False}, "not supported"),
        ("falcon-40b", {"num_kv_heads": ...}, "missing num_key_value_heads or num_kv_heads"),
        ("mpt-7b", {"attn_config": {"attn_type": "none"}}, "attn_type must be one of"),
    ],
)
def test_wrong_values_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_config(_config(name, **changes))
    assert message in str(caught.value)
    assert catalog_config(name)["model_type"] in str(caught.value)


def test_a_number_python_will_not_print_is_still_a_config_error() -> None:
    for changes in ({"hidden_size": 10**5000}, {"model_type": 10**5000}, {"attention_bias": [10**5000]}):
        with pytest.raises(ConfigError):
            from_config(_config("llama-3.1-8b") | changes)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.sampled_from([0, -1, 10**12, 2**70, 10**9])
    | st.floats(allow_nan=True, width=32) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
CONFIGS = [_config(name) for name in catalog_names()] + [json.loads(r["config"]) for r in ROWS if r["config"]]


def _accepts_or_refuses(config: Any) -> None:
    """A config either becomes a model that can be counted, or is refused with ConfigError, nothing else."""
    try:
        model = from_config(config)
    except ConfigError:
        return
    assert 0 < parameters.active(model) <= parameters.count(model)
    assert parameters.matmul_parameters_per_token(model) > 0


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_configs_are_read_or_refused(data: st.DataObject) -> None:
    config = dict(data.draw(st.sampled_from(CONFIGS)))
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(config)) if config else st.just("model_type"))
        match data.draw(st.sampled_from(["drop", "replace", "family", "nest"])):
            case "drop":
                config.pop(key, None)
            case "replace":
                config[key] = data.draw(JSON)
            case "family":
                config["model_type"] = data.draw(st.sampled_from(sorted(FAMILIES)))
            case "nest":
                config = {"model_type": "wrapped", "text_config": config}
    _accepts_or_refuses(config)


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_any_json_is_refused_not_crashed_on(value: Any) -> None:
    _accepts_or_refuses(value)


# --- files -----------------------------------------------------------------------------------------


def test_file_and_folder_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_config("llama-3.1-8b")), encoding="utf-8")
    by_folder, by_file = from_file(folder), from_file(str(folder / "config.json"))
    assert by_folder == by_file
    assert by_folder.name == "my-model"
    assert by_folder.source == str(folder / "config.json")
    assert parameters.count(by_folder) == 8_030_261_248


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "Expecting property name"),
        (b"", "Expecting value"),
        (b"[1]", "must be a JSON object, not list"),
        (b"\xff\xfe\x00", "can't decode"),
        (b"[" * 200_000, "recursion"),
        (b'{"model_type": "llama"}', "llama: missing hidden_size"),
        (b" " * 10_000_001, "too large"),
    ],
)
def test_unreadable_files_are_refused_with_their_path(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    for path in (file, tmp_path):
        with pytest.raises(ConfigError, match=message) as caught:
            from_file(path)
        assert str(file) in str(caught.value)


@pytest.mark.parametrize("path", ["absent.json", "", "nul\0byte", "x" * 5000])
def test_absent_files_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError):
        from_file(tmp_path / path if path else tmp_path)
