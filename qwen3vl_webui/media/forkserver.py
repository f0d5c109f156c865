"""The process that forks decoding children; `media/sandbox.py` starts it and talks to it.

It holds no secrets, no threads and no model, has imported every decoder and used each once (after confinement no
import works), and never touches an upload itself: it receives open descriptors and hands them to a fresh child.

Where there is no fork it runs one job and ends (`run_alone`).

One message on the control socket is one job: JSON of {function, limits, stream} with the descriptors channel, status,
input and, where a result is written to a file, target. The server answers on `status`: one byte when the child runs,
then the four bytes of its wait status. When the other side of `status` closes, the child is killed.
"""

from __future__ import annotations

import contextlib
import encodings
import errno
import gc
import importlib
import io
import json
import os
import pkgutil
import selectors
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import confinement, wire
from qwen3vl_webui.media.confinement import Limits

STARTED, NO_ROOM = b"S", b"X"
DECODING_ROOMS = ("image", "document", "video", "watching", "playback", "cutting", "subtitles", "sound")
PLUGINS = ("Avif", "Bmp", "Gif", "Jpeg", "Mpo", "Png", "Ppm", "Tiff", "WebP")


def serve(control: socket.socket) -> None:
    """Fork a child per job until the other side of `control` is gone."""
    null = os.open(os.devnull, os.O_RDWR)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that the wakeup descriptor is written
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(wake_read, selectors.EVENT_READ)
    children: dict[int, socket.socket] = {}  # process: status
    while True:
        for key, _ in selector.select():
            if key.fileobj is control:
                request, descriptors, *_ = socket.recv_fds(control, 1 << 16, 4)
                if not request:
                    os._exit(0)  # children die with this process
                process, status = _start(json.loads(request), descriptors, null)
                if process:
                    children[process] = status
                    selector.register(status, selectors.EVENT_READ, process)
            elif key.fileobj == wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
            elif key.data in children:  # whoever wanted the result has gone
                os.kill(key.data, signal.SIGKILL)
                selector.unregister(key.fileobj)
        _reap(children, selector)


def _start(request: dict[str, Any], descriptors: list[int], null: int) -> tuple[int, socket.socket]:
    channel, *files = descriptors[:1] + descriptors[2:]
    status = socket.socket(fileno=descriptors[1])
    module = request["function"].partition(":")[0]
    with contextlib.suppress(Exception):  # the child meets the same error and reports it
        importlib.import_module(module)  # here, so that the next child has it already
    server = os.getpid()
    try:
        process = os.fork()
    except OSError:
        process = -1
    if process == 0:
        _child(request, channel, files, null, server)
    for descriptor in (channel, *files):
        os.close(descriptor)
    with contextlib.suppress(OSError):
        status.sendall(STARTED if process > 0 else NO_ROOM)
    return max(process, 0), status


def _reap(children: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    while children:
        process, result = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            return
        status = children.pop(process)
        with contextlib.suppress(KeyError):
            selector.unregister(status)
        with contextlib.suppress(OSError):
            status.sendall(struct.pack("<i", result))
        status.close()


def _child(request: dict[str, Any], channel: int, files: list[int], null: int, server: int) -> None:
    """The whole life of a child; never returns."""
    code = 1
    try:
        confinement.die_with_parent(server)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        confinement.close_all_but([0, 1, 2, null, channel, *files])
        function = find(request["function"])
        confinement.limit(Limits(**request["limits"]))
        confinement.confine()
        for descriptor in (0, 1, 2):  # decoders print; until here an error of ours goes to the server's log
            os.dup2(null, descriptor)
        os.close(null)
        with socket.socket(fileno=channel) as opened, opened.makefile("rb") as reader:
            answer(function, reader, opened, open_files(files), request["stream"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def find(name: str) -> Callable[..., Any]:
    """The function named `module:qualname`."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def open_files(files: list[int] | list[str]) -> list[BinaryIO]:
    """The input, then the target where there is one."""
    return [open(files[0], "rb"), *(open(file, "w+b") for file in files[1:])]


def answer(
    function: Callable[..., Any],
    reader: BinaryIO,
    channel: socket.socket | BinaryIO,
    files: list[BinaryIO],
    stream: bool,
) -> None:
    """Read the arguments, run `function` and write what it returns or yields to `channel`, or why it failed."""
    _, size = wire.HEADER.unpack(reader.read(wire.HEADER.size))
    arguments = wire.decode(reader.read(size))
    try:
        result = function(*files, *arguments)
        for value in result if stream else (result,):
            wire.write_message(channel, wire.VALUE, value)
        for target in files[1:]:
            target.flush()
            os.fsync(target.fileno())
    except BrokenPipeError:  # nobody reads any more
        return
    except Exception as error:
        wire.write_message(channel, wire.FAILED, describe(error))
    else:
        wire.write_message(channel, wire.DONE)


def run_alone() -> None:
    """One job where nothing can be forked: its description is the first line of stdin, its results go to stdout."""
    reader, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):  # decoders print
        os.dup2(null, descriptor)
    leave_out_onnxruntime()
    request = json.loads(reader.readline())
    files = open_files(request["files"])
    confinement.limit(Limits(**request["limits"]))
    answer(find(request["function"]), reader, results, files, request["stream"])


def describe(error: Exception) -> dict[str, str]:
    """What the parent needs to make a sentence: its own for a MediaError, else a kind; `detail` is for the log."""
    if isinstance(error, MediaError):
        return {"kind": "sentence", "sentence": error.sentence, "code": error.code, "detail": ""}
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "malloc" in text or "Cannot allocate memory" in text:
        kind = "memory"
    elif isinstance(error, OSError) and error.errno in (errno.EFBIG, errno.ENOSPC):
        kind = "room"
    else:
        kind = "damaged"
    lines = traceback.format_exception(error, limit=-4)
    return {"kind": kind, "sentence": "", "code": "", "detail": "".join(lines)[-2000:]}


def leave_out_onnxruntime() -> None:
    """PyMuPDF would load it, with its threads, for an analysis of layouts that is not used here."""
    for name in ("pymupdf.layout", "pymupdf4llm"):
        sys.modules[name] = None  # type: ignore[assignment]


def warm() -> None:
    """Import every decoder and use it once: libraries import parts of themselves on first use."""
    leave_out_onnxruntime()
    for module in pkgutil.iter_modules(encodings.__path__, "encodings."):  # each is imported when first named
        with contextlib.suppress(ImportError):  # two exist on Windows only
            importlib.import_module(module.name)
    import av
    import numpy as np
    import numpy.ma
    import pymupdf
    from PIL import Image, ImageCms, ImageOps  # noqa: F401

    for plugin in PLUGINS:
        importlib.import_module(f"PIL.{plugin}ImagePlugin")
    Image._initialized = 2  # otherwise an unknown file makes Pillow import the other 30 plugins
    pixels = np.zeros((64, 64, 3), np.uint8)
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        picture = io.BytesIO()
        Image.fromarray(pixels).save(picture, form)
        np.asarray(ImageOps.exif_transpose(Image.open(picture, formats=[form])).convert("RGB"))

    document = pymupdf.open()
    page = document.new_page()
    page.insert_text((72, 72), "warm")
    document = pymupdf.open(stream=document.tobytes(), filetype="pdf")
    page = document[0]
    page.get_text("words", sort=True)
    page.search_for("warm")
    page.get_pixmap(matrix=pymupdf.Matrix(0.1, 0.1), alpha=False)
    document.close()

    film = io.BytesIO()
    with av.open(film, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    film.seek(0)
    with av.open(film, "r") as container:
        for frame in container.decode(video=0):
            frame.reformat(32, 32, "rgb24").to_ndarray()
            frame.to_image()

    for room in DECODING_ROOMS:
        name = f"qwen3vl_webui.media.{room}"
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # children do not touch, and so do not copy, what is here now


if __name__ == "__main__":
    if sys.argv[1] == "alone":
        run_alone()
    else:
        opened = socket.socket(fileno=int(sys.argv[1]))
        warm()
        serve(opened)
