"""A tiny set with the feature spec of TFDS's coco/2017, written to disk in both file formats."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from kpjax.config import DataConfig
from kpjax.data.opening import open_source
from kpjax.data.pipeline import train_batches
from kpjax.data.tfds import COCO_CATEGORY_IDS, Tfds
from kpjax.errors import ConfigError, DataError
from kpjax.images.decode import decode

tfds = pytest.importorskip("tensorflow_datasets")

NAMES = ["cat", "dog", "bird"]
COUNT = 7


def jpeg(n: int) -> bytes:
    pixels = np.random.default_rng(n).integers(0, 256, (5 + n, 9, 3), np.uint8)
    image = Image.fromarray(pixels).resize((90, 50 + 10 * n))
    out = io.BytesIO()
    image.save(out, "JPEG")
    return out.getvalue()


class TinyObjects(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = None

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "image/filename": tfds.features.Text(),
                    "image/id": np.int64,
                    "objects": tfds.features.Sequence(
                        {
                            "area": np.int64,
                            "bbox": tfds.features.BBoxFeature(),
                            "id": np.int64,
                            "is_crowd": np.bool_,
                            "label": tfds.features.ClassLabel(names=NAMES),
                        }
                    ),
                }
            )
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for n in range(COUNT):
            height, width = 50 + 10 * n, 90
            objects = [
                {
                    "area": 10 * k + n,
                    "bbox": tfds.features.BBox(5 / height, 10 / width, (25 + k) / height, (40 + k) / width),
                    "id": 100 * n + k,
                    "is_crowd": k == 2,
                    "label": NAMES[(n + k) % 3],
                }
                for k in range(n % 4)
            ]
            example = {"image": io.BytesIO(jpeg(n)), "image/filename": f"{n}.jpg", "image/id": 1000 + n}
            yield n, example | {"objects": objects}


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def prepared(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    TinyObjects(data_dir=folder, file_format=request.param).download_and_prepare()
    return str(folder)


def test_boxes_of_a_set_without_sizes_fit_stored_pixels_alone(prepared):
    assert len(Tfds("tiny_objects", "train", prepared, exif="ignore")) == COUNT
    with pytest.raises(ConfigError, match=r"exif is 'apply', but the records of 'tiny_objects' do not state the size"):
        Tfds("tiny_objects", "train", prepared, exif="apply")


def by_id(source):
    return {int(image_id): i for i, image_id in enumerate(source.image_ids)}


def test_every_record_is_found_with_its_bytes_and_boxes(prepared):
    source = Tfds("tiny_objects", "train", prepared)
    assert len(source) == COUNT and source.classes == tuple(NAMES) and source.category_ids == (1, 2, 3)
    assert source.dropped == {"crowd": 1}  # only image 3 has an object number 2
    for n in range(COUNT):
        i = by_id(source)[1000 + n]
        assert source.read(i) == jpeg(n) and source.files[i] == f"{n}.jpg"
        assert (source.heights[i], source.widths[i]) == (50 + 10 * n, 90)
        kept = [k for k in range(n % 4) if k != 2]
        expected = np.array([[10, 5, 40 + k, 25 + k] for k in kept], np.float32).reshape(-1, 4)
        objects = source.objects[i]
        np.testing.assert_allclose(objects.boxes[objects.valid], expected, atol=1e-4)
        assert objects.labels[objects.valid].tolist() == [(n + k) % 3 for k in kept]
        assert len(objects) == n % 4  # the crowd stays, as a region to ignore
    truth = source.ground_truth()
    assert len(truth["annotations"]) == sum(n % 4 for n in range(COUNT))
    crowd = next(a for a in truth["annotations"] if a["iscrowd"])
    assert crowd["image_id"] == 1003 and crowd["area"] == 23 and crowd["category_id"] == (3 + 2) % 3 + 1


def test_the_index_is_built_once_and_a_slice_has_its_own(prepared, monkeypatch):
    whole = Tfds("tiny_objects", "train", prepared)
    part = Tfds("tiny_objects", "train[2:5]", prepared)
    assert part.image_ids.tolist() == whole.image_ids[2:5].tolist()
    assert [part.read(i) for i in range(3)] == [whole.read(i) for i in range(2, 5)]
    monkeypatch.setattr("kpjax.data.tfds._collect", lambda *_: pytest.fail("scanned again"))
    assert Tfds("tiny_objects", "train", prepared).image_ids.tolist() == whole.image_ids.tolist()


def test_pipeline_reads_it(prepared):
    data = DataConfig(source="tfds", tfds_name="tiny_objects", tfds_dir=prepared, canvas=128, max_boxes=4, threads=1)
    source = open_source(data, "train")
    batch = next(train_batches(source, data, batch=COUNT, seed=3))
    assert sorted(batch["index"].tolist()) == list(range(COUNT))
    for slot, record in enumerate(batch["index"]):
        pixels = decode(source.read(record), "")
        np.testing.assert_array_equal(batch["canvas"][slot, : pixels.shape[0], : pixels.shape[1]], pixels)


def test_coco_keeps_its_published_category_ids():
    assert len(COCO_CATEGORY_IDS) == 80 and COCO_CATEGORY_IDS[0] == 1 and COCO_CATEGORY_IDS[-1] == 90
    assert COCO_CATEGORY_IDS[11] == 13 and 83 not in COCO_CATEGORY_IDS


def test_unprepared_sets_and_unknown_splits_are_one_line(prepared, tmp_path):
    with pytest.raises(DataError, match=r"tiny_objects.*tfds build") as bad:
        Tfds("tiny_objects", "train", str(tmp_path))
    assert "\n" not in str(bad.value)
    with pytest.raises(DataError, match=r"no split 'test'.*train") as bad:
        Tfds("tiny_objects", "test", prepared)
    assert "\n" not in str(bad.value)
    with pytest.raises(DataError, match="no_such_set_at_all"):
        Tfds("no_such_set_at_all", "train", str(tmp_path))
