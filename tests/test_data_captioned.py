"""CUB and MSCOCO: layouts, splits, partial folders, and everything that can be wrong with a source."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import captioned_support as mini
import numpy as np
import pytest
import torch
from data_support import Site, serving

from datasets.captioned import Whole
from datasets.coco import COCO
from datasets.cub import CUB, CUB256, TEST_CLASSES
from datasets.packed import Compressed, Shared
from datasets.sources import decode_picture, walk
from datasets.spec import UserError


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    mini.shrink(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return mini.write(tmp_path / "data", mini.cub_files())


def refused(data: CUB | COCO, words: str) -> None:
    """The sentence says so, and nothing half-written stays."""
    with pytest.raises(UserError, match=words) as caught:
        data.prepare()
    assert "\n" not in str(caught.value)
    assert not [p for p in (data.cache / data.name).glob("*") if p.name != ".lock"]


def test_the_class_split() -> None:
    assert len(TEST_CLASSES) == 50 and all(1 <= c <= 200 for c in TEST_CLASSES)


def test_official_folder(tmp_path: Path, folder: Path) -> None:
    data = CUB(tmp_path / "cache", folder)
    sizes = {name: len(data.split(name)) for name in ("train", "val", "test")}
    assert sizes == {"train": 190, "val": 10, "test": 60} and data.notes == ()
    test = data.split("test")
    x = test.batch(torch.arange(12))
    assert x["image"].shape == (12, 3, 64, 64) and 0 <= x["image"].min() <= x["image"].max() <= 1
    assert torch.equal(x["image"][0], x["image"][9]) and not torch.equal(x["image"][0], x["image"][10])
    assert test.groups["image"][:12].tolist() == [0] * 10 + [1] * 2
    assert data.sentence(x["caption"][0]) == "this bird 0 is black, <unk>"
    assert data.spec["caption"].vocabulary == len(data.vocabulary)
    # A caption stays with its picture: the colour word tells whether the picture's number is odd.
    odd = data.vocabulary.ids["white"]
    says = (test.stored["caption"] == odd).any(1)
    assert torch.equal(says, test.groups["caption"] % 2 == 1)
    expected = decode_picture(
        mini.cub_files()[f"CUB_200_2011/images/{mini.TEST}/{mini.TEST[4:]}_0000.jpg"], 64, "x"
    )
    assert torch.equal(test.stored["image"][0], torch.from_numpy(expected))


def test_no_picture_is_in_two_splits(tmp_path: Path, folder: Path) -> None:
    data = CUB(tmp_path / "cache", folder)
    seen = [
        {row.numpy().tobytes() for row in data.split(name).stored["image"].pictures}
        for name in ("train", "val", "test")
    ]
    assert not (seen[0] & seen[1] or seen[0] & seen[2]) and [len(s) for s in seen] == [19, 1, 6]


def test_a_part_is_named_as_partial_and_has_its_own_fingerprint(tmp_path: Path, folder: Path) -> None:
    whole = CUB(tmp_path / "cache", folder)
    whole.prepare()
    victim = f"{mini.TRAIN}/{mini.TRAIN[4:]}_0003"
    (folder / f"CUB_200_2011/images/{victim}.jpg").unlink()
    part = CUB(tmp_path / "cache", folder)
    assert part.fingerprint != whole.fingerprint and part.folder != whole.folder
    assert "partial cub: 19 of 20 train pictures (190 captions) and 6 of 6 test pictures" in part.notes[0]
    assert part.notes[1] == "1 pictures are missing, their captions are left out"


def test_the_only_local_build_serves_without_its_folder(tmp_path: Path, folder: Path) -> None:
    first = CUB(tmp_path / "cache", folder)
    first.prepare()
    assert CUB(tmp_path / "cache").fingerprint == first.fingerprint
    mini.write(folder, {text_of(mini.TRAIN, 0): b"another bird\n"})
    CUB(tmp_path / "cache", folder).prepare()
    with pytest.raises(UserError, match="holds 2 builds of cub from local folders: say which"):
        CUB(tmp_path / "cache").prepare()


def test_packed_layout_at_both_sizes(tmp_path: Path) -> None:
    root = mini.packed_cub(tmp_path / "data" / "cub")
    small = CUB(tmp_path / "cache", root.parent)
    assert small.notes == () and len(small.split("train")) == 190
    large = CUB256(tmp_path / "cache", root)
    test = large.split("test")
    x = test.batch(slice(0, 11))
    assert x["image"].shape == (11, 3, 256, 256) and len(test) == 60
    first = decode_picture(mini.encoded(100), 256, "x")
    assert torch.equal(test.stored["image"][0], torch.from_numpy(first))
    assert torch.equal(test.stored["image"][torch.tensor([0, 5])][1], torch.from_numpy(first))


def test_archives_from_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = mini.cub_files()
    images = mini.tarred({k: v for k, v in files.items() if "images" in k})
    captions = mini.tarred({f"cvpr2016_cub/{k}": v for k, v in files.items() if "text" in k})
    with serving(Site(images)) as first, serving(Site(captions)) as second:
        monkeypatch.setattr("datasets.cub.IMAGES_URL", first)
        monkeypatch.setattr("datasets.cub.TEXTS_URL", second)
        refused(CUB(tmp_path / "wrong"), "is not the published file .MD5 differs")
        monkeypatch.setattr("datasets.cub.IMAGES_MD5", hashlib.md5(images).hexdigest())
        data = CUB(tmp_path / "cache")
        assert len(data.split("train")) == 190 and data.notes == ()
    again = CUB(tmp_path / "cache")  # nobody serves any more
    assert again.fingerprint == data.fingerprint
    local = CUB(tmp_path / "other", mini.write(tmp_path / "data", files))
    assert local.fingerprint == data.fingerprint


def test_a_line_ends_where_the_file_says(tmp_path: Path) -> None:
    """Not where Unicode would break it: U+0085 inside a caption makes no second one."""
    files = mini.cub_files()
    name = next(k for k in files if "text" in k and mini.TEST not in k)
    files[name] = files[name].replace(b" ", "\x85".encode(), 1)
    assert len(CUB(tmp_path / "cache", mini.write(tmp_path / "data", files)).split("train")) == 190


def test_published_archives_must_be_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = mini.cub_files()
    images = mini.tarred({k: v for k, v in files.items() if "images" in k and "_0003" not in k})
    captions = mini.tarred({k: v for k, v in files.items() if "text" in k})
    with serving(Site(images)) as first, serving(Site(captions)) as second:
        monkeypatch.setattr("datasets.cub.IMAGES_URL", first)
        monkeypatch.setattr("datasets.cub.TEXTS_URL", second)
        monkeypatch.setattr("datasets.cub.IMAGES_MD5", hashlib.md5(images).hexdigest())
        refused(CUB(tmp_path / "cache"), "holds 19 of 20 train pictures .190 captions.* restore")


def test_another_vocabulary_than_the_published_is_said(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CUB, "whole", Whole(CUB.whole.images, CUB.whole.captions, 1_590))
    (note,) = CUB(tmp_path / "cache", folder).notes
    assert "words instead of the published 1,590" in note


def test_no_source_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(CUB(tmp_path), "cannot be reached.*give a folder with CUB_200_2011/images")
    refused(COCO(tmp_path), "cannot be reached.*train2014")
    (tmp_path / "empty").mkdir()
    refused(CUB(tmp_path, tmp_path / "empty"), "holds no cub: put CUB_200_2011/images")
    refused(COCO(tmp_path, tmp_path / "absent"), "does not exist or is no folder")
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "empty"))
    refused(CUB(tmp_path, tmp_path / "empty"), "cannot be reached")


def test_coco_keeps_five_captions_in_lower_case(tmp_path: Path) -> None:
    files = mini.coco_files()
    data = COCO(tmp_path / "cache", mini.write(tmp_path / "data", files))
    assert {name: len(data.split(name)) for name in ("train", "val", "test")} == {
        "train": 55,
        "val": 5,
        "test": 25,
    }
    assert data.notes == () and data.sentence(data.split("test").stored["caption"][0]) == "a dog runs 0."
    zips = tmp_path / "zips"
    for part in ("train2014", "val2014"):
        mini.write(zips, {f"{part}.zip": mini.zipped({k: v for k, v in files.items() if k.startswith(part)})})
    notes = {k: v for k, v in files.items() if k.startswith("annotations")}
    mini.write(zips, {"annotations_trainval2014.zip": mini.zipped(notes)})
    assert COCO(tmp_path / "cache", zips).fingerprint == data.fingerprint


def image_of(species: str, i: int) -> str:
    return f"CUB_200_2011/images/{species}/{species[4:]}_{i:04d}.jpg"


def text_of(species: str, i: int) -> str:
    return f"text_c10/{species}/{species[4:]}_{i:04d}.txt"


@pytest.mark.parametrize(
    "content", [b"", b"hello", mini.encoded(1)[:300]], ids=["empty", "text", "truncated"]
)
def test_a_corrupt_picture_is_refused_when_the_data_are_prepared(
    tmp_path: Path, folder: Path, content: bytes
) -> None:
    (folder / image_of(mini.TRAIN, 4)).write_bytes(content)
    refused(CUB(tmp_path / "cache", folder), r"_0004.jpg' cannot be read .* restore it, or remove it")


@pytest.mark.parametrize(
    ("mode", "size", "kind"),
    [("L", (40, 30), "JPEG"), ("CMYK", (40, 30), "JPEG"), ("RGB", (1, 1), "JPEG"), ("P", (9, 9), "PNG"),
     ("RGBA", (9, 9), "PNG"), ("1", (9, 9), "PNG")],
)  # fmt: skip
def test_odd_pictures_are_converted(
    tmp_path: Path, folder: Path, mode: str, size: tuple[int, int], kind: str
) -> None:
    (folder / image_of(mini.TEST, 0)).write_bytes(mini.encoded(5, mode, size, kind))
    x = CUB(tmp_path / "cache", folder).split("test").batch(slice(0, 1))["image"]
    assert x.shape == (1, 3, 64, 64)
    if mode == "L":
        assert torch.equal(x[0, 0], x[0, 2])


def test_sixteen_bit_grey_keeps_its_range() -> None:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 65535], [32768, 257]], np.uint16)).save(buffer, "PNG")
    assert decode_picture(buffer.getvalue(), 2, "x")[0].tolist() == [[0, 255], [128, 1]]


def test_captions_without_picture_or_words_are_left_out(tmp_path: Path, folder: Path) -> None:
    (folder / text_of(mini.TRAIN, 2)).write_text("\n  \na bird\n", encoding="utf-8")
    (folder / text_of(mini.TRAIN, 3)).write_text("", encoding="utf-8")
    mini.write(folder, {text_of(mini.TRAIN, 99): b"a bird without a picture\n"})
    data = CUB(tmp_path / "cache", folder)
    assert "partial cub: 19 of 20 train pictures (181 captions)" in data.notes[0]
    assert "1 pictures are missing" in data.notes[1]


def test_records_with_an_empty_caption(tmp_path: Path) -> None:
    root = mini.packed_cub(tmp_path / "data")
    records = json.loads((root / "cub_records.json").read_text())
    records[0]["captions"][3] = "  "
    (root / "cub_records.json").write_text(json.dumps(records))
    assert CUB(tmp_path / "cache", root).notes[-1] == "1 captions without a word are left out"


@pytest.mark.parametrize(
    "name", ["../../evil.jpg", "/etc/images/001.x/evil.jpg", "C:\\images\\evil.jpg", "a/../b.jpg"]
)
@pytest.mark.parametrize("pack", [mini.tarred, mini.zipped], ids=["tar", "zip"])
def test_a_name_that_climbs_out_of_its_archive_is_refused(tmp_path: Path, name: str, pack) -> None:  # noqa: ANN001
    files = mini.cub_files()
    images = {k: v for k, v in files.items() if "images" in k} | {name: b"x"}
    mini.write(tmp_path / "data", {k: v for k, v in files.items() if "text" in k})
    (tmp_path / "data" / "CUB_200_2011.tgz").write_bytes(pack(images))
    refused(CUB(tmp_path / "cache", tmp_path / "data"), "climbs out of it")
    assert not (tmp_path / "evil.jpg").exists()


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path, folder: Path) -> None:
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(mini.encoded(1))
    victim = folder / image_of(mini.TRAIN, 4)
    victim.unlink()
    victim.symlink_to(outside)
    refused(CUB(tmp_path / "cache", folder), "leads out of")


def test_a_damaged_archive(tmp_path: Path) -> None:
    files = mini.cub_files()
    mini.write(tmp_path / "data", {k: v for k, v in files.items() if "text" in k})
    whole = mini.tarred({k: v for k, v in files.items() if "images" in k})
    for content in (whole[: len(whole) // 2], b"hello"):
        (tmp_path / "data" / "CUB_200_2011.tgz").write_bytes(content)
        refused(CUB(tmp_path / "cache", tmp_path / "data"), "damaged")


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    files = mini.cub_files()
    mini.write(tmp_path / "data", {k: v for k, v in files.items() if "text" in k})
    locked = bytearray(mini.zipped({k: v for k, v in files.items() if "images" in k}))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = locked.find(signature)
        while at >= 0:
            locked[at + flags] |= 1  # needs a password
            at = locked.find(signature, at + 1)
    (tmp_path / "data" / "CUB_200_2011.tgz").write_bytes(locked)
    refused(CUB(tmp_path / "cache", tmp_path / "data"), "encrypted")


def arrays(**replaced: np.ndarray) -> bytes:
    """An npz file of two pictures, some of its arrays replaced."""
    file = io.BytesIO()
    plain = {"images": np.zeros((2, 4, 4, 3), np.uint8), "image_id": np.array([1, 2])}
    np.savez(file, **{**plain, **replaced})
    return file.getvalue()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("cub_records.json", b"{}", "no list of records"),
        ("cub_records.json", b"[{", "cannot be read"),
        ("cub_records.json", b'[{"image_id": 1, "captions": ["a"]}]', "no list of records with .*class_id"),
        ("cub_records.json", b'[{"image_id": 1, "captions": ["a"], "class_id": null}]', "no list of records"),
        ("cub_64.npz", b"hello", "cannot be read"),
        ("cub_64.npz", arrays(image_id=np.array([0.5, 1.5])), "one RGB picture for every entry"),
        ("cub_64.npz", arrays(image_id=np.array([[1], [2]])), "one RGB picture for every entry"),
        ("cub_64.npz", arrays(image_id=np.array(7)), "one RGB picture for every entry"),
        ("cub_64.npz", arrays(images=np.zeros((2, 4, 4), np.uint8)), "one RGB picture for every entry"),
    ],
)
def test_a_bad_packed_file(tmp_path: Path, file: str, content: bytes, words: str) -> None:
    root = mini.packed_cub(tmp_path / "data")
    (root / file).write_bytes(content)
    refused(CUB(tmp_path / "cache", root), words)


def test_bad_annotations_and_too_few_pictures(tmp_path: Path) -> None:
    files = mini.coco_files() | {"annotations/captions_val2014.json": b'{"annotations": [{"id": 1}]}'}
    refused(COCO(tmp_path / "cache", mini.write(tmp_path / "a", files)), "is no file of captions")
    only = {k: v for k, v in mini.cub_files().items() if mini.TEST not in k}
    refused(CUB(tmp_path / "cache", mini.write(tmp_path / "b", only)), "0 captioned 'test' pictures")


def test_a_damaged_prepared_copy_is_built_anew(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = CUB(tmp_path / "cache", folder)
    path = first.folder / "test.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    assert CUB(tmp_path / "cache", folder).fingerprint == first.fingerprint
    assert "not used" in caplog.text


def test_compressed_pictures_index_as_a_tensor_does() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 7)).astype(np.uint8)
    packed = [Compressed.pack(p) for p in pictures]
    ends = torch.tensor(np.cumsum([len(p) for p in packed]))
    kept = Compressed(torch.frombuffer(bytearray(b"".join(packed)), dtype=torch.uint8), ends, (3, 6, 7))
    plain = torch.from_numpy(pictures)
    rows = torch.tensor([4, 0, 0, 2])
    for held in (Shared(kept, rows), Shared(plain, rows)):
        assert len(held) == 4 and held.shape == (4, 3, 6, 7) and held.device.type == "cpu"
        for index in (slice(1, 3), torch.tensor([3, 0]), torch.tensor([], dtype=torch.int64), slice(0, 0)):
            assert torch.equal(held[index], plain[rows[index]])
        assert torch.equal(held[2], plain[0])
        assert torch.equal(held.to("cpu")[0], plain[4])


def test_walking_an_archive_and_a_folder_finds_the_same(tmp_path: Path) -> None:
    import re

    files = mini.coco_files()
    mini.write(tmp_path / "f", files)
    (tmp_path / "a.zip").write_bytes(mini.zipped(files))
    (tmp_path / "a.tgz").write_bytes(mini.tarred(files))
    wanted = re.compile(r"\.jpg$")
    found = [dict(walk(tmp_path / name, wanted)) for name in ("f", "a.zip", "a.tgz")]
    assert found[0] == found[1] == found[2] == {k: v for k, v in files.items() if k.endswith(".jpg")}


# -- the partial folders that a developer may have ----------------------------------------------------

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
REAL = os.environ.get("BENCH_DATA", "") or (str(SHARED) if SHARED.is_dir() else "")


@pytest.mark.skipif(
    not REAL, reason="no BENCH_DATA and no ../shared/data: the partial folders of CUB and MSCOCO are not here"
)
@pytest.mark.parametrize("kind", [CUB, CUB256, COCO])
def test_the_partial_folder(kind: type[CUB], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    name = "coco" if kind is COCO else "cub"
    if not (Path(REAL) / name).is_dir():
        pytest.skip(f"BENCH_DATA holds no folder '{name}'")
    data = kind(tmp_path, Path(REAL))
    (note,) = data.notes
    assert note.startswith(f"partial {data.name}: ")
    if kind is not COCO:
        assert "275 of 8,855 train pictures (2,750 captions) and 268 of 2,933 test pictures (2,680" in note
        assert [len(data.split(s)) for s in ("train", "val", "test")] == [2610, 140, 2680]
    x = data.split("test").batch(slice(0, 20))
    assert x["image"].shape == (20, 3, data.side, data.side) and (x["caption"] == 2).any(1).all()
    assert x["image"].std() > 0.1 and " " in data.sentence(x["caption"][0])


@pytest.mark.skipif(
    not REAL, reason="no BENCH_DATA and no ../shared/data: the official layout of CUB is not here"
)
def test_the_partial_official_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    root = Path(REAL) / "cub" / "official_layout"
    if not root.is_dir():
        pytest.skip("BENCH_DATA holds no cub/official_layout")
    data = CUB(tmp_path, root)
    assert "60 of 8,855 train pictures (600 captions) and 60 of 2,933 test pictures" in data.notes[0]
