"""gdcm, which decodes JPEG in DICOM and on damaged bytes may end the process it runs in, in a process of its own.

`python -m gazeprep.gdcm_process` is that process: files come in, pixels or messages go out, until its input ends.
"""

import atexit
import io
import os
import struct
import subprocess
import sys
import threading
from typing import IO

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels.utils import pixel_array

_LENGTH = struct.Struct("<Q")
_PIXELS, _MESSAGE = b"P", b"M"


def stored_pixels(file: bytes) -> npt.NDArray[np.integer]:
    """Decode the stored pixels (rows, cols) of a DICOM file; raises ValueError where they cannot be decoded."""
    return _process.decode(file)


class _GdcmProcess:
    """The process, which starts with the first file and again after one that ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def decode(self, file: bytes) -> npt.NDArray[np.integer]:
        with self._lock:
            running = self._started()
            assert running.stdin is not None
            assert running.stdout is not None
            try:
                _send(running.stdin, file)
                answer = _receive(running.stdout)
            except (OSError, EOFError):
                self.end()
                raise ValueError("the decoder broke down over the pixels") from None
        if answer.startswith(_MESSAGE):
            raise ValueError(answer[1:].decode())
        decoded: npt.NDArray[np.integer] = np.load(io.BytesIO(answer[1:]), allow_pickle=False)
        return decoded

    def _started(self) -> subprocess.Popen[bytes]:
        if self._running is None or self._owner != os.getpid():  # a fork's is its parent's
            command = [sys.executable, "-m", "gazeprep.gdcm_process"]
            pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
            self._running = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere)
            self._owner = os.getpid()
        return self._running

    def end(self) -> None:
        """End the process, if this one has it."""
        if self._running is not None and self._owner == os.getpid():
            self._running.kill()
            self._running.communicate()
        self._running = None


def _send(stream: IO[bytes], data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(header)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _answer(file: bytes) -> bytes:
    try:
        pixels = pixel_array(pydicom.dcmread(io.BytesIO(file)), raw=True, decoding_plugin="gdcm")
    except Exception as error:  # noqa: BLE001 - whatever it is, the other side raises it
        return _MESSAGE + type(error).__name__.encode()
    array = io.BytesIO()
    np.save(array, pixels, allow_pickle=False)
    return _PIXELS + array.getvalue()


def main() -> None:
    """Answer files until the input ends."""
    while True:
        try:
            file = _receive(sys.stdin.buffer)
        except EOFError:
            return
        _send(sys.stdout.buffer, _answer(file))


_process = _GdcmProcess()
atexit.register(_process.end)

if __name__ == "__main__":
    main()
