"""Files of URLs: of each its own, whatever they are called."""

from pathlib import Path
from unittest import mock

import pytest
import torch

from ltm_det.compat.weight_files import cached, read_url
from ltm_det.engine.classes import names_of


@pytest.fixture
def fetch(tmp_path: Path):
    """A network whose files say where they are from."""

    def download(url: str, file: str) -> None:
        torch.save(dict(url=url), file)

    with (
        mock.patch.object(torch.hub, "get_dir", lambda: str(tmp_path)),
        mock.patch.object(torch.hub, "download_url_to_file", download) as network,
    ):
        yield network


def test_files_of_one_name_are_told_apart(fetch: object, tmp_path: Path) -> None:
    urls = [f"https://here/{run}/epoch_36.pth" for run in "ab"]
    for _ in range(2):
        assert [read_url(url)["url"] for url in urls] == urls
    assert cached(urls[0]).name == "epoch_36.pth" != cached(urls[1]).name


def test_what_lies_there_already_is_taken(fetch: object, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    torch.save(dict(url="by hand"), tmp_path / "checkpoints/swin.pth")
    assert read_url("https://here/swin.pth")["url"] == "by hand"


def test_a_file_of_this_machine_is_read_where_it_is(fetch: object, tmp_path: Path) -> None:
    for text in ("a", "b"):  # the second time it has changed
        torch.save(dict(text=text), tmp_path / "c d.pth")
        assert read_url(f"file://{tmp_path}/c%20d.pth")["text"] == text


@pytest.mark.parametrize(
    ("meta", "names"),
    [
        (dict(dataset_meta=dict(classes=["a", "b"])), ("a", "b")),
        (dict(dataset_meta=dict(CLASSES=["a", "b"])), ("a", "b")),
        (dict(dataset_meta=dict(classes=["a"], CLASSES=["b"])), ("b",)),  # as mmdet takes it
        (dict(CLASSES=("a",)), ("a",)),
        (dict(iter=3), ()),
        (dict(dataset_meta={}), ()),
        (dict(dataset_meta=None), ()),
    ],
)
def test_names_are_found_as_mmdet_finds_them(meta: dict, names: tuple) -> None:
    assert names_of(dict(meta=meta), "a.pth") == names


@pytest.mark.parametrize(
    "meta", [3, dict(dataset_meta={1: 2}), *(dict(CLASSES=[n]) for n in ("a\nb", "\ud800", " "))]
)
def test_what_is_no_name_is_refused(meta: object) -> None:
    with pytest.raises(ValueError, match="no names of classes"):
        names_of(dict(meta=meta), "a.pth")
