"""Records written from a folder: the same batches, whole or not there at all, local or behind a URL."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from kpjax.__main__ import main
from kpjax.config import Config, DataConfig
from kpjax.data import files
from kpjax.data.opening import has_validation, open_source
from kpjax.data.pipeline import train_batches
from kpjax.data.source import Source
from kpjax.data.tensorflow import import_tensorflow
from kpjax.data.tfds import Tfds
from kpjax.datasets import records
from kpjax.datasets.records import write_records
from kpjax.errors import DataError
from kpjax.training import run as train
from tests import fakes
from tests.folders import picture

pytest.importorskip("tensorflow_datasets")
ROOT = pathlib.Path(__file__).parents[2]


def odd_images(config: DataConfig) -> Callable[[dict], None]:
    """Puts in a transparent PNG, a CMYK, a grey, a large, a turned JPEG, odd boxes, a crowd, an id beyond 32 bits."""
    folder = pathlib.Path(config.train.images)

    def edit(d: dict) -> None:
        picture(2, 30, 30).convert("RGBA").save(folder / "2.png")
        picture(3, 57, 64).convert("CMYK").save(folder / "3.jpg")
        picture(4, 20, 51).convert("L").save(folder / "4.jpg")
        picture(5, 90, 170).save(folder / "5.jpg")
        exif = Image.Exif()
        exif[0x0112] = 6
        picture(1, 48, 64).save(folder / "sub" / "1.jpg", exif=exif)  # annotated as it is shown, 64 high
        d["images"][2]["file_name"] = "2.png"
        d["images"][5].update(height=90, width=170, id=2**40)
        for a in d["annotations"]:
            a["image_id"] = 2**40 if a["image_id"] == 45 else a["image_id"]
            a["bbox"][0] += 1 / 3  # not representable in 32 bits
            a["area"] = 59.9 + 1 / 7
        d["annotations"][0]["bbox"] = [-3.3, 1.1, 20, 900]
        d["annotations"][1]["iscrowd"] = 1
        d["annotations"][2]["bbox"] = [500, 1, 3, 3]

    return edit


@pytest.fixture
def odd(folder: Callable[..., DataConfig]) -> DataConfig:
    config = folder()
    return folder(odd_images(config))


def prepared(config: DataConfig, out: pathlib.Path, file_format: str, **more) -> DataConfig:
    """Write config's training split and return the configuration that reads it."""
    source = open_source(config, "train")
    write_records({"train": source}, str(out), file_format=file_format, **({"shards": 3} | more))
    return dataclasses.replace(config, source="tfds", tfds_name="kpjax_records", tfds_dir=str(out))


def assert_same_batches(one: DataConfig, other: DataConfig, steps: int = 5, **more) -> None:
    streams = [train_batches(open_source(c, "train"), c, batch=4, seed=3, **more) for c in (one, other)]
    for _ in range(steps):
        a, b = (next(stream) for stream in streams)
        assert a.keys() == b.keys()
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert one.dtype == other.dtype and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_batches_are_those_of_the_folder_bit_for_bit(odd: DataConfig, tmp_path: pathlib.Path, file_format: str) -> None:
    images, path = pathlib.Path(odd.train.images), pathlib.Path(odd.train.annotations)
    (images / "4.jpg").rename(images / "gr\udcfcn.jpg")  # the byte fc: not UTF-8
    path.write_text(path.read_text().replace('"4.jpg"', '"gr\\udcfcn.jpg"'))
    records = prepared(odd, tmp_path / "out", file_format)
    names = sorted(p.name for p in (tmp_path / "out" / "kpjax_records" / "1.0.0").glob("*-of-*"))
    assert [n.rpartition("-train.")[2] for n in names] == [f"{file_format}-0000{i}-of-00003" for i in range(3)]
    folder, written = open_source(odd, "train"), open_source(records, "train")
    assert [written.read(i) for i in range(7)] == [folder.read(i) for i in range(7)]
    assert written.classes == folder.classes and written.category_ids == (3, 7, 90)
    assert written.ground_truth() == folder.ground_truth()
    assert written.dropped == folder.dropped == {"crowd": 1, "outside the image": 1}
    assert_same_batches(odd, records)
    assert_same_batches(odd, records, steps=2, start_step=9, process_index=1, process_count=2)


def test_array_records_are_not_compressed(odd: DataConfig, tmp_path: pathlib.Path) -> None:
    """Nor are those that TFDS writes by itself any other than they were."""
    from array_record.python.array_record_module import ArrayRecordReader
    from tensorflow_datasets.core import file_adapters

    before = dict(file_adapters.ADAPTER_FOR_FORMAT)
    prepared(odd, tmp_path / "out", "array_record")
    paths = list((tmp_path / "out" / "kpjax_records" / "1.0.0").glob("*-of-*"))
    assert len(paths) == 3
    for path in paths:
        assert {"group_size:1", "uncompressed"} <= set(ArrayRecordReader(str(path)).writer_options_string().split(","))
    assert before == file_adapters.ADAPTER_FOR_FORMAT


def test_images_that_are_not_there_are_refused_or_become_empty_records(odd: DataConfig, tmp_path: pathlib.Path) -> None:
    (pathlib.Path(odd.train.images) / "6.jpg").unlink()
    with pytest.raises(DataError, match=r"6\.jpg: image not found"):
        prepared(odd, tmp_path / "out", "tfrecord")
    skipping = dataclasses.replace(odd, bad_images="skip")
    with pytest.raises(DataError, match=r"6\.jpg: cannot be read"):
        prepared(skipping, tmp_path / "out", "tfrecord")
    assert list((tmp_path / "out").iterdir()) == []
    records = prepared(skipping, tmp_path / "out", "tfrecord", skip_missing=True)
    assert_same_batches(skipping, records)


@pytest.mark.parametrize("damaged", ["crowd", "area", "id", "pixels"])
def test_what_was_written_is_compared_with_the_folder(
    odd: DataConfig, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    """Of a crowd, which training never sees, as well as of what it does."""
    good = records._examples

    def wrong(split: str, source: Source, skip: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        for n, (key, example) in enumerate(good(split, source, skip)):
            if n == 6 and damaged == "pixels":
                example["image"] = io.BytesIO(example["image"].read()[:-3] + b"\0\xff\xd9")
            for thing in (t for t in example["objects"] if t["is_crowd"]):
                if damaged == "crowd":
                    thing["exact"] = thing["exact"] + [0, 0, 1, 0, 0]
                elif damaged == "area":
                    thing["exact"] = thing["exact"] + [0, 0, 0, 0, 1]
                elif damaged == "id":
                    thing["id"] += 1000
            yield key, example

    monkeypatch.setattr(records, "_examples", wrong)
    with pytest.raises(DataError, match="do not say what it says"):
        prepared(odd, tmp_path / "out", "array_record")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_command_writes_both_splits_and_says_how_to_train(
    folder: Callable[..., DataConfig], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(d: dict) -> None:
        d["annotations"].reverse()  # not image by image, and with the id 0, which pycocotools cannot match
        d["annotations"][2]["id"] = 0

    config = folder(edit)
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from kpjax.config import Config, DataConfig, SplitConfig\n"
        f"def get_config():\n    split = SplitConfig({config.train.images!r}, {config.train.annotations!r})\n"
        "    return Config(steps=1, data=DataConfig(train=split, val=split))\n"
    )
    out = tmp_path / "out"
    command = ["records", "--config", str(recipe), "--out", str(out), "--shards", "2"]
    assert main([*command, "--config.data.max_boxes=5"]) == 0
    said = capsys.readouterr().out
    assert "7 images as train, 7 images as validation" in said and f"--config.data.tfds_dir={out}" in said
    settings = DataConfig(source="tfds", tfds_name="kpjax_records", tfds_dir=str(out))
    assert len(open_source(settings, "train")) == len(open_source(settings, "val")) == 7
    assert main(command) == 2  # it is there
    assert main([*command, "--config.data.max_bxes=5"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "already there" in errors[0] and "max_boxes" in errors[1]


def test_keypoints_are_written_where_there_are_any(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the file has them: pairs and sigmas are settings of whoever reads the records."""
    source = fakes.marker_source([(20, 30, [(9, 9, 6, 0)])], points=fakes.POINTS)
    truth = source.ground_truth()
    (tmp_path / truth["images"][0]["file_name"]).write_bytes(source.read(0))
    (tmp_path / "train.json").write_text(json.dumps(truth))
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from kpjax.config import Config, DataConfig, SplitConfig\n"
        f"def get_config():\n    split = SplitConfig({str(tmp_path)!r}, {str(tmp_path / 'train.json')!r})\n"
        "    return Config(steps=1, data=DataConfig(train=split, mirror_pairs='none', sigmas=(0.1,) * 4))\n"
    )
    command = ["records", "--config", str(recipe), "--split", "train", "--format", "tfrecord"]
    for more, points in (([], fakes.POINTS), (["--no-keypoints"], None)):
        out = tmp_path / f"out{len(more)}"
        assert main([*command, *more, "--out", str(out)]) == 0
        assert (", with 4 keypoints an object" in capsys.readouterr().out) == (points is not None)
        settings = DataConfig(source="tfds", tfds_name="kpjax_records", tfds_dir=str(out))
        found = open_source(settings, "train", keypoints=None)
        assert found.points == points and found.ground_truth()["annotations"][0].get("keypoints") == (
            truth["annotations"][0]["keypoints"] if points else None
        )
    with pytest.raises(DataError, match="has no keypoints; write it anew"):
        open_source(settings, "train", keypoints=True)
    with pytest.raises(DataError, match=r"markers has other keypoints than markers"):
        write_records({"train": source, "validation": fakes.marker_source([(20, 30, [])])}, str(tmp_path / "both"))


def test_a_set_without_validation_trains(
    folder: Callable[..., DataConfig], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The settings that the command prints are those of a run that evaluates nothing."""
    split, out = folder().train, tmp_path / "out"
    assert main(["records", "--images", split.images, "--annotations", split.annotations, "--out", str(out)]) == 0
    assert "--config.data.tfds_val= " in capsys.readouterr().out
    command = ["records", "--images", split.images, "--annotations", split.annotations, "--out", str(out / "val")]
    assert main([*command, "--split", "val"]) == 0
    said = capsys.readouterr().out
    assert "evaluate on it (no training split was written):" in said and "train with it" not in said
    settings = DataConfig(source="tfds", tfds_name="kpjax_records", tfds_dir=str(out), tfds_val="")
    assert not has_validation(settings) and has_validation(dataclasses.replace(settings, tfds_val="validation"))
    source = open_source(settings, "train")
    assert train._validation(Config(steps=1, data=settings), source) is None


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--out", "gs://bucket/x"], "local or mounted"),
        (["--out", "gs://bucket/x", "--format", "tfrecord"], "copy that"),
        (["--shards", "8"], "only 7 images"),
        (["--name", "My-Set"], "lower-case"),
        (["--name", "\u00e9t\u00e9"], "lower-case"),
        (["--config.data.bad_images=skip"], "give --config FILE instead"),
        (["--annotations", "no.json"], "no.json"),
    ],
)
def test_mistakes_are_one_line(
    folder: Callable[..., DataConfig],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
) -> None:
    split = folder().train
    command = ["records", "--images", split.images, "--annotations", split.annotations, "--out", str(tmp_path / "out")]
    assert main([*command, *arguments]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # no file may grow larger: a disk that is full
from kpjax.__main__ import main
sys.exit([main([*sys.argv[1:], "--format", f]) for f in ("array_record", "tfrecord")] != [2, 2])
"""

KILLED = """
import sys, time
import kpjax.datasets.records as records
from kpjax.__main__ import main
good = records._examples
def slow(split, source, skip):
    for n, example in enumerate(good(split, source, skip)):
        if n == 5:
            print("writing", file=sys.__stdout__, flush=True)
            time.sleep(60)
        yield example
records._examples = slow
sys.exit(main(sys.argv[1:]))
"""


def _python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def test_a_full_disk_is_one_line_and_leaves_nothing(folder: Callable[..., DataConfig], tmp_path: pathlib.Path) -> None:
    split, out = folder().train, tmp_path / "out"
    command = ["records", "--images", split.images, "--annotations", split.annotations, "--out", str(out)]
    ended = subprocess.run(_python(LIMITED, *command), capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stderr.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: ") and os.strerror(27) in line for line in lines)
    assert list(out.iterdir()) == []


def test_killed_while_writing_nothing_looks_complete_and_the_next_run_clears_up(
    folder: Callable[..., DataConfig], tmp_path: pathlib.Path
) -> None:
    config, out = folder(), tmp_path / "out"
    command = ["records", "--images", config.train.images, "--annotations", config.train.annotations]
    process = subprocess.Popen(
        _python(KILLED, *command, "--out", str(out)), stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(list(out.iterdir())) == 1  # what it had begun
    with pytest.raises(DataError, match="kpjax_records"):
        Tfds("kpjax_records", "train", str(out))
    other = out / f"kpjax_records.partial-another.host-{process.pid}"  # perhaps still at work
    other.mkdir()
    prepared(config, out, "array_record")
    assert sorted(p.name for p in out.iterdir()) == ["kpjax_records", other.name]


def damage(path: pathlib.Path, how: str, records: int = 7) -> None:
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "flipped":  # a bit of a record
        data = path.read_bytes()
        path.write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])
        next(path.parent.glob("kpjax_index_*")).unlink()
    elif how == "gone":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "fewer":  # a whole file, with fewer records than the set's index states
        if "array_record" in path.name:
            from array_record.python import array_record_module

            writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
            writer.write(b"one")
            writer.close()
        else:
            with import_tensorflow().io.TFRecordWriter(str(path)):
                pass


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], pathlib.Path]:
    from kpjax.datasets import shapes

    folder = tmp_path_factory.mktemp("set")
    shapes.write(str(folder / "shapes"), train=7, val=1, size=64)
    config = DataConfig()
    config.train.images = str(folder / "shapes" / "train")
    config.train.annotations = str(folder / "shapes" / "annotations" / "instances_train.json")
    made: dict[str, pathlib.Path] = {}

    def make(file_format: str) -> pathlib.Path:
        if file_format not in made:
            made[file_format] = folder / file_format
            prepared(config, made[file_format], file_format, shards=2)
        return made[file_format]

    return make


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize("how", ["cut", "flipped", "gone", "empty", "fewer"])
def test_a_damaged_set_is_one_line_that_names_the_file(
    pristine: Callable[[str], pathlib.Path], tmp_path: pathlib.Path, file_format: str, how: str
) -> None:
    shutil.copytree(pristine(file_format), tmp_path / "set")
    victim = next((tmp_path / "set").rglob("*-00001-of-00002"))
    damage(victim, how)
    with pytest.raises(DataError) as caught:
        Tfds("kpjax_records", "train", str(tmp_path / "set"))
    assert str(victim) in str(caught.value) and "\n" not in str(caught.value)
    assert "function_node" not in str(caught.value) and "RuntimeError" not in str(caught.value)
    if how == "fewer":
        assert "its index states 3" in str(caught.value)


def test_an_array_record_that_is_damaged_after_its_index_was_made_is_found_when_it_is_read(
    pristine: Callable[[str], pathlib.Path], tmp_path: pathlib.Path
) -> None:
    shutil.copytree(pristine("array_record"), tmp_path / "set")
    victim = next((tmp_path / "set").rglob("*-00001-of-00002"))
    damage(victim, "flipped")
    shutil.copy(next(pristine("array_record").rglob("kpjax_index_*")), victim.parent)
    source = Tfds("kpjax_records", "train", str(tmp_path / "set"))
    whole = Tfds("kpjax_records", "train", str(pristine("array_record")))
    for i in [6, 4, 5, 4, 0]:  # those before and after it in its file are as they were
        if i == 4:
            with pytest.raises(DataError) as caught:
                source.read(i)
            assert str(caught.value).startswith(f"{victim}: {source.files[4]} cannot be read (")
        else:
            assert source.read(i) == whole.read(i)


def test_array_records_are_read_by_many_threads_at_once_and_from_a_part_of_the_split(
    pristine: Callable[[str], pathlib.Path],
) -> None:
    whole = Tfds("kpjax_records", "train", str(pristine("array_record")))
    part = Tfds("kpjax_records", "train[2:6]", str(pristine("array_record")))
    files = [whole.read(i) for i in range(7)]
    assert len(set(files)) == 7 and [part.read(i) for i in range(4)] == files[2:6]
    asked = np.random.default_rng(0).integers(0, 7, 2000).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(whole.read, asked)) == [files[i] for i in asked]


@pytest.mark.parametrize(
    "said, text",
    [
        ("{{function_node __wrapped__IteratorGetNext_device_/job:a}} cut [Op:IteratorGetNext] name: ", "cut"),
        (
            "Error executing an HTTP request: libcurl code 6 meaning 'Could not resolve hostname', error details: "
            "Could not resolve host: a.com\n\t when reading metadata of 'gs://b/c'",
            "cannot be reached: Could not resolve host: a.com",
        ),
        ("libcurl code 28 meaning 'Timeout was reached', error details: ", "cannot be reached: Timeout was reached"),
        ("", "RuntimeError"),
    ],
)
def test_errors_of_other_libraries_in_plain_words(said: str, text: str) -> None:
    assert files.in_words(RuntimeError(said)) == text


def test_a_set_without_records_is_refused(pristine: Callable[[str], pathlib.Path], tmp_path: pathlib.Path) -> None:
    shutil.copytree(pristine("array_record"), tmp_path / "set")
    with pytest.raises(DataError, match="no records"):
        Tfds("kpjax_records", "train[3:3]", str(tmp_path / "set"))
    info = next((tmp_path / "set").rglob("dataset_info.json"))
    text = json.loads(info.read_text())
    text["splits"][0]["shardLengths"] = ["0", "0"]
    info.write_text(json.dumps(text))
    with pytest.raises(DataError, match="no records"):
        Tfds("kpjax_records", "train", str(tmp_path / "set"))


def test_a_shard_that_shrinks_after_opening_is_found_when_it_is_read(
    pristine: Callable[[str], pathlib.Path], tmp_path: pathlib.Path
) -> None:
    shutil.copytree(pristine("tfrecord"), tmp_path / "set")
    source = Tfds("kpjax_records", "train", str(tmp_path / "set"))
    for victim in (tmp_path / "set").rglob("*-of-00002"):
        damage(victim, "empty")
    with pytest.raises(DataError, match="bytes too early"):
        source.read(0)


def test_the_index_of_an_earlier_set_is_not_taken_for_that_of_a_later_one(
    folder: Callable[..., DataConfig], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder cannot be written to, and the sets differ in a box alone, not in any size."""

    def boxes() -> list[float]:
        return Tfds("kpjax_records", "train", str(tmp_path / "set")).objects[1].boxes[0].tolist()

    for n, left in enumerate((2.0, 4.0)):
        prepared(
            folder(lambda d, x=left: d["annotations"][0].update(bbox=[x, 2, 10, 7])), tmp_path / str(n), "tfrecord"
        )
    sizes = [sorted(p.stat().st_size for p in (tmp_path / n).rglob("*-of-*")) for n in "01"]
    assert sizes[0] == sizes[1]
    write = files.write_bytes

    def write_outside(path: str, data: bytes) -> None:
        if path.startswith(str(tmp_path / "set")):
            raise PermissionError
        write(path, data)

    monkeypatch.setattr(files, "write_bytes", write_outside)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for n, left in enumerate((2.0, 4.0)):
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        shutil.copytree(tmp_path / str(n), tmp_path / "set", ignore=shutil.ignore_patterns("kpjax_index_*"))
        assert boxes() == boxes() == [left, 2, left + 10, 9]
    assert len(list((tmp_path / "cache" / "kpjax").iterdir())) == 2


@pytest.fixture
def ram(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder of TensorFlow's file system in memory, which TFDS's paths know as they know gs://."""
    from etils.epath import backend, gpath, register

    tf = import_tensorflow()
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "ram", backend.tf_backend)
    monkeypatch.setitem(gpath._URI_MAP_ROOT, "ram://", "/ram/")
    monkeypatch.setattr(gpath, "_URI_SCHEMES", {*gpath._URI_SCHEMES, "ram"})
    monkeypatch.setattr(gpath, "_URI_PREFIXES", (*gpath._URI_PREFIXES, "ram://"))
    monkeypatch.setitem(register._URI_PREFIXES_TO_CLS, "ram://", gpath.PosixGPath)
    root = f"ram://bucket{time.monotonic_ns()}"
    tf.io.gfile.makedirs(root)
    yield root


def upload(folder: pathlib.Path, url: str) -> None:
    tf = import_tensorflow()
    for path in sorted(folder.rglob("*")):
        target = f"{url}/{path.relative_to(folder).as_posix()}"
        if path.is_dir():
            tf.io.gfile.makedirs(target)
        else:
            with tf.io.gfile.GFile(target, "wb") as file:
                file.write(path.read_bytes())


def test_an_image_folder_behind_a_url(odd: DataConfig, ram: str, tmp_path: pathlib.Path) -> None:
    upload(pathlib.Path(odd.train.images), f"{ram}/images")
    files.write_bytes(f"{ram}/instances.json", pathlib.Path(odd.train.annotations).read_bytes())
    remote = dataclasses.replace(odd)
    remote.train = type(odd.train)(f"{ram}/images/", f"{ram}/instances.json")
    assert_same_batches(odd, remote)
    assert open_source(remote, "train").files[1] == f"{ram}/images/sub/1.jpg"
    tf = import_tensorflow()
    tf.io.gfile.remove(f"{ram}/images/0.jpg")
    with pytest.raises(DataError, match=r"ram://.*/images/0\.jpg: image not found"):
        open_source(remote, "train")
    remote.bad_images = "skip"
    with pytest.raises(DataError, match=r"0\.jpg: cannot be read \(No such file"):
        open_source(remote, "train").read(0)
    for split in (
        type(odd.train)(f"{ram}/none", f"{ram}/instances.json"),
        type(odd.train)(f"{ram}/images", f"{ram}/n"),
    ):
        remote.train = split
        with pytest.raises(DataError, match=r"no such image folder|cannot be read"):
            open_source(remote, "train")


def test_tfrecord_behind_a_url_and_array_record_refused(pristine: Callable[[str], pathlib.Path], ram: str) -> None:
    for file_format in ("tfrecord", "array_record"):
        upload(pristine(file_format), f"{ram}/{file_format}")
    local = Tfds("kpjax_records", "train", str(pristine("tfrecord")))
    index = next(pristine("tfrecord").rglob("kpjax_index_*")).name
    tf = import_tensorflow()
    tf.io.gfile.remove(f"{ram}/tfrecord/kpjax_records/1.0.0/{index}")
    remote = Tfds("kpjax_records", "train", f"{ram}/tfrecord")
    assert tf.io.gfile.exists(f"{ram}/tfrecord/kpjax_records/1.0.0/{index}")  # made anew, beside the set
    assert [remote.read(i) for i in range(7)] == [local.read(i) for i in range(7)]
    assert remote.ground_truth() == local.ground_truth() and remote.category_ids == local.category_ids
    with pytest.raises(DataError, match=r"ram://.*local or mounted") as caught:
        Tfds("kpjax_records", "train", f"{ram}/array_record")
    assert "\n" not in str(caught.value)
