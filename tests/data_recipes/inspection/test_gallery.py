import base64
import io
import re

import pytest
from helpers.inspection_runs import draw, in_order, inspect, row, save, table
from PIL import Image

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(1)">'


@pytest.fixture
def page(tmp_path):
    """The page of a data set with 30 risky rows and one clean one, whose texts are hostile."""
    save(tmp_path, *range(30))
    draw(40, (800, 300)).save(tmp_path / "large.png")
    rows = [row(f"{n}.png", n, question=f"{HOSTILE} {n}") for n in range(30)]
    table(tmp_path, *rows, row("large.png", 40, risky=False, answer=HOSTILE))
    inspect(tmp_path, tmp_path / "out")
    return (tmp_path / "out" / "gallery.html").read_text(encoding="utf-8")


def figures(page):
    return re.findall(r"<figure>(.*?)</figure>", page, re.DOTALL)


def test_the_page_loads_nothing(page):
    policy = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]*)"', page)[1]
    assert "default-src 'none'" in policy and "http" not in policy
    assert set(re.findall(r'(?:src|href)="([^":,]*)', page)) == {"data"}
    assert "url(" not in page and "@import" not in page


def test_24_images_of_each_type_spread_evenly(page):
    shown = figures(page)
    assert len(shown) == 25 and "labels.csv:2<" in shown[0] and "labels.csv:31<" in shown[23]


def test_thumbnails_are_small_jpegs(page):
    for name, data in re.findall(r'<img src="data:image/(\w+);base64,([^"]+)"', page):
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert name == "jpeg" and image.format == "JPEG" and max(image.size) <= 256


def test_risky_images_are_blurred_behind_a_button_and_clean_ones_are_not(page):
    shown = figures(page)
    assert all(re.search(r'<button[^>]*aria-pressed="false"', figure) for figure in shown[:24])
    assert "<button" not in shown[24] and "<img" in shown[24]


def test_findings_are_on_the_page(tmp_path):
    rows = in_order(tmp_path)
    (tmp_path / "2.png").write_bytes(b"no image")
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    table(tmp_path, *rows, row("copy.png", 50, question="What is <image>"))
    assert inspect(tmp_path, tmp_path / "out")[0] == 1
    text = re.sub(r"<[^>]+>", " ", (tmp_path / "out" / "gallery.html").read_text(encoding="utf-8"))
    for finding in (
        "2.png: ",
        "labels.csv:4",
        "contains &#39;&lt;image&gt;&#39;",
        "labels.csv:2 0.png = labels.csv:14 copy.png",
    ):
        assert finding in text
