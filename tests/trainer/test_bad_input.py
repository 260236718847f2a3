"""Bad configurations, models and data: each ends in prepare, with the code of whose problem it is
and a message that names what to change."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from trainer_builders import a_run, questions, tiny_model, tiny_tokenizer, write_jsonl

from finetune_api.outcome import Outcome
from finetune_api.run_config import LoraConfig, SourceConfig
from finetune_trainer import logs, prepare

CONFIGURATION, DATA, MODEL = (10, "Configuration"), (11, "Data"), (12, "Model")
LORA = LoraConfig(rank=4, alpha=8, dropout=0.0, target_modules=["all-linear"])


@dataclass
class Input:
    """A sound model, sound data and a sound run, for a case to spoil."""

    root: Path
    monkeypatch: pytest.MonkeyPatch
    changes: dict[str, Any] = field(default_factory=dict)
    """Of the run."""
    by_hand: dict[str, Any] = field(default_factory=dict)
    """Of `run.json`, at the top level."""
    training_by_hand: dict[str, Any] = field(default_factory=dict)
    """Of `training` in `run.json`."""

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def work(self) -> Path:
        return self.root / "work"

    def data(self, content: str | bytes, name: str = "d.jsonl") -> None:
        """Use a file with this content."""
        path = self.root / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.changes["dataset"] = SourceConfig(uri=f"pvc://data/{name}", path=str(path))

    def records(self, *values: object) -> None:
        self.data("".join(json.dumps(value) + "\n" for value in values))

    def config(self, **changes: Any) -> None:
        """Change the model's config.json; None takes a key out."""
        path = self.model / "config.json"
        found = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))

    def weights(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change the model's tensors."""
        from safetensors.torch import load_file, save_file

        tensors = load_file(self.model / "model.safetensors")
        change(tensors)
        save_file(tensors, self.model / "model.safetensors", metadata={"format": "pt"})

    def only(self, *names: str) -> None:
        """Leave only empty files of these names in place of the weights."""
        (self.model / "model.safetensors").unlink()
        for name in names:
            (self.model / name).write_bytes(b"\x80\x04.")


Spoil = Callable[[Input], object]
ROWS: list[Any] = []


def row(name: str, code: tuple[int, str], message: str, spoil: Spoil) -> None:
    """Add a case. `message`: a regular expression for all of it, `...` for what varies."""
    pattern = "".join(".*" if part == "..." else re.escape(part) for part in split(message))
    ROWS.append(pytest.param(spoil, code, pattern, id=name))


def split(message: str) -> list[str]:
    return re.split(r"(\.\.\.)", message)


def chat(*turns: object) -> dict[str, object]:
    return {"messages": list(turns)}


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}

# Data
row(
    "no dataset",
    DATA,
    "pvc://data/x.jsonl: there is nothing at this path; check spec.dataset.uri and ...",
    lambda i: i.changes.update(dataset=SourceConfig(uri="pvc://data/x.jsonl", path="/nowhere/x")),
)
row("empty file", DATA, "d.jsonl is empty; put at least one example into it", lambda i: i.data(""))
row(
    "blank lines only",
    DATA,
    "d.jsonl contains no example; put at least one into it",
    lambda i: i.data("\n \n\n"),
)
row(
    "not JSON",
    DATA,
    "d.jsonl line 2 is not JSON (...); every line must be one JSON object",
    lambda i: i.data('{"text": "fine"}\n{"text": oops}\n'),
)
row(
    "a truncated last line",
    DATA,
    "d.jsonl line 2 is not JSON (...); every line must be one JSON object",
    lambda i: i.data('{"text": "fine"}\n{"text": "half'),
)
row(
    "not UTF-8",
    DATA,
    "d.jsonl line 2 is not UTF-8 (byte 11 of the line); save the file as UTF-8",
    lambda i: i.data('{"text": "fine"}\n{"text": "ä"}\n'.encode("latin-1")),
)
row(
    "UTF-16",
    DATA,
    "d.jsonl line 1 is not UTF-8 (byte 1 of the line); save the file as UTF-8",
    lambda i: i.data('{"text": "a"}\n'.encode("utf-16")),
)
row(
    "a character that is none",
    DATA,
    r"d.jsonl line 1: `text` holds \ud800, half of a character; save the file as UTF-8",
    lambda i: i.data('{"text": "a\\ud800"}\n'),
)
row(
    "a number too long to read",
    DATA,
    "d.jsonl line 1 is not JSON (...); every line must be one JSON object",
    lambda i: i.data('{"text": ' + "1" * 5000 + "}\n"),
)
row(
    "nested without end",
    DATA,
    "d.jsonl is not JSON (nested too deeply); the file must be one JSON list of objects",
    lambda i: i.data("[" * 200_000),
)
row(
    "a list of numbers",
    DATA,
    "d.json entry 1 is a JSON number, not an object; write an object such as ...",
    lambda i: i.data("[1, 2, 3]", "d.json"),
)
row(
    "lines of strings",
    DATA,
    "d.jsonl line 1 is a JSON string, not an object; write an object such as ...",
    lambda i: i.records("a", "b"),
)
row(
    "a key twice",
    DATA,
    "d.jsonl line 1 is not JSON (an object has the key `text` twice, remove one); every line ...",
    lambda i: i.data('{"text": "a", "text": "b"}\n'),
)
row(
    "NaN for a text",
    DATA,
    "d.jsonl line 1: `text` must be a string, found a number; ...",
    lambda i: i.data('{"text": NaN}\n'),
)
row(
    "unknown columns",
    DATA,
    "d.jsonl line 1 has the columns answer, question, which is none of the known formats. "
    "Rename the columns to those of one format (...)",
    lambda i: i.records({"question": "a", "answer": "b"}),
)
row(
    "no columns",
    DATA,
    "d.jsonl line 1 has no columns, which is none of the known formats. ...",
    lambda i: i.records({}),
)
row(
    "two formats in one file",
    DATA,
    "d.jsonl line 2 has the columns text, but format Instruction needs prompt and completion, or "
    "...; rename the columns, or set spec.dataset.format",
    lambda i: i.records(questions(1)[0], {"text": "a"}),
)
row(
    "another format than the one named",
    DATA,
    "d.jsonl line 1 has the columns text, but format Chat needs messages ...; rename ...",
    lambda i: (i.records({"text": "a"}), i.changes.update(dataset_format="Chat")),
)
row(
    "unknown role",
    DATA,
    "d.jsonl line 1: messages[0] has the unknown role 'bot'; use one of system, user, ...",
    lambda i: i.records(chat({"role": "bot", "content": "a"}, ANSWER)),
)
row(
    "null for what was said",
    DATA,
    "d.jsonl line 1: messages[1]: `content` must be a string, found nothing (null); ...",
    lambda i: i.records(chat(USER, {"role": "assistant", "content": None})),
)
row(
    "nobody answers",
    DATA,
    "d.jsonl line 1 has no assistant message, so there is nothing to learn; add one or ...",
    lambda i: i.records(chat(USER)),
)
row(
    "no messages",
    DATA,
    "d.jsonl line 1: `messages` is empty; remove the example or fill it",
    lambda i: i.records(chat()),
)
row(
    "an empty completion",
    DATA,
    "d.jsonl line 1: the completion is empty, so there is nothing to learn; ...",
    lambda i: i.records({"prompt": "a", "completion": "  "}),
)
row(
    "everything too long",
    DATA,
    "none of the 2 examples has anything to learn within 16 tokens; "
    "raise spec.training.sequenceLength or shorten the prompts",
    lambda i: (
        i.records(*[{"prompt": "word " * 99, "completion": "x"}] * 2),
        i.changes.update(sequence_length=16),
    ),
)
row(
    "all dropped by choice",
    DATA,
    "none of the 20 examples has anything to learn within 16 tokens; ...",
    lambda i: i.changes.update(sequence_length=16, long_examples="Drop"),
)
row(
    "broken Parquet",
    DATA,
    "d.parquet is not a readable Parquet file: ...; write it anew",
    lambda i: i.data(b"PAR1 nothing PAR1", "d.parquet"),
)
row(
    "Parquet with bytes for a text",
    DATA,
    "d.parquet row 1: `text` must be a string, found bytes; ...",
    lambda i: (i.data(b"", "d.parquet"), parquet(i.root / "d.parquet", [{"text": b"a"}])),
)
row(
    "unknown suffix",
    DATA,
    "d.csv has the suffix .csv, which cannot be read; use one of .jsonl, ...",
    lambda i: i.data("prompt,completion\na,b\n", "d.csv"),
)
row(
    "a directory without data",
    DATA,
    "pvc://data has no file that can be read (...), only model.safetensors; convert it to ...",
    lambda i: i.changes.update(dataset=directory(i, "model.safetensors")),
)
row(
    "a directory with several files",
    DATA,
    "pvc://data has several files and none is named train: a.jsonl, b.jsonl; name one in "
    "spec.dataset.uri",
    lambda i: i.changes.update(dataset=directory(i, "a.jsonl", "b.jsonl")),
)


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def directory(found: Input, *names: str) -> SourceConfig:
    (found.root / "data").mkdir()
    for name in names:
        (found.root / "data" / name).write_text('{"text": "a"}\n')
    return SourceConfig(uri="pvc://data", path=str(found.root / "data"))


# Models
row(
    "no model",
    MODEL,
    "pvc://models/tiny: there is nothing at this path; check spec.model.uri and ...",
    lambda i: shutil.rmtree(i.model),
)
row(
    "no config.json",
    MODEL,
    "pvc://models/tiny: there is no config.json, so this is no model in the layout of "
    "transformers; point spec.model.uri at the directory that contains it",
    lambda i: (i.model / "config.json").unlink(),
)
row(
    "config.json is not JSON",
    MODEL,
    "pvc://models/tiny: config.json cannot be used: ...; the model may be damaged or newer ...",
    lambda i: (i.model / "config.json").write_text("{"),
)
row(
    "config.json without a type",
    MODEL,
    "pvc://models/tiny: config.json cannot be used: ...; the model may be damaged or newer ...",
    lambda i: i.config(model_type=None, architectures=None),
)
row(
    "unknown architecture",
    MODEL,
    "pvc://models/tiny: config.json cannot be used: ...; the model may be damaged or newer ...",
    lambda i: i.config(model_type="from-the-future"),
)
row(
    "an encoder",
    MODEL,
    "pvc://models/tiny was saved as BertForMaskedLM, which is no causal language model; only ...",
    lambda i: i.config(model_type="bert", architectures=["BertForMaskedLM"]),
)
row(
    "an encoder that does not say so",
    MODEL,
    "pvc://models/tiny is a bert without is_decoder in config.json, so it sees what it should "
    "predict; only models that continue text can be tuned",
    lambda i: i.config(model_type="bert", architectures=None),
)
row(
    "a model for translation",
    MODEL,
    "pvc://models/tiny is of type t5, which is no causal language model; only models that ...",
    lambda i: i.config(model_type="t5", architectures=["T5ForConditionalGeneration"]),
)
for suffix in (".bin", ".pt", ".pth"):
    row(
        f"weights that can run code ({suffix})",
        MODEL,
        "pvc://models/tiny has weights only in a format that can run code when it is read "
        "(.bin, .pt and the like); convert them to safetensors",
        lambda i, name=f"pytorch_model{suffix}": i.only(name),  # type: ignore[misc]
    )
row(
    "no weights",
    MODEL,
    "pvc://models/tiny has neither safetensors nor a GGUF file, only ...; give a model",
    lambda i: i.only(),
)
row(
    "weights cut short",
    MODEL,
    "pvc://models/tiny: model.safetensors cannot be read (...); it is damaged or incomplete, "
    "copy it anew",
    lambda i: truncate(i.model / "model.safetensors"),
)
row(
    "a tensor is missing",
    MODEL,
    "pvc://models/tiny: the weights do not fit config.json: model.norm.weight is missing; "
    "copy the model anew, all files of the same revision",
    lambda i: i.weights(lambda found: found.pop("model.norm.weight")),
)
row(
    "weights of a smaller model",
    MODEL,
    "pvc://models/tiny: the weights do not fit config.json: ...lm_head.weight is 512 x 64 in place "
    "of 512 x 128, ... and ... more; copy the model anew, ...",
    lambda i: i.config(hidden_size=128),
)
row(
    "not a number",
    MODEL,
    "pvc://models/tiny: 64 of 64 values of model.norm.weight in model.safetensors are not usable "
    "numbers; copy or convert the model anew",
    lambda i: i.weights(lambda found: found["model.norm.weight"].fill_(float("nan"))),
)
row(
    "quantised",
    MODEL,
    "pvc://models/tiny is quantised (quantization_config in config.json), so its weights cannot "
    "be trained; use the unquantised model",
    lambda i: i.config(quantization_config={"quant_method": "gptq", "bits": 4}),
)
row(
    "no tokenizer",
    MODEL,
    "pvc://models/tiny: the tokenizer cannot be loaded: ...; the model needs tokenizer.json and "
    "tokenizer_config.json, and no code of its own",
    lambda i: [path.unlink() for path in i.model.glob("tokenizer*")],
)
row(
    "a tokenizer that is not JSON",
    MODEL,
    "pvc://models/tiny: the tokenizer cannot be loaded: ...; the model needs ...",
    lambda i: (i.model / "tokenizer.json").write_text("{"),
)
row(
    "a tokenizer of another model",
    MODEL,
    "the tokenizer makes token ..., but the model knows only 64 tokens; tokenizer and model do not "
    "belong together",
    lambda i: (
        i.config(vocab_size=64),
        i.weights(
            lambda found: found.update(
                {
                    name: found[name][:64].clone()
                    for name in ("lm_head.weight", "model.embed_tokens.weight")
                }
            )
        ),
    ),
)
row(
    "a tokenizer that knows no end",
    MODEL,
    "the model's tokenizer names no end-of-sequence token, so it could never learn to stop; set "
    "eos_token in tokenizer_config.json",
    lambda i: endless(i.model),
)
row(
    "code of its own",
    MODEL,
    "pvc://models/tiny needs Python code of its own (auto_map in config.json), which this platform "
    "does not run; use a model whose architecture is part of transformers, or ask the platform "
    "team for a profile with spec.limits.remoteCode: true",
    lambda i: own_code(i),
)
row(
    "neither GGUF nor a directory",
    MODEL,
    "pvc://models/tiny is a file, but no .gguf; give a directory or a GGUF file",
    lambda i: i.changes.update(
        model=SourceConfig(uri="pvc://models/tiny", path=str(i.model / "model.safetensors"))
    ),
)
row(
    "a broken GGUF file",
    MODEL,
    "pvc://models/tiny: the GGUF file cannot be converted: ...; use a directory with safetensors",
    lambda i: (
        (i.root / "m.gguf").write_bytes(b"GGUF" + bytes(64)),
        i.changes.update(model=SourceConfig(uri="pvc://models/tiny", path=str(i.root / "m.gguf"))),
    ),
)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def endless(model: Path) -> None:
    path = model / "tokenizer_config.json"
    found = json.loads(path.read_text())
    found["eos_token"] = None
    path.write_text(json.dumps(found))


OWN_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path(__file__).with_name("it-ran").touch()
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def own_code(found: Input) -> None:
    found.config(
        model_type="own",
        architectures=["OwnForCausalLM"],
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    )
    (found.model / "own.py").write_text(OWN_CODE)


# Configurations
row(
    "sequences longer than the model can tell apart",
    CONFIGURATION,
    "spec.training.sequenceLength is 1024, but the model was made for at most 512 tokens; lower it "
    "to 512 or less",
    lambda i: i.changes.update(sequence_length=1024),
)
row(
    "chat data for a model without chat template",
    CONFIGURATION,
    "the dataset has format Chat, but the model's tokenizer has no chat template; use an ...",
    lambda i: (
        i.records(chat(USER, ANSWER)),
        [path.unlink() for path in i.model.glob("tokenizer*")],
        (i.model / "chat_template.jinja").unlink(),
        tiny_tokenizer(None).save_pretrained(i.model),
    ),
)
row(
    "no layer of that name",
    CONFIGURATION,
    "spec.method.lora.targetModules ['query_key_value'] cannot be tuned in LlamaForCausalLM; its "
    "linear layers are down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj",
    lambda i: i.changes.update(
        lora=LORA.model_copy(update={"target_modules": ["query_key_value"]})
    ),
)
row(
    "one name of two fits no layer",
    CONFIGURATION,
    "spec.method.lora.targetModules 'wqkv' fits no layer of LlamaForCausalLM; its linear layers "
    "are down_proj, ...",
    lambda i: i.changes.update(lora=LORA.model_copy(update={"target_modules": ["q_proj", "wqkv"]})),
)
row(
    "a layer that is no matrix",
    CONFIGURATION,
    "spec.method.lora.targetModules ['mlp'] cannot be tuned in LlamaForCausalLM; its linear ...",
    lambda i: i.changes.update(lora=LORA.model_copy(update={"target_modules": ["mlp"]})),
)
row(
    "no module to save of that name",
    CONFIGURATION,
    "spec.method.lora.modulesToSave 'score' is no module of LlamaForCausalLM; it has ...",
    lambda i: i.changes.update(lora=LORA.model_copy(update={"modules_to_save": ["score"]})),
)
row(
    "a rank that is not low",
    CONFIGURATION,
    "spec.method.lora.rank is 128, but the largest of the chosen matrices has rank 64, so nothing "
    "would be saved; lower it to 16 or less, or use spec.method.tuning: Full",
    lambda i: i.changes.update(lora=LORA.model_copy(update={"rank": 128})),
)
row(
    "a batch that does not divide",
    CONFIGURATION,
    "training.globalBatchSize is 5, but microBatchSize x gradientAccumulationSteps x processes is "
    "2 x 2 x 1 = 4; make them equal",
    lambda i: i.training_by_hand.update(globalBatchSize=5),
)
row(
    "a batch that the processes cannot share",
    CONFIGURATION,
    "training.globalBatchSize is 4, but microBatchSize x gradientAccumulationSteps x processes is "
    "2 x 2 x 3 = 12; make them equal",
    lambda i: i.by_hand.update(numProcPerNode=3),
)
row(
    "no steps",
    CONFIGURATION,
    "training.maxSteps is 0; it must be at least 1",
    lambda i: i.training_by_hand.update(maxSteps=0, epochs=None),
)
row(
    "epochs and steps",
    CONFIGURATION,
    "set one of training.epochs and training.maxSteps, not both",
    lambda i: i.training_by_hand.update(maxSteps=10),
)
row(
    "a learning rate that is none, and too many warm-up steps",
    CONFIGURATION,
    "training.learningRate is -0.1; it must be above 0 and at most 1; training.warmupFraction is "
    "2.0; it must be from 0 to 1",
    lambda i: i.training_by_hand.update(learningRate=-0.1, warmupFraction=2),
)
row(
    "all examples held out",
    CONFIGURATION,
    "evalFraction is 1.0; it must be from 0 to below 1",
    lambda i: i.by_hand.update(evalFraction=1),
)
row(
    "LoRA without its settings",
    CONFIGURATION,
    "tuning is LoRA; set lora where it is LoRA or QLoRA, and nowhere else",
    lambda i: i.by_hand.update(lora=None),
)
row(
    "unknown field",
    CONFIGURATION,
    "...run.json is not a run configuration that this trainer understands: training.optimiser: "
    "...; operator and trainer image must be of the same release",
    lambda i: i.training_by_hand.update(optimiser="adam"),
)
row(
    "unknown precision",
    CONFIGURATION,
    "...run.json is not a run configuration that this trainer understands: training.precision: "
    "Input should be 'BF16' or 'FP32'; operator and trainer image must be of the same release",
    lambda i: i.training_by_hand.update(precision="FP8"),
)
row(
    "a work directory that is a file",
    CONFIGURATION,
    "the work directory ... cannot be made: ...; correct workDir, or the rights of the volume",
    lambda i: i.work.write_text("a file"),
)
row(
    "an output directory below a file",
    CONFIGURATION,
    "the output directory ...d.jsonl/out cannot be made: ...d.jsonl is a file; choose another "
    "spec.output.uri",
    lambda i: i.changes.update(output_dir=str(i.root / "d.jsonl" / "out")),
)
row(
    "an output directory without the right to write",
    CONFIGURATION,
    "the output directory ... cannot be written; correct the rights of the volume, or choose "
    "another spec.output.uri",
    lambda i: forbid(i, i.root / "out"),
)
row(
    "a full volume",
    CONFIGURATION,
    "no space left while writing ...; ask for a larger volume (spec.storage.size of the profile) "
    "or make room on the output claim",
    lambda i: fill(i),
)


def forbid(found: Input, path: Path) -> None:
    """Root may write everywhere, and tests may run as root."""
    import os

    path.mkdir()
    found.changes["output_dir"] = str(path)
    original = os.access
    found.monkeypatch.setattr(os, "access", lambda p, mode: p != path and original(p, mode))


def fill(found: Input) -> None:
    import errno

    from finetune_trainer.data import store

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    found.monkeypatch.setattr(store.np, "save", full)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("bad-input") / "tiny")


@pytest.fixture
def sound(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Input:
    shutil.copytree(pristine, tmp_path / "model")
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    write_jsonl(tmp_path / "d.jsonl", *questions(20))
    return Input(tmp_path, monkeypatch)


def end(given: Input) -> tuple[int, Outcome]:
    """Run prepare; its exit code and what it leaves for the operator."""
    run = a_run(given.work, given.model, given.root / "d.jsonl", **given.changes)
    found = json.loads(run.model_dump_json(by_alias=True)) | given.by_hand
    found["training"] |= given.training_by_hand
    (given.root / "run.json").write_text(json.dumps(found))
    try:
        code = prepare.main([str(given.root / "run.json")])
    except SystemExit as exc:
        code = int(exc.code or 0)
    outcome = Outcome.from_message((given.root / "log").read_text())
    assert outcome is not None
    return code, outcome


def test_the_input_that_the_rows_spoil_is_sound(sound: Input) -> None:
    code, outcome = end(sound)
    assert (code, outcome.failure) == (0, None)
    assert outcome.prepare is not None


@pytest.mark.parametrize(("spoil", "code", "message"), ROWS)
def test_bad_input_ends_in_prepare_and_says_what_to_change(
    sound: Input, spoil: Spoil, code: tuple[int, str], message: str
) -> None:
    spoil(sound)
    ended, outcome = end(sound)
    assert outcome.failure is not None
    assert re.fullmatch(message, outcome.failure.message, re.DOTALL), outcome.failure.message
    assert (ended, outcome.failure.failure_class) == code
    assert not (sound.work / "prepare.json").exists()


def test_there_are_at_least_forty_rows() -> None:
    assert len(ROWS) >= 40


def test_code_that_is_not_permitted_is_not_run(sound: Input) -> None:
    own_code(sound)
    end(sound)
    assert not list(sound.root.rglob("it-ran"))


def test_code_that_the_profile_permits_is_run_and_kept_for_training(sound: Input) -> None:
    own_code(sound)
    sound.changes["allow_remote_code"] = True
    code, outcome = end(sound)
    assert (code, outcome.failure) == (0, None)
    assert outcome.prepare is not None
    assert outcome.prepare.architecture == "OwnForCausalLM"
    assert (sound.work / "model/own.py").read_text() == OWN_CODE


def test_a_rank_above_some_of_the_matrices_is_warned_about(sound: Input) -> None:
    sound.changes["lora"] = LORA.model_copy(update={"rank": 48})
    assert end(sound)[0] == 0
    assert (
        "warning: spec.method.lora.rank 48 is more than k_proj, v_proj can have; "
        "the surplus costs memory and does nothing"
    ) in (logs.tail() or "")
