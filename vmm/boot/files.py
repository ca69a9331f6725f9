"""Reading image files, with errors that say what to do."""

from __future__ import annotations

from pathlib import Path

from vmm.errors import BootError

# Images are read whole. A gigabyte is far beyond any kernel or test image, and keeps a wrong
# argument (a disk image, /dev/zero) from filling the host's memory.
IMAGE_SIZE_MAX_BYTES = 1 << 30


def read_image(path: Path, size_max_bytes: int = IMAGE_SIZE_MAX_BYTES) -> bytes:
    """The whole file; BootError if it cannot be read or is larger than `size_max_bytes`."""
    data = read_start(path, size_max_bytes + 1)
    if len(data) > size_max_bytes:
        raise BootError(f"Cannot load specified image {path}: larger than {size_max_bytes} bytes")
    return data


def read_start(path: Path, size_bytes: int) -> bytes:
    """The first `size_bytes` of a file, or less if it is shorter."""
    try:
        with path.open("rb") as file:
            return file.read(size_bytes)
    except OSError as error:
        raise BootError(
            f"Cannot load specified image {path}: {error.strerror}; check the path and its rights"
        ) from error
