"""Requests from files: what is read, and what the message says when it cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest

from infra.commands.request_files import BadFile, Columns, FileRequest, read
from infra.commands.sending import Sending, encode
from kernels.spec import TensorSpec
from schemas import framing

THREE = [TensorSpec("x", "FP32", (3,))]
MIXED = [TensorSpec("age", "INT64", ()), TensorSpec("colour", "BYTES", (1,)), TensorSpec("tall", "BOOL", (1,))]


def requests(
    path: Path, text: str, inputs: list[TensorSpec], columns: Columns | None = None, rows: int = 1
) -> list[FileRequest]:
    path.write_text(text, encoding="utf-8")
    return list(read(path, inputs, columns or Columns(), rows))


def test_csv_columns_in_order_make_one_input(tmp_path: Path) -> None:
    text = "a,sex,b,who,c\n1,f,2.5,p1,-3\n\n4,m,5,,6\n"
    found = requests(tmp_path / "f.csv", text, THREE, Columns("who", ("sex",)))
    assert [each.inputs["x"].tolist() for each in found] == [[[1, 2.5, -3]], [[4, 5, 6]]]
    assert found[0].inputs["x"].dtype == np.float32
    assert [each.attributes for each in found] == [{"sex": "f"}, {"sex": "m"}]
    assert [each.texts for each in found] == [{"subject": "p1"}, {}]


def test_csv_columns_named_like_inputs(tmp_path: Path) -> None:
    (found,) = requests(tmp_path / "f.csv", "tall,colour,age\ntrue,red,41\n", MIXED)
    assert found.inputs["age"].tolist() == [41] and found.inputs["age"].dtype == np.int64
    assert found.inputs["colour"].tolist() == [["red"]]
    assert found.inputs["tall"].tolist() == [[True]]


def test_rows_are_put_together(tmp_path: Path) -> None:
    found = requests(tmp_path / "f.csv", "a,b,c\n1,2,3\n4,5,6\n7,8,9\n", THREE, rows=2)
    assert [each.inputs["x"].shape for each in found] == [(2, 3), (1, 3)]


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        {"inputs": {"x": [[1, 2, 3], [4, 5, 6]]}, "attributes": {"sex": "f"}, "subject": "p", "request_id": "r1"},
        {"inputs": {"x": [7, 8, 9]}, "parameters": {"a": "b"}},
    ]
    first, second = requests(tmp_path / "f.jsonl", "\n".join(map(json.dumps, lines)), THREE)
    assert first.inputs["x"].shape == (2, 3)
    assert first.texts == {"subject": "p", "request_id": "r1"} and first.attributes == {"sex": "f"}
    assert second.inputs["x"].tolist() == [[7, 8, 9]] and second.parameters == {"a": "b"}


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", anything=np.arange(6.0).reshape(2, 3))
    found = list(read(tmp_path / "f.npz", THREE, Columns()))
    assert [each.inputs["x"].tolist() for each in found] == [[[0, 1, 2]], [[3, 4, 5]]]
    assert found[0].inputs["x"].dtype == np.float32
    np.savez(tmp_path / "g.npz", a=np.zeros((2, 1), np.int8), b=np.zeros((2, 4)))
    assert list(next(read(tmp_path / "g.npz", [], Columns())).inputs) == ["a", "b"]


CSV = [
    ("", THREE, "is empty"),
    ("a,b,c\n1,2,x\n", THREE, "line 2, column 'c': 'x' is not a number (FP32)"),
    ("a,b,c\n1,2,3\n1,,3\n", THREE, "line 3, column 'b': '' is not a number"),
    ("a,b,c\n1,2\n", THREE, "line 2: has 2 values, the header names 3 columns"),
    ("a,b\n1,2\n", THREE, "line 1: 2 columns ('a', 'b') for input 'x' of 3"),
    ("a,a,b\n1,2,3\n", THREE, "line 1: column 'a' is there 2 times"),
    ("age,tall\n1,true\n", MIXED, "line 1: no column for the inputs 'colour'"),
    ("age,tall,colour\n1.5,true,red\n", MIXED, "line 2, column 'age': '1.5' is not a whole number (INT64)"),
    ("age,tall,colour\n1,yes,red\n", MIXED, "line 2, column 'tall': 'yes' is not true or false (BOOL)"),
    ("age,tall,colour\n99999999999999999999,true,red\n", MIXED, "line 2: a number is beyond INT64"),
    ("a,b,c\n1,2,3\n", [], "the inputs of the model are not known"),
]


@pytest.mark.parametrize(("text", "inputs", "message"), CSV)
def test_bad_csv_is_named(tmp_path: Path, text: str, inputs: list[TensorSpec], message: str) -> None:
    with pytest.raises(BadFile) as raised:
        requests(tmp_path / "f.csv", text, inputs)
    assert message in str(raised.value) and "f.csv" in str(raised.value)


JSONL = [
    ("{", "line 1, column 2: is no JSON"),
    ("[1]", 'line 1: write {"inputs"'),
    ('{"inputs": {"y": [1]}}', "line 1: inputs.y: the model has no such input; it has 'x'"),
    ('{"inputs": {"x": [[1, "a", 3]]}}', 'line 1: inputs.x[0][1] = "a" is not a number (FP32)'),
    ('{"inputs": {"x": [[1, null, 3]]}}', "line 1: inputs.x[0][1] = null is not a number"),
    ('{"inputs": {"x": [[1, true, 3]]}}', "line 1: inputs.x[0][1] = true is not a number"),
    ('{"inputs": {"x": [[1, 2, 3], [4]]}}', "line 1: inputs.x: the lists have different lengths"),
    ('{"inputs": {"x": [1]}, "sex": "f"}', "line 1: 'sex' is no part of a request"),
    ('{"inputs": {"x": [1]}, "attributes": {"sex": 1}}', "line 1: attributes"),
    ('{"inputs": {"x": [1]}, "subject": 17}', "line 1: subject = 17 is no text"),
]


@pytest.mark.parametrize(("text", "message"), JSONL)
def test_bad_jsonl_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadFile) as raised:
        requests(tmp_path / "f.jsonl", text, THREE)
    assert message in str(raised.value)


def test_bad_npz_is_named(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    path.write_bytes(b"no zip")
    with pytest.raises(BadFile, match="is no NPZ of plain arrays"):
        list(read(path, THREE, Columns()))
    np.savez(path, a=np.zeros((2, 3)), b=np.zeros((3, 3)))
    with pytest.raises(BadFile, match="rows; give each input an array"):
        list(read(path, [], Columns()))
    np.savez(path, x=np.array([["a", "b", "c"]]))
    with pytest.raises(BadFile, match="x is <U1, the input is FP32"):
        list(read(path, THREE, Columns()))


def test_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"must end with \.csv, \.jsonl or \.npz"):
        list(read(tmp_path / "f.txt", THREE, Columns()))
    with pytest.raises(BadFile, match="cannot be read"):
        list(read(tmp_path / "f.csv", THREE, Columns()))
    (tmp_path / "f.csv").write_bytes(b"a,b,c\n\xff,1,2\n")
    with pytest.raises(BadFile, match="is no UTF-8 text"):
        list(read(tmp_path / "f.csv", THREE, Columns()))


def test_rows_with_subjects_are_not_put_together(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="one subject and one set of attributes"):
        requests(tmp_path / "f.csv", "a,b,c,s\n1,2,3,f\n4,5,6,m\n", THREE, Columns(attributes=("s",)), rows=2)


def test_encoded_request(tmp_path: Path) -> None:
    (found,) = requests(tmp_path / "f.csv", "a,b,c,who\n1,2,3,p\n", THREE, Columns("who"))
    how = Sending("m", None, "standard", 1000, None)
    name, record = framing.decode(encode(found, how, "r", 5.0))
    assert name == "inference_request"
    assert record["request_id"] == "r" and record["subject"] == "p" and record["deadline"] == 6000
    assert record["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": np.float32([1, 2, 3]).tobytes()}
    ]
