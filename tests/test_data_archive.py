"""The published archive: download from a local server, checksum, layouts and faults."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from data_support import (
    COUNTS,
    NAMES,
    Site,
    local_folder,
    picture_members,
    png,
    serving,
    shrink,
    tensor_members,
    zipped,
)
from PIL import Image

from datasets import archive
from datasets.polymnist import PolyMNIST
from datasets.spec import UserError


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    shrink(monkeypatch)
    monkeypatch.setattr(archive, "_CHUNK", 500)  # what is less than a piece is lost when a download breaks
    site = Site(zipped(picture_members()))
    with serving(site) as url:
        monkeypatch.setattr(archive, "URL", url)
        yield site


def test_pictures_are_paired_by_index_and_digit(tmp_path: Path, site: Site) -> None:
    data = PolyMNIST(tmp_path)
    test = data.split("test")
    expected = {
        name: [np.asarray(Image.open(io.BytesIO(png(1000 * k + i)))) for i in range(COUNTS["test"])]
        for k, name in enumerate(NAMES)
    }
    seen = []
    for row in range(COUNTS["test"]):
        found = {
            name: next(
                i
                for i, x in enumerate(expected[name])
                if np.array_equal(x.transpose(2, 0, 1), test.stored[name][row])
            )
            for name in NAMES
        }
        assert len(set(found.values())) == 1
        assert found["m0"] % 10 == test.labels["digit"][row]
        seen.append(found["m0"])
    assert sorted(seen) == list(range(COUNTS["test"]))
    assert data.notes == () and test.groups == {}
    assert len(data.split("train")) == 50 and len(data.split("val")) == 10


def test_archive_and_rebuild_have_their_own_copies(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = local_folder(tmp_path / "data", monkeypatch)
    published = PolyMNIST(tmp_path / "cache")
    published.prepare()
    rebuilt = PolyMNIST(tmp_path / "cache", data=local)
    assert published.folder != rebuilt.folder and published.fingerprint != rebuilt.fingerprint
    assert PolyMNIST(tmp_path / "cache").fingerprint == published.fingerprint


def test_tensors_and_classifiers(tmp_path: Path, site: Site) -> None:
    site.content = zipped(tensor_members())
    data = PolyMNIST(tmp_path)
    test = data.split("test")
    g = torch.Generator().manual_seed(COUNTS["test"])
    first = torch.randint(0, 256, (COUNTS["test"], 3, 28, 28), generator=g).to(torch.uint8)
    rows = [next(i for i, x in enumerate(first) if torch.equal(x, y)) for y in test.stored["m0"]]
    assert sorted(rows) == list(range(COUNTS["test"]))
    assert torch.equal(torch.tensor(rows) % 10, test.labels["digit"])
    assert data.official_classifiers is not None
    assert np.load(data.official_classifiers)["m0.encoder.0.bias"].tolist() == [1.0] * 10


def test_broken_download_is_continued(tmp_path: Path, site: Site) -> None:
    site.break_after = len(site.content) // 3
    with pytest.raises(UserError, match="broke off.*run the command again to go on"):
        PolyMNIST(tmp_path).prepare()
    folder = tmp_path / "polymnist"
    assert not (folder / archive.FILE).exists() and not list(folder.glob("archive-*"))
    have = (folder / (archive.FILE + ".part")).stat().st_size
    assert 0 < have <= site.break_after
    site.break_after = None
    PolyMNIST(tmp_path).prepare()
    assert site.starts == [0, have]
    assert not list(folder.glob("*.part*"))


def test_download_starts_over_when_the_file_changed_meanwhile(tmp_path: Path, site: Site) -> None:
    site.break_after = 1000
    with pytest.raises(UserError, match="broke off"):
        PolyMNIST(tmp_path).prepare()
    site.break_after, site.content = None, zipped(tensor_members())
    PolyMNIST(tmp_path).prepare()
    assert site.starts == [0, 0]


def test_download_that_was_whole_already_begins_again(tmp_path: Path, site: Site) -> None:
    folder = tmp_path / "polymnist"
    folder.mkdir()
    (folder / (archive.FILE + ".part")).write_bytes(site.content)
    (folder / (archive.FILE + ".part.etag")).write_text(site.etag)
    PolyMNIST(tmp_path).prepare()
    assert site.starts == [len(site.content), 0]


def test_checksum_is_pinned_when_first_seen(tmp_path: Path, site: Site) -> None:
    first = PolyMNIST(tmp_path)
    first.prepare()
    for path in first.folder.iterdir():
        path.unlink()
    first.folder.rmdir()
    zip_file = tmp_path / "polymnist" / archive.FILE
    whole = zip_file.read_bytes()
    zip_file.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="truncated or altered: remove it"):
        PolyMNIST(tmp_path).prepare()
    zip_file.unlink()
    site.content = zipped(tensor_members())
    with pytest.raises(UserError, match="SHA-256 differs"):
        PolyMNIST(tmp_path).prepare()
    assert not zip_file.exists()
    site.content = whole
    assert PolyMNIST(tmp_path).fingerprint == first.fingerprint


def test_no_zip_is_not_pinned(tmp_path: Path, site: Site) -> None:
    site.content = b"<html>please sign in</html>"
    with pytest.raises(UserError, match="not a whole zip archive"):
        PolyMNIST(tmp_path).prepare()
    assert not list((tmp_path / "polymnist").glob("*.sha256"))


def test_server_that_refuses_counts_as_out_of_reach(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.status = 404
    with pytest.raises(UserError, match="cannot be reached .the server answered 404"):
        PolyMNIST(tmp_path).prepare()
    monkeypatch.setenv("BENCH_DATA", str(local_folder(tmp_path / "data", monkeypatch)))
    assert "stand-in" in PolyMNIST(tmp_path / "cache").notes[0]


def test_full_disk_while_downloading(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive.Resuming, "_receive", full)
    with pytest.raises(UserError, match="no space left"):
        PolyMNIST(tmp_path).prepare()
    assert not (tmp_path / "polymnist" / archive.FILE).exists()


def without(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda members: members.pop(name) and None


def swap(members: dict[str, bytes]) -> None:
    members["PolyMNIST/train/m2/3.7.png"] = members.pop("PolyMNIST/train/m2/3.3.png")


def drop_tuple(members: dict[str, bytes]) -> None:
    for name in NAMES:
        members.pop(f"PolyMNIST/test/{name}/3.3.png")


PICTURE_FAULTS: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "unequal lengths": (without("PolyMNIST/train/m2/3.3.png"), "unequal lengths"),
    "unequal labels": (swap, "tuple 3 of 'train' has digit 3 in m0 and 7 in m2"),
    "a tuple less": (drop_tuple, "19 'test' tuples instead of 20"),
    "no image": (lambda m: m.update({"PolyMNIST/test/m4/5.5.png": b"hello"}), "5.5.png is not an image"),
    "another size": (lambda m: m.update({"PolyMNIST/test/m4/5.5.png": png(0, 20)}), "measures 20 x 20"),
    "empty": (dict.clear, "no 'train' pictures"),
}


@pytest.mark.parametrize("fault", PICTURE_FAULTS)
def test_faulty_archive_is_one_sentence_and_leaves_nothing(tmp_path: Path, site: Site, fault: str) -> None:
    change, message = PICTURE_FAULTS[fault]
    members = picture_members()
    change(members)
    members["README"] = b"not empty"
    site.content = zipped(members)
    with pytest.raises(UserError, match=message) as caught:
        PolyMNIST(tmp_path).prepare()
    assert "\n" not in str(caught.value) and "remove it and download it again" in str(caught.value)
    left = {p.name for p in (tmp_path / "polymnist").iterdir()}
    assert left == {".lock", archive.FILE, archive.FILE + ".sha256"}


def test_tensors_of_unequal_length_or_wrong_range(tmp_path: Path, site: Site) -> None:
    members = tensor_members()
    good = members["train/m3.pt"]
    members["train/m3.pt"] = members["test/m3.pt"]
    site.content = zipped(members)
    with pytest.raises(UserError, match="unequal lengths in 'train'.*'m3': 20"):
        PolyMNIST(tmp_path / "a").prepare()
    buffer = io.BytesIO()
    torch.save(torch.load(io.BytesIO(good)) * 255, buffer)
    members["train/m3.pt"] = buffer.getvalue()
    site.content = zipped(members)
    with pytest.raises(UserError, match=r"values outside \[0, 1\]"):
        PolyMNIST(tmp_path / "b").prepare()
    members["train/m3.pt"] = b"hello"
    site.content = zipped(members)
    with pytest.raises(UserError, match="m3.pt is not a tensor"):
        PolyMNIST(tmp_path / "c").prepare()


def test_flipped_byte_inside_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    content = bytearray(zipped(picture_members()))
    content[len(content) // 2] ^= 255
    (tmp_path / archive.FILE).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        PolyMNIST(tmp_path / "cache", data=tmp_path).prepare()
