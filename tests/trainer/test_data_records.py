"""Reading: every file format, and every way a file can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_trainer.data.records import Record, read_records
from finetune_trainer.errors import DataError

EXAMPLE = {"prompt": "a", "completion": "é"}


def read(path: Path) -> list[Record]:
    return list(read_records([(path.name, path)]))


def test_json_lines_are_read_with_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(EXAMPLE).encode() + b"\r\n\r\n" + json.dumps(EXAMPLE).encode()
    )
    assert read(path) == [Record("d.jsonl line 1", EXAMPLE), Record("d.jsonl line 3", EXAMPLE)]


def test_a_json_list_is_read_whatever_its_layout(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps([EXAMPLE, EXAMPLE], indent=2))
    assert read(path) == [Record("d.json entry 1", EXAMPLE), Record("d.json entry 2", EXAMPLE)]


def test_json_lines_in_a_file_named_json_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps(EXAMPLE) + "\n")
    assert read(path) == [Record("d.json line 1", EXAMPLE)]


def test_a_key_of_a_config_map_needs_no_suffix(tmp_path: Path) -> None:
    path = tmp_path / "examples"
    path.write_text(json.dumps(EXAMPLE))
    assert read(path) == [Record("examples line 1", EXAMPLE)]


def test_parquet_is_read_by_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "d.parquet"
    chat = {"messages": [{"role": "user", "content": "Hi"}]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([chat, chat]), path)
    assert read(path) == [Record("d.parquet row 1", chat), Record("d.parquet row 2", chat)]


def test_plain_text_is_split_at_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_text("\none\ntwo\n\n\nthree")
    assert read(path) == [
        Record("d.txt line 2", {"text": "one\ntwo"}),
        Record("d.txt line 6", {"text": "three"}),
    ]


def test_several_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    files = []
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
        files.append((name, tmp_path / name))
    assert [record.where for record in read_records(files)] == ["a.txt line 1", "b.txt line 1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param(
            "d.jsonl", b"", "d.jsonl is empty; put at least one example into it", id="empty"
        ),
        pytest.param(
            "d.jsonl",
            b"\n \n",
            "d.jsonl contains no example; put at least one into it",
            id="only empty lines",
        ),
        pytest.param(
            "d.json", b"[]", "d.json contains no example; put at least one into it", id="empty list"
        ),
        pytest.param(
            "d.jsonl",
            b'{"text": "a"}\n{"text": }\n',
            "d.jsonl line 2 is not JSON (Expecting value at column 10); "
            "every line must be one JSON object",
            id="broken line",
        ),
        pytest.param(
            "d.json",
            b'[{"text": "a"},\n{"text": "b"]',
            "d.json line 2 is not JSON (Expecting ',' delimiter at column 13); "
            "the file must be one JSON list of objects",
            id="broken list",
        ),
        pytest.param(
            "d.jsonl",
            b'{"text": "a"}\n"only words"\n',
            "d.jsonl line 2 is a JSON string, not an object; "
            'write an object such as {"prompt": "...", "completion": "..."}',
            id="no object",
        ),
        pytest.param(
            "d.jsonl",
            b'{"text": "a"}\n{"text": "\xe9"}\n',
            "d.jsonl line 2 is not UTF-8 (byte 11 of the line); save the file as UTF-8",
            id="latin-1",
        ),
        pytest.param(
            "d.csv",
            b"a,b\n",
            "d.csv has the suffix .csv, which cannot be read; "
            "use one of .jsonl, .ndjson, .json, .parquet, .txt",
            id="unknown suffix",
        ),
    ],
)
def test_a_bad_file_is_refused_with_place_and_fix(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value) == message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path / "d.jsonl")
    assert str(caught.value) == ("d.jsonl does not exist or is not a file; check spec.dataset.uri")


def test_a_broken_parquet_file_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"^d\.parquet is not a readable Parquet file: .*anew$"):
        read(path)
