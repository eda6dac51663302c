"""Labels in a CSV file, as ISIC-2020 and many others have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from biotune.data import UnusableImageError
from biotune.images import ImageTableSource, LabelTable, open_source

ISIC = (
    "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,"
    "benign_malignant,target\n"
    "ISIC_2637011,IP_7279968,male,45.0,head/neck,unknown,benign,0\n"
    "ISIC_0015719,IP_3075186,female,45.0,upper extremity,melanoma,malignant,1\n"
    "ISIC_0052212,IP_2842074,female,50.0,lower extremity,nevus,benign,0\n"
)


def table(folder: Path, text: str, **columns: str) -> LabelTable:
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    named = {"image_column": "image", "label_column": "label"} | columns
    return LabelTable(folder / "labels.csv", **named)


def save(folder: Path, *names: str) -> None:
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (shade, 0, 0)).save(folder / name)


def test_isic_2020_as_it_is_published(tmp_path):
    names = ("ISIC_2637011.jpg", "ISIC_0015719.jpg", "ISIC_0052212.jpg")
    save(tmp_path / "train", *names)
    columns = {"image_column": "image_name", "label_column": "benign_malignant"}
    source = open_source("image_csv", tmp_path / "train", table=table(tmp_path, ISIC, **columns))
    assert source.name == "image_csv"
    assert source.paths == list(names)
    assert source.classes == ("benign", "malignant")
    assert source.labels.tolist() == [0, 1, 0]
    assert source.labels.dtype == np.int64
    assert source.splits is None
    assert source.load(2).shape == (3, 4, 3)


def test_a_split_column_is_used_and_classes_are_in_natural_order(tmp_path):
    save(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    text = "image,label,part\na/1.png,10,Train\na/2.png,9,valid\nb/3.png,10,test\n"
    source = ImageTableSource(tmp_path, table(tmp_path, text, split_column="part"), "white")
    assert source.classes == ("9", "10")
    assert source.splits == ["train", "validation", "test"]


def test_a_table_that_excel_wrote_is_read(tmp_path):
    save(tmp_path, "1.png", "2.png")
    written = table(tmp_path, "")
    written.file.write_bytes('\ufeffimage,label\r\n1.png,"Käfer, rot"\r\n2.png,ant\r\n'.encode())
    assert ImageTableSource(tmp_path, written, "white").classes == ("ant", "Käfer, rot")


def test_a_row_whose_image_is_missing_is_an_image_that_cannot_be_used(tmp_path):
    save(tmp_path, "1.png")
    source = ImageTableSource(tmp_path, table(tmp_path, "image,label\n1,a\n2,b\n"), "white")
    assert source.paths == ["1.png", "2"]
    with pytest.raises(UnusableImageError, match="no such file"):
        source.load(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'image'; it has none"),
        ("file,label\n1.png,a\n", "no column 'image'; it has file, label"),
        ("image,label\n1.png,a\n2.png,\n", "line 3: the column label is empty"),
        ("image,label\n1.png,a\n2.png\n", "line 3: has fewer columns than the header"),
        ("image,label\n1.png,a\n2.png,b\n1.png,b\n", "line 4: 1.png is in line 2 already"),
        ("image,label\n1.png,a\n../2.png,b\n", "line 3: ../2.png is outside the images' folder"),
        ("image,label\n/etc/1.png,a\n2.png,b\n", "line 2: /etc/1.png is outside the images'"),
        ("image,label\n1.png,a\n2.png,a\n", "two classes or more, the column label has a"),
        ("image,label\n", "two classes or more, the column label has none"),
    ],
)
def test_a_table_that_cannot_be_used_is_a_clear_error(tmp_path, text, message):
    save(tmp_path, "1.png", "2.png")
    with pytest.raises(ValueError, match=rf"labels\.csv.*{message}"):
        ImageTableSource(tmp_path, table(tmp_path, text), "white")


def test_an_unknown_split_names_line_and_choices(tmp_path):
    text = "image,label,part\n1.png,a,train\n2.png,b,holdout\n"
    with pytest.raises(ValueError, match=r"line 3: the split 'holdout' .* train, training, valid"):
        ImageTableSource(tmp_path, table(tmp_path, text, split_column="part"), "white")


def test_a_name_without_ending_that_two_files_have_is_refused(tmp_path):
    save(tmp_path, "1.png", "1.jpg", "2.png")
    with pytest.raises(
        ValueError, match=r"has both 1\.(png|jpg) and 1\.(png|jpg): give the endings"
    ):
        ImageTableSource(tmp_path, table(tmp_path, "image,label\n1,a\n2,b\n"), "white")


def test_what_is_missing_is_named(tmp_path):
    missing = LabelTable(tmp_path / "labels.csv", "image", "label")
    with pytest.raises(FileNotFoundError, match=r"labels\.csv: prepare\.table\.file"):
        ImageTableSource(tmp_path, missing, "white")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: prepare\.path"):
        ImageTableSource(tmp_path / "nowhere", missing, "white")
    with pytest.raises(ValueError, match=r"image_csv needs prepare\.table"):
        open_source("image_csv", tmp_path)


def test_a_table_that_a_source_has_no_use_for_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"digits has no use for prepare\.table: set it to null"):
        open_source("digits", tmp_path, table=table(tmp_path, "image,label\n"))
