"""Atomic files, checksums and readers of `datasets.files`; prepared folders of `datasets.prepared`."""

from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from data_support import idx, jpeg

from datasets import files
from datasets.prepared import check_prepared, open_prepared, write_prepared
from datasets.spec import UserError

PARTS = {
    name: {"x": torch.arange(50, dtype=torch.uint8) + i} for i, name in enumerate(("train", "val", "test"))
}


def failing(code: int):
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_atomic_file_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with files.atomic_file(path) as temporary:
        temporary.write_text("first")
    with pytest.raises(KeyError), files.atomic_file(path) as temporary:
        temporary.write_text("second")
        raise KeyError
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("code", "reason"),
    [(errno.ENOSPC, "no space left"), (errno.EACCES, "no permission"), (errno.EIO, "cannot")],
)
def test_failed_write_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    monkeypatch.setattr(files.os, "fsync", failing(code))
    with pytest.raises(UserError, match=reason) as caught:
        files.write_json(tmp_path / "a.json", {"a": 1})
    assert "\n" not in str(caught.value) and "--cache" in str(caught.value)
    with pytest.raises(UserError, match=reason):
        write_prepared(tmp_path / "copy", PARTS.items(), {})
    assert list(tmp_path.iterdir()) == []


def test_full_disk_inside_safetensors_is_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match="no space left"):
        write_prepared(tmp_path / "copy", PARTS.items(), {})
    assert list(tmp_path.iterdir()) == []


def test_cache_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="cannot be written"), files.locked(tmp_path / "cache" / "polydigits"):
        pass


def test_prepared_folder_round_trip_and_fingerprint_of_content(tmp_path: Path) -> None:
    first = write_prepared(tmp_path / "a", PARTS.items(), {"notes": ["x"]}, {"more.bin": b"1"})
    second = write_prepared(tmp_path / "b", PARTS.items(), {})
    other = write_prepared(tmp_path / "c", {**PARTS, "val": {"x": torch.zeros(3)}}.items(), {})
    assert check_prepared(tmp_path / "a") == first
    assert first["fingerprint"] == second["fingerprint"] != other["fingerprint"]
    assert (tmp_path / "a" / "more.bin").read_bytes() == b"1"
    assert torch.equal(files.read_tensors(tmp_path / "a" / "val.safetensors")["x"], PARTS["val"]["x"])


@pytest.mark.parametrize("name", ["train.safetensors", "info.json"])
@pytest.mark.parametrize("how", ["missing", "truncated", "altered"])
def test_prepared_folder_notices_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    folder = tmp_path / "copy"
    write_prepared(folder, PARTS.items(), {"notes": ["stand-in"]})
    assert open_prepared(folder) is not None
    path = folder / name
    raw = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(raw[:-1] if name != "info.json" else raw[: len(raw) // 2])
    else:
        where = raw.rindex(b"stand-in") if name == "info.json" else len(raw) - 1
        raw[where] ^= 1
        path.write_bytes(raw)
    assert open_prepared(folder) is None
    assert "not used" in caplog.text


def test_leftovers_of_a_killed_build_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".copy.abc").mkdir()
    write_prepared(tmp_path / "copy", PARTS.items(), {})
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_idx_reading_and_its_faults(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path.write_bytes(gzip.compress(idx(array)))
    read, md5 = files.read_idx(path, "restore it")
    assert np.array_equal(read, array) and len(md5) == 32
    whole = path.read_bytes()
    faults = {
        "cannot be read": whole[: len(whole) // 2],
        "cannot be read ": b"no gzip",
        "not an IDX file": gzip.compress(b"\x00\x00\x0d\x01"),
        "where its header says": gzip.compress(idx(array)[:-1]),
    }
    for message, content in faults.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"x.gz' .*{message.strip()}.*restore it"):
            files.read_idx(path, "restore it")
    path.unlink()
    with pytest.raises(UserError, match="x.gz' is missing: restore it"):
        files.read_idx(path, "restore it")


def test_image_reading_and_its_faults(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg(0))
    assert files.read_image(path, "restore it").shape == (45, 60, 3)
    path.write_bytes(jpeg(0)[:-400])
    with pytest.raises(UserError, match="x.jpg' cannot be read"):
        files.read_image(path, "restore it")
    path.write_text("hello")
    with pytest.raises(UserError, match="x.jpg' is not an image: restore it"):
        files.read_image(path, "restore it")
