import pytest
from PIL import Image

from safety_modules.prompt.images import ImageError, load_image


def test_every_mode_becomes_upright_rgb(tmp_path):
    for mode, suffix in (("RGB", "png"), ("P", "png"), ("L", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("1", "bmp")):
        path = tmp_path / f"{mode}.{suffix}"
        Image.new(mode, (6, 4)).save(path)
        assert load_image(path).mode == "RGB" and load_image(path).size == (6, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (6, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (4, 6)


def test_a_jpeg_named_png_is_read(tmp_path):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png", format="JPEG")
    assert load_image(tmp_path / "a.png").size == (6, 4)


def test_bad_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(ImageError, match="nowhere.png: no such file"):
        load_image(tmp_path / "nowhere.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ImageError, match="text.png: not a readable image"):
        load_image(tmp_path / "text.png")
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:400])
    with pytest.raises(ImageError, match="cut.jpg"):
        load_image(tmp_path / "cut.jpg")
    Image.new("RGB", (60, 60)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="bomb.png.*decompression bomb"):
        load_image(tmp_path / "bomb.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ImageError, match="large.png.*40 x 40 pixels may be"),
    ):
        load_image(tmp_path / "large.png")
