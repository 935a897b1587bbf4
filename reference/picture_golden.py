#!/usr/bin/env python3
"""Write small pictures of all kinds, and what transformers makes of them.

    pip install -r reference/requirements.txt
    python3 reference/picture_golden.py

writes reference/pictures/: the pictures, golden.json with the SHA-256 of every `pixel_values` (f32, little-endian, [3, height,
width]) that Gemma 3's image processor (the one on Pillow) makes of a file, and for the formats with losses decoded/NAME.png, the
pixels that Pillow decodes. A picture is drawn from its name alone, so that the files stay the same.
"""

import hashlib
import io
import itertools
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin
from transformers.image_utils import load_image
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

FOLDER = Path(__file__).resolve().parent / "pictures"

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
SMALL = {"size": {"height": 56, "width": 56}, **HALF}
PROCESSORS = {
    "small": SMALL,
    "896": {"size": {"height": 896, "width": 896}, **HALF},
    "default": {},
    "odd": {"size": {"height": 31, "width": 47}},
    **{
        name: {**SMALL, "resample": resample}
        for name, resample in [("nearest", 0), ("lanczos", 1), ("bicubic", 3), ("box", 4), ("hamming", 5)]
    },
    "scale": {**SMALL, "rescale_factor": 1 / 127.5, "image_mean": [1.0, 0.9, 0.7], "image_std": [0.3, 0.7, 0.1]},
    "no-normalize": {**SMALL, "do_normalize": False},
    "no-rescale": {**SMALL, "do_rescale": False},
    "bytes": {**SMALL, "do_rescale": False, "do_normalize": False},
    "no-resize": {"do_resize": False},
    "crops": {
        **SMALL,
        "do_pan_and_scan": True,
        "pan_and_scan_min_crop_size": 20,
        "pan_and_scan_max_num_crops": 4,
        "pan_and_scan_min_ratio_to_activate": 1.2,
    },
}


def drawn(name, height, width, channels, most=255):
    """Waves, and a few pixels that stand out: [height, width, channels] of whole numbers up to `most`."""
    rng = np.random.default_rng(list(name.encode()))
    y, x = np.mgrid[:height, :width][..., None] / max(height, width, 2)
    slope, bend, phase = rng.uniform(-9, 9, (3, channels))
    waves = 0.5 + 0.5 * np.sin(slope * x + bend * y + phase)
    pixels = np.rint(waves * most).astype(np.uint32)
    for _ in range(12):
        pixels[rng.integers(height), rng.integers(width)] = rng.integers(0, most + 1, channels)
    return pixels


def png(pixels, colour, depth=8, interlaced=False, chunks=()):
    """A PNG file of these pixels. Pillow writes neither interlaced ones nor all depths."""
    height, width, _ = pixels.shape

    def rows(part):
        for row in part.reshape(part.shape[0], -1):
            if depth == 16:
                packed = row.astype(">u2").tobytes()
            else:
                bits = (row[:, None] >> np.arange(depth)[::-1]) & 1
                packed = np.packbits(bits.astype(np.uint8)).tobytes()
            yield b"\0" + packed

    # Where the seven passes begin and how far apart their pixels are.
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [pixels[y::down, x::right] for y, x, down, right in passes] if interlaced else [pixels]
    data = b"".join(row for part in parts if part.size for row in rows(part))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    chunks = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data, 9)), (b"IEND", b"")]
    framed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def drawn_png(name, height, width, colour, depth=8, interlaced=False, chunks=()):
    return png(drawn(name, height, width, CHANNELS[colour], 2**depth - 1), colour, depth, interlaced, chunks)


def palette(entries):
    return (b"PLTE", np.random.default_rng(7).integers(0, 256, 3 * entries).astype(np.uint8).tobytes())


def exif(orientation, order="<"):
    """The EXIF block of an orientation, in either byte order."""
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(order + "HIHHHIHHI", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def xmp(orientation):
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'


def itxt(keyword, text):
    return (b"iTXt", keyword.encode() + b"\0\0\0\0\0" + text.encode())


def raw_profile(block):
    """EXIF as ImageMagick once put it into a PNG."""
    block = b"Exif\0\0" + block
    return (b"tEXt", b"Raw profile type exif\0" + f"\nexif\n{len(block):8}\n{block.hex()}\n".encode())


def saved(name, height, width, mode, format, **options):
    """A picture that Pillow writes."""
    pixels = drawn(name, height, width, len(Image.new(mode, (1, 1)).getbands())).astype(np.uint8)
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, mode=mode)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def ycck(cmyk):
    """A CMYK JPEG whose Adobe marker says that three of its components are YCbCr."""
    at = cmyk.index(b"Adobe\0") + 11
    return cmyk[:at] + b"\2" + cmyk[at + 1 :]


def gif(name, height, width, at=(0, 0), screen=None, entries=64, local=False, transparent=None, **options):
    """A GIF with one frame at a place on its screen."""
    pixels = (drawn(name, height, width, 1, 255).squeeze(-1) % entries).astype(np.uint8)
    frame = Image.fromarray(pixels, mode="P")
    frame.putpalette(palette(entries)[1])
    file = io.BytesIO()
    frame.save(file, "GIF", optimize=False, **options)
    data = file.getvalue()
    table = 3 << ((data[10] & 7) + 1)
    head, colours, rest = data[:13], data[13 : 13 + table], data[13 + table :]
    begin = rest.index(b",")
    extension, frame = rest[:begin], bytearray(rest[begin:])
    if transparent is not None:
        extension = b"\x21\xf9\x04\x01\0\0" + bytes([transparent]) + b"\0"
    frame[1:5] = struct.pack("<HH", *at)
    if screen:
        head = head[:6] + struct.pack("<HH", *screen) + head[10:]
    if local:
        # Its own colours, after others for the screen.
        frame = frame[:9] + bytes([frame[9] | 0x80 | head[10] & 7]) + colours + frame[10:]
        colours = bytes(reversed(colours))
    return head + colours + extension + bytes(frame)


def animation(name, format, **options):
    frames = [Image.fromarray(drawn(f"{name}{i}", 24, 30, 3).astype(np.uint8)) for i in range(3)]
    file = io.BytesIO()
    frames[0].save(file, format, save_all=True, append_images=frames[1:], **options)
    return file.getvalue()


def pictures():
    sizes = [(1, 1), (1, 4000), (4000, 1), (3, 4001), (2, 2), (56, 56), (55, 56), (56, 113), (300, 7)]
    for height, width in sizes:
        name = f"rgb-{width}x{height}.png"
        yield name, drawn_png(name, height, width, RGB)
    for colour, kind in [(GREY, "grey"), (RGB, "rgb"), (GREY_ALPHA, "grey-alpha"), (RGBA, "rgba")]:
        for depth, interlaced in itertools.product((8, 16), (False, True)):
            name = f"{kind}-{depth}{'-interlaced' * interlaced}.png"
            yield name, drawn_png(name, 61, 43, colour, depth, interlaced)
    # What Pillow's 8 bits hold of 16.
    yield "grey-16-dark.png", png(drawn("grey-16-dark", 40, 40, 1, 300), GREY, 16)
    for depth in (1, 2, 4):
        yield f"grey-{depth}.png", drawn_png(f"grey-{depth}", 33, 29, GREY, depth)
        yield f"palette-{depth}.png", drawn_png(f"palette-{depth}", 30, 35, PALETTE, depth, chunks=[palette(2**depth)])
    yield "palette-8.png", drawn_png("palette-8", 64, 50, PALETTE, chunks=[palette(256)])
    transparent = [palette(256), (b"tRNS", bytes(range(0, 250, 5)))]
    yield "palette-transparent.png", drawn_png("palette-transparent", 64, 50, PALETTE, chunks=transparent)
    yield "palette-640x427.png", drawn_png("palette-640x427", 427, 640, PALETTE, 4, chunks=[palette(16)])
    yield "palette-short.png", drawn_png("palette-short", 64, 50, PALETTE, chunks=[palette(200)])
    yield "palette-interlaced.png", drawn_png("palette-i", 9, 70, PALETTE, 4, True, [palette(16)])
    # Rows with the filters that Pillow chooses.
    yield "filtered.png", saved("filtered.png", 50, 70, "RGB", "PNG")
    yield "grey-transparent.png", drawn_png("grey-transparent", 31, 30, GREY, chunks=[(b"tRNS", b"\0\x80")])
    for name, colour, depth, one in [
        ("rgb", RGB, 8, b"\0\xff\0\0\0\xff"),
        ("rgb-16", RGB, 16, b"\0\x40\0\x40\0\x40"),
        ("grey-1", GREY, 1, b"\0\0"),
        ("grey-1-white", GREY, 1, b"\0\1"),
        ("grey-2", GREY, 2, b"\0\0"),
        ("grey-4", GREY, 4, b"\0\3"),
        ("grey-16", GREY, 16, b"\x12\0"),
        ("palette-one", PALETTE, 4, b"\xff\xff\0\xff"),
    ]:
        name = f"{name}-transparent.png"
        # Few colours, so that the one is there.
        pixels = drawn(name, 31, 30, CHANNELS[colour], 2**depth - 1)
        if colour == RGB:
            pixels = np.where(pixels < 2 ** (depth - 1), 0x4040 * (depth == 16), 2**depth - 1)
        chunks = [palette(16)] * (colour == PALETTE) + [(b"tRNS", one)]
        yield name, png(pixels, colour, depth, chunks=chunks)
    for name, chunk in [
        ("exif-6.png", (b"eXIf", exif(6))),
        ("exif-5-motorola.png", (b"eXIf", exif(5, ">"))),
        ("exif-7-raw.png", raw_profile(exif(7))),
        ("exif-9.png", (b"eXIf", exif(9))),
        ("xmp-8.png", itxt("XML:com.adobe.xmp", xmp(8))),
    ]:
        yield name, drawn_png(name, 20, 33, RGB, chunks=[chunk])

    for orientation in range(1, 9):
        name = f"exif-{orientation}.jpg"
        yield name, saved(name, 19, 34, "RGB", "JPEG", quality=90, exif=b"Exif\0\0" + exif(orientation))
    for name, height, width, mode, options in [
        ("rgb-444.jpg", 60, 91, "RGB", {"subsampling": 0, "quality": 92}),
        ("rgb-422.jpg", 60, 91, "RGB", {"subsampling": 1, "quality": 85}),
        ("rgb-420.jpg", 60, 91, "RGB", {"subsampling": 2, "quality": 75}),
        ("rgb-420-coarse.jpg", 91, 60, "RGB", {"subsampling": 2, "quality": 20}),
        ("progressive.jpg", 77, 50, "RGB", {"progressive": True, "quality": 80}),
        ("restarts.jpg", 50, 77, "RGB", {"restart_marker_blocks": 3}),
        ("untransformed.jpg", 30, 41, "RGB", {"keep_rgb": True}),
        ("grey.jpg", 45, 45, "L", {}),
        ("cmyk.jpg", 33, 40, "CMYK", {"quality": 90}),
        ("1x1.jpg", 1, 1, "RGB", {}),
        ("3x5.jpg", 5, 3, "RGB", {}),
        ("large.jpg", 427, 640, "RGB", {"quality": 88}),
    ]:
        yield name, saved(name, height, width, mode, "JPEG", **options)
    yield "ycck.jpg", ycck(saved("ycck.jpg", 33, 40, "CMYK", "JPEG", quality=90))

    for name, height, width, mode, options in [
        ("lossless.webp", 50, 61, "RGB", {"lossless": True}),
        ("lossless-alpha.webp", 50, 61, "RGBA", {"lossless": True, "exact": True}),
        ("lossless-xmp-3.webp", 20, 33, "RGB", {"lossless": True, "xmp": xmp(3).encode()}),
        ("lossless-exif-8.webp", 20, 33, "RGB", {"lossless": True, "exif": b"Exif\0\0" + exif(8)}),
        ("lossy.webp", 50, 61, "RGB", {"quality": 80}),
        ("lossy-coarse.webp", 61, 50, "RGB", {"quality": 10}),
        ("lossy-alpha.webp", 50, 61, "RGBA", {"quality": 70}),
    ]:
        yield name, saved(name, height, width, mode, "WEBP", **options)
    yield "animated.webp", animation("animated.webp", "WEBP", lossless=True)

    yield "plain.gif", gif("plain.gif", 40, 33)
    yield "interlaced.gif", gif("interlaced.gif", 40, 33, interlace=1)
    yield "local.gif", gif("local.gif", 17, 20, local=True)
    yield "frame.gif", gif("frame.gif", 17, 20, at=(5, 8), screen=(40, 30))
    yield "frame-transparent.gif", gif("frame-transparent.gif", 17, 20, at=(5, 8), screen=(40, 30), transparent=9)
    yield "beyond.gif", gif("beyond.gif", 17, 20, at=(5, 8), screen=(10, 10))
    yield "grey.gif", saved("grey.gif", 17, 20, "L", "GIF")
    yield "animated.gif", animation("animated.gif", "GIF")


def processors_of(name):
    """What a picture is tried with beside the small size."""
    yield "small"
    if name in ("palette-640x427.png", "rgb-7x300.png", "rgb-1x1.png"):
        yield from (processor for processor in PROCESSORS if processor != "small")
    elif name in ("rgb-8.png", "rgb-4001x3.png", "rgb-1x4000.png", "rgb-4000x1.png"):
        yield from ("lanczos", "bicubic", "box", "hamming", "nearest", "odd", "crops")


def main():
    for file in [*FOLDER.glob("*.*"), *FOLDER.glob("decoded/*")]:
        file.unlink()
    (FOLDER / "decoded").mkdir(parents=True, exist_ok=True)
    cases = []
    for name, data in pictures():
        path = FOLDER / name
        path.write_bytes(data)
        image = load_image(str(path))
        case = {"file": name, "sha256": hashlib.sha256(data).hexdigest(), "width": image.width, "height": image.height}
        if name.endswith(".jpg") or name.startswith("lossy"):
            image.save(FOLDER / "decoded" / f"{name}.png", optimize=True)
        case["pixel_values"] = {}
        for processor in processors_of(name):
            made = Gemma3ImageProcessorPil(**PROCESSORS[processor])(str(path))
            values = [np.asarray(v, dtype="<f4").tobytes() for v in made["pixel_values"]]
            case["pixel_values"][processor] = [hashlib.sha256(v).hexdigest() for v in values]
        cases.append(case)
    golden = {"processors": PROCESSORS, "pictures": cases}
    (FOLDER / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    print(f"{len(cases)} pictures")


if __name__ == "__main__":
    main()
