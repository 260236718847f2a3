"""export as a whole: the artefact, and the proof that it is one."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_builders import a_run, questions, tiny_model, trained, write_jsonl

from finetune_api.artefact import TrainingState, Verification
from finetune_api.outcome import ExportFacts, Outcome
from finetune_api.run_config import RunConfig, SourceConfig
from finetune_trainer import manifest
from finetune_trainer.card import usage
from finetune_trainer.errors import ConfigurationError, InternalError, ModelError, TrainerError
from finetune_trainer.export import export, main
from finetune_trainer.manifest import check_manifest
from finetune_trainer.prepare import prepare

FULL: dict[str, Any] = {"tuning": "Full", "lora": None}
MERGED: dict[str, Any] = {"merge": True}
ADAPTER: dict[str, Any] = {}
COMMON = {
    "README.md",
    "chat_template.jinja",
    "loss_curve.png",
    "manifest.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_state.json",
}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("export") / "tiny")


@pytest.fixture
def finished(tmp_path: Path, model: Path) -> Callable[..., RunConfig]:
    """Prepares and 'trains' a run; export comes next."""

    def make(**changes: Any) -> RunConfig:
        data = write_jsonl(tmp_path / "docs.jsonl", *questions(20))
        run = a_run(tmp_path / "work", model, data, **changes)
        prepare(run)
        trained(run)
        return run

    return make


def told(run: RunConfig) -> Verification:
    return Verification.model_validate_json((Path(run.work_dir) / "verify.json").read_bytes())


def change_tensors(file: Path, change: Callable[[str, Any], Any]) -> None:
    from safetensors.torch import load_file, save_file

    save_file({k: change(k, v) for k, v in load_file(file).items()}, file)


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor([[1, 5, 9, 2]])).logits


@pytest.mark.parametrize(
    ("changes", "files", "tensors"),
    [
        pytest.param(
            ADAPTER, {"adapter_config.json", "adapter_model.safetensors"}, 28, id="adapter"
        ),
        pytest.param(
            MERGED, {"config.json", "generation_config.json", "model.safetensors"}, 21, id="merged"
        ),
        pytest.param(
            FULL, {"config.json", "generation_config.json", "model.safetensors"}, 21, id="full"
        ),
    ],
)
def test_the_artefact_is_complete_and_listed(
    finished: Callable[..., RunConfig], changes: dict[str, Any], files: set[str], tensors: int
) -> None:
    run = finished(**changes)
    facts = export(run)
    output = Path(run.output_dir)
    found = {path.name: path for path in output.iterdir()}
    listed = json.loads(found["manifest.json"].read_text())
    assert set(found) == COMMON | files
    assert {entry["path"] for entry in listed["files"]} == set(found) - {"manifest.json"}
    assert facts == ExportFacts(
        digest=facts.digest,
        bytes=sum(path.stat().st_size for path in found.values()),
        files=len(found),
        tensors=tensors,
        reproduced_loss=facts.reproduced_loss,
        eval_loss_before=3.0,
        eval_loss_after=2.0,
    )
    assert facts.reproduced_loss == pytest.approx(told(run).loss, abs=1e-4)
    check_manifest(output)
    assert {oct(path.stat().st_mode & 0o777) for path in found.values()} == {"0o644"}
    assert sorted(path.name for path in output.parent.iterdir() if "partial" in path.name) == []


@pytest.mark.parametrize("changes", [ADAPTER, MERGED, FULL], ids=["adapter", "merged", "full"])
def test_the_artefact_loads_as_its_card_says(
    finished: Callable[..., RunConfig], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    run = finished(**changes)
    export(run)
    code = usage(run)
    assert code in (Path(run.output_dir) / "README.md").read_text()
    monkeypatch.chdir(run.output_dir)
    (Path(run.output_dir) / "tiny").symlink_to(Path(run.work_dir) / "model")
    names: dict[str, Any] = {}
    exec(code, names)
    assert torch.isfinite(logits(names["model"])).all()
    assert names["tokenizer"].chat_template is not None


def test_the_merged_model_computes_what_base_and_adapter_compute(
    finished: Callable[..., RunConfig],
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = finished(merge=True)
    work = Path(run.work_dir)
    export(run)
    base = AutoModelForCausalLM.from_pretrained(work / "model")
    merged = AutoModelForCausalLM.from_pretrained(run.output_dir)
    expected = logits(PeftModel.from_pretrained(base, work / "result").eval())
    torch.testing.assert_close(logits(merged.eval()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("uri", "name"),
    [("hf://team/tiny", "team/tiny"), ("pvc://models/all/tiny", "tiny"), ("pvc://tiny", "tiny")],
)
def test_the_adapter_names_its_base_as_the_world_knows_it(
    finished: Callable[..., RunConfig], model: Path, uri: str, name: str
) -> None:
    run = finished(model=SourceConfig(uri=uri, path=str(model)))
    export(run)
    config = json.loads((Path(run.output_dir) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == name


def test_no_path_of_a_pod_gets_into_the_artefact(finished: Callable[..., RunConfig]) -> None:
    run = finished()
    export(run)
    for path in Path(run.output_dir).iterdir():
        assert run.work_dir.encode() not in path.read_bytes(), path.name


def broken_adapter(change: Callable[[str, Any], Any]) -> Callable[[RunConfig], None]:
    return lambda run: change_tensors(
        Path(run.work_dir) / "result/adapter_model.safetensors", change
    )


def zero_b(name: str, tensor: Any) -> Any:
    return tensor * 0 if "lora_B" in name else tensor


def not_a_number(name: str, tensor: Any) -> Any:
    return tensor * float("nan") if "layers.1.mlp.up_proj.lora_B" in name else tensor


def empty(name: str, tensor: Any) -> Any:
    return tensor[:0].clone() if "layers.0.mlp.up_proj.lora_A" in name else tensor


def narrow(name: str, tensor: Any) -> Any:
    return tensor[:2].clone() if "layers.0.mlp.up_proj.lora_A" in name else tensor


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        pytest.param(
            broken_adapter(zero_b),
            ModelError,
            "the training changed nothing: every lora_B of the adapter is zero; raise "
            "spec.training.learningRate or the number of steps (spec.training.maxSteps or epochs)",
            id="learned nothing",
        ),
        pytest.param(
            broken_adapter(not_a_number),
            InternalError,
            "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight of the result has values "
            "that are not finite",
            id="not a number",
        ),
        pytest.param(
            broken_adapter(empty),
            InternalError,
            "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight of the result is empty; "
            "it was saved from a sharded model",
            id="empty",
        ),
        pytest.param(
            broken_adapter(narrow),
            InternalError,
            "the adapter does not have rank 4 everywhere: "
            "base_model.model.model.layers.0.mlp.up_proj has {'A': 2, 'B': 4}",
            id="wrong rank",
        ),
        pytest.param(
            lambda run: shutil.rmtree(Path(run.work_dir) / "result"),
            InternalError,
            "the result has no tensors; training has not saved it",
            id="no result",
        ),
    ],
)
def test_an_adapter_that_is_none_is_refused(
    finished: Callable[..., RunConfig],
    damage: Callable[[RunConfig], None],
    error: type[TrainerError],
    message: str,
) -> None:
    run = finished()
    damage(run)
    with pytest.raises(error) as caught:
        export(run)
    assert str(caught.value) == message
    assert not Path(run.output_dir).exists()
    assert (
        sorted(path.name for path in Path(run.work_dir).iterdir() if "partial" in path.name) == []
    )


def swapped(name: str, tensor: Any) -> Any:
    return -tensor if "layers.0" in name and "lora_B" in name else tensor


def louder(name: str, tensor: Any) -> Any:
    return 4 * tensor if name == "lm_head.weight" else tensor


@pytest.mark.parametrize(
    ("changes", "file"),
    [
        pytest.param(ADAPTER, "adapter_model.safetensors", id="adapter"),
        pytest.param(FULL, "model.safetensors", id="full"),
    ],
)
def test_a_result_that_computes_something_else_than_training_did_is_refused(
    finished: Callable[..., RunConfig], changes: dict[str, Any], file: str
) -> None:
    run = finished(**changes)
    change_tensors(
        Path(run.work_dir) / "result" / file,
        lambda name, t: swapped(name, t) if changes is ADAPTER else louder(name, t),
    )
    with pytest.raises(InternalError) as caught:
        export(run)
    assert "the result was not saved as it was trained" in str(caught.value)
    assert f"training had {told(run).loss:.4f} with the same weights" in str(caught.value)
    assert not Path(run.output_dir).exists()


def test_a_merged_model_that_computes_something_else_is_refused(
    finished: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraModel

    merge = LoraModel.merge_and_unload

    def forget(self: Any, **options: Any) -> Any:
        model = merge(self, **options)
        model.lm_head.weight.data.mul_(4)
        return model

    run = finished(merge=True)
    monkeypatch.setattr(LoraModel, "merge_and_unload", forget)
    with pytest.raises(InternalError, match="the result was not saved as it was trained"):
        export(run)


def test_a_training_that_left_nothing_to_prove_the_result_by_is_refused(
    finished: Callable[..., RunConfig],
) -> None:
    run = finished()
    (Path(run.work_dir) / "verify.json").unlink()
    with pytest.raises(InternalError, match=r"^verify\.json of the training cannot be read"):
        export(run)


def test_programs_and_people_get_the_same_facts(finished: Callable[..., RunConfig]) -> None:
    run = finished()
    facts = export(run)
    output = Path(run.output_dir)
    state = TrainingState.model_validate_json((output / "training_state.json").read_bytes())
    assert state.verified.loss_reloaded == facts.reproduced_loss
    assert state.verified.tensors == facts.tensors == 28
    assert state.verified.examples == len(told(run).examples) == 4
    assert state.prepare.examples == 16
    assert state.run["training"] == run.training.to_json_dict()
    assert {"workDir", "outputDir", "uid"} & set(state.run) == set()
    assert state.run["model"] == {"uri": "pvc://models/tiny"}
    assert len(state.samples) == 3
    for sample in state.samples:
        assert sample.prompt.startswith("user\nWhat is ")
        assert " plus " in sample.expected
        assert sample.before != sample.after
    card = (output / "README.md").read_text()
    assert f"| Prepared data | {state.data_digest} |" in card
    assert state.samples[2].expected in card


def test_an_adapter_for_other_layers_than_the_base_has_is_refused(
    finished: Callable[..., RunConfig],
) -> None:
    from safetensors.torch import load_file, save_file

    run = finished()
    file = Path(run.work_dir) / "result/adapter_model.safetensors"
    found = {k.replace("layers.1.", "layers.7."): v for k, v in load_file(file).items()}
    save_file(found, file)
    with pytest.raises(InternalError, match=r"^the adapter does not belong to the base model: "):
        export(run)


def test_a_full_model_that_is_still_the_base_is_refused(
    finished: Callable[..., RunConfig],
) -> None:
    run = finished(**FULL)
    work = Path(run.work_dir)
    shutil.copyfile(work / "model/model.safetensors", work / "result/model.safetensors")
    with pytest.raises(ModelError) as caught:
        export(run)
    assert str(caught.value) == (
        "the training changed nothing: every weight is that of the base model; raise "
        "spec.training.learningRate or the number of steps (spec.training.maxSteps or epochs)"
    )


def test_a_full_model_with_a_tensor_missing_is_refused(finished: Callable[..., RunConfig]) -> None:
    from safetensors.torch import load_file, save_file

    run = finished(**FULL)
    file = Path(run.work_dir) / "result/model.safetensors"
    found = load_file(file)
    del found["model.layers.1.mlp.up_proj.weight"]
    save_file(found, file, metadata={"format": "pt"})
    with pytest.raises(InternalError) as caught:
        export(run)
    assert str(caught.value) == (
        "LlamaForCausalLM cannot be loaded: missing_keys: model.layers.1.mlp.up_proj.weight"
    )


def test_a_training_that_is_not_complete_is_refused(finished: Callable[..., RunConfig]) -> None:
    run = finished()
    path = Path(run.work_dir) / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 2}))
    with pytest.raises(InternalError) as caught:
        export(run)
    assert str(caught.value) == "training ended at step 2 of 3; it must be complete"


def test_an_earlier_artefact_is_replaced(finished: Callable[..., RunConfig]) -> None:
    run = finished()
    first = export(run)
    (Path(run.output_dir) / "README.md").write_text("edited")
    second = export(run)
    assert second.digest == first.digest
    check_manifest(Path(run.output_dir))


def test_files_of_somebody_else_are_never_replaced(finished: Callable[..., RunConfig]) -> None:
    run = finished()
    output = Path(run.output_dir)
    output.mkdir()
    (output / "thesis.doc").write_text("ten years")
    with pytest.raises(ConfigurationError) as caught:
        export(run)
    assert str(caught.value) == (
        "pvc://models/docs contains files that no earlier run wrote (thesis.doc); empty it or "
        "choose another path in spec.output.uri"
    )
    assert (output / "thesis.doc").read_text() == "ten years"


def test_files_added_to_an_earlier_artefact_are_never_removed(
    finished: Callable[..., RunConfig],
) -> None:
    run = finished()
    export(run)
    (Path(run.output_dir) / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"no earlier run wrote \(notes\.txt\)"):
        export(run)
    assert (Path(run.output_dir) / "notes.txt").read_text() == "mine"


def test_the_root_of_a_volume_is_filled_without_renaming_it(
    finished: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished()
    output = Path(run.output_dir)
    (output / "lost+found").mkdir(parents=True)
    monkeypatch.setattr(manifest.os.path, "ismount", lambda path: Path(path) == output)
    monkeypatch.setattr(Path, "is_mount", lambda path: path == output)
    inode = output.stat().st_ino
    for _ in range(2):
        export(run)
        check_manifest(output)
    assert output.stat().st_ino == inode
    assert {path.name for path in output.iterdir()} == {
        *COMMON, "adapter_config.json", "adapter_model.safetensors", "lost+found",
    }  # fmt: skip


def test_a_file_that_the_volume_changed_is_noticed(finished: Callable[..., RunConfig]) -> None:
    run = finished()
    export(run)
    (Path(run.output_dir) / "README.md").write_text("x")
    with pytest.raises(InternalError, match=r"README\.md is not what manifest\.json says"):
        check_manifest(Path(run.output_dir))


def test_the_entry_point_leaves_the_facts_and_ends_with_zero(
    finished: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "log"))
    run = finished()
    (tmp_path / "run.json").write_text(run.model_dump_json(by_alias=True))
    assert main([str(tmp_path / "run.json")]) == 0
    outcome = Outcome.from_message((tmp_path / "log").read_text())
    assert outcome is not None
    assert outcome.export is not None
    assert outcome.export.tensors == 28


def test_a_place_that_cannot_be_written_is_named(
    finished: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> str:
        raise PermissionError(13, "Permission denied", "/output/x")

    run = finished()
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)  # tests may run as root, who may everything
    with pytest.raises(ConfigurationError) as caught:
        export(run)
    assert str(caught.value) == (
        "the place of the output cannot be written (/output/x); check that the claim of "
        "spec.output.uri is writable for the profile's group (fsGroup)"
    )
