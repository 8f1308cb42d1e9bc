"""The table of things that are not a model folder, each with its message; paths, shards, bare trunks, start-up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from goodheart.errors import ModelError
from goodheart.models.load import (
    load_causal,
    load_reward,
    load_trunk,
    new_model,
    resolve,
    reward_from_causal,
    save_causal,
    save_reward,
)
from goodheart.models.transformer import Transformer
from goodheart.models.weights import tensor_files
from tests.models.families import saved, some_ids


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    saved("llama2", folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "m")
    return tmp_path / "m"


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def only_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def lose_a_shard(folder: Path) -> None:
    save_causal(load_causal(folder), folder, shard_bytes=20_000)
    next(iter(sorted(folder.glob("model-*.safetensors")))).unlink()


def unfinished(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "lineage.json").write_text("{}")
    (folder / "checkpoints").mkdir()


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", shutil.rmtree, "no such folder"),
    ("empty", empty, "not a model folder, it has no config.json .it holds: nothing"),
    ("no config", lambda f: (f / "config.json").unlink(), "no config.json .it holds: .*model.safetensors"),
    (
        "damaged config",
        lambda f: (f / "config.json").write_text('{"model_type"'),
        "config.json: cannot be read as JSON",
    ),
    ("config is a list", lambda f: (f / "config.json").write_text("[1]"), "holds a list, not a JSON object"),
    ("no weights", lambda f: (f / "model.safetensors").unlink(), "has a config.json but no weights"),
    ("pickle only", only_pickle, "only pickled weights .pytorch_model.bin.*convert them"),
    ("cut short", cut, "model.safetensors: cannot be read as safetensors .*cut short or damaged .* bytes"),
    ("empty weights", lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be read as safetensors"),
    ("wrong width", lambda f: edit_config(f, hidden_size=40, head_dim=8), "has shape .* but config.json asks for"),
    ("wrong depth", lambda f: edit_config(f, num_hidden_layers=4), "the weights lack model.layers.3.*config.json and"),
    ("more layers", lambda f: edit_config(f, num_hidden_layers=2), "the weights hold model.layers.2.*has no place"),
    ("missing tensor", lambda f: edit_weights(f, lambda t: t.pop("model.norm.weight")), "lack model.norm.weight;"),
    (
        "no output layer",
        lambda f: edit_weights(f, lambda t: t.pop("lm_head.weight")),
        "the weights lack lm_head.weight",
    ),
    ("lost shard", lose_a_shard, "index.json: names model-00001-of-.*not complete"),
    ("unfinished run", unfinished, "an unfinished run, it has no model/ yet; finish it"),
    (
        "remote code",
        lambda f: edit_config(
            f, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.M"}
        ),
        "code from a model folder is never run",
    ),
    ("unknown architecture", lambda f: edit_config(f, model_type="never-heard-of"), "transformers cannot load this"),
    (
        "quantized",
        lambda f: edit_config(f, quantization_config={"quant_method": "x"}),
        "quantized weights cannot be trained",
    ),
]


@pytest.mark.parametrize(("name", "damage", "message"), BROKEN, ids=[b[0] for b in BROKEN])
def test_broken_folders_say_what_is_wrong(
    name: str, damage: Callable[[Path], object], message: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=f"(?s)^{folder}.*{message}"):
        load_causal(folder)


def test_a_file_is_not_a_folder(folder: Path) -> None:
    with pytest.raises(ModelError, match="a file, not a model folder; give the folder"):
        load_causal(folder / "model.safetensors")


def test_language_model_is_not_a_reward_model(folder: Path) -> None:
    with pytest.raises(
        ModelError, match="holds a LlamaForCausalLM, not a reward model; train one with `goodheart reward`"
    ):
        load_reward(folder)


def test_reward_model_is_not_a_language_model(tmp_path: Path) -> None:
    sizes = {"family": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = new_model({**sizes, "tie_word_embeddings": True}, vocab_size=16, seed=0)  # whose weights would do for both
    save_reward(reward_from_causal(model, 1, seed=0), tmp_path)
    with pytest.raises(
        ModelError, match="holds a LlamaForSequenceClassification, which scores answers and writes none"
    ):
        load_causal(tmp_path)
    weights = load_trunk(tmp_path).state_dict()  # but it may be put under another head
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())


def test_run_folder_means_its_model(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "lineage.json").write_text("{}")
    folder.rename(run / "model")
    assert resolve(run) == run / "model"
    assert resolve(str(run / "model")) == run / "model"
    assert load_causal(run).source == str(run / "model")  # an adapter made on it names this for peft


def test_hub_id_offline_says_both_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"no-such-org/no-such-model: no such folder here, and as a Hub id it cannot"):
        load_causal("no-such-org/no-such-model")


def test_hub_id_is_taken_from_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def snapshot_download(name: str, **options: object) -> str:
        asked.update(name=name, **options)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model = load_causal("org/name@v1")
    assert asked["name"] == "org/name"
    assert asked["revision"] == "v1"
    assert not any(str(p).endswith((".bin", ".pt", ".py")) for p in asked["allow_patterns"])  # type: ignore[union-attr]
    assert model.source == "org/name@v1"


@pytest.mark.parametrize("path", ["./nowhere/at/all", "a/b/c", "/nowhere", "~/nowhere-at-all"])
def test_paths_are_no_hub_ids(path: str) -> None:
    for nothing in ("", "  "):
        with pytest.raises(ModelError, match="named by nothing"):
            resolve(nothing)
    with pytest.raises(ModelError, match=r"no such folder$"):
        resolve(path)


def test_shards_are_written_and_read(folder: Path, tmp_path: Path) -> None:
    model = load_causal(folder)
    expected = model(some_ids())
    save_causal(model, tmp_path / "s", shard_bytes=30_000)
    files = tensor_files(tmp_path / "s")
    assert len(files) > 2
    assert all(f.stat().st_size < 40_000 for f in files)
    assert torch.equal(load_causal(tmp_path / "s")(some_ids()), expected)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "s")
    torch.testing.assert_close(theirs.model(some_ids()).last_hidden_state, expected, rtol=1e-4, atol=1e-4)
    save_causal(model, tmp_path / "s")  # over the shards: none may be left
    assert [f.name for f in sorted((tmp_path / "s").glob("model*"))] == ["model.safetensors"]
    theirs.save_pretrained(folder, max_shard_size="30KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(tensor_files(folder)) > 2
    torch.testing.assert_close(load_causal(folder)(some_ids()), expected)


def test_bare_trunk_with_tied_output(tmp_path: Path) -> None:
    theirs = saved("llama3", tmp_path / "a")
    theirs.model.save_pretrained(tmp_path / "b")  # a LlamaModel: names without "model."
    torch.testing.assert_close(load_causal(tmp_path / "b")(some_ids()), load_causal(tmp_path / "a")(some_ids()))


def test_leftovers_of_other_uses_are_no_obstacle(folder: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["score.weight"] = torch.ones(1, 32)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    edit_weights(folder, add)
    assert isinstance(load_causal(folder), Transformer)


def test_nothing_half_written_under_the_real_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("goodheart.models.weights.save_file", full_disk)
    with pytest.raises(ModelError, match=r"model.safetensors: cannot be written .*No space left.*free some space"):
        save_causal(load_causal(folder), tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []


def test_loading_a_native_model_imports_neither_transformers_nor_peft(folder: Path) -> None:
    code = f"""
import sys
from goodheart.models.load import load_causal, save_causal
save_causal(load_causal({str(folder)!r}), {str(folder / "again")!r})
print([m for m in ("transformers", "peft", "torch._dynamo", "huggingface_hub") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
