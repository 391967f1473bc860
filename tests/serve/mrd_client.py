"""A client of the MRD protocol, written against the protocol's text and the ismrmrd package's own serialisation."""

from __future__ import annotations

import socket
import struct
import warnings
from dataclasses import dataclass, field

import numpy as np

with warnings.catch_warnings():
    import ismrmrd
from stand_in import wait_until

CLOSE, TEXT, IMAGE = 4, 5, 1022
XML = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><acquisitionSystemInformation>
<systemVendor>ACME</systemVendor><systemFieldStrength_T>2.89</systemFieldStrength_T></acquisitionSystemInformation>
<encoding><encodingLimits><kspace_encoding_step_2><maximum>0</maximum></kspace_encoding_step_2></encodingLimits>
</encoding></ismrmrdHeader>"""


@dataclass
class Reply:
    """texts, images and whether CLOSE came; `order` has the kinds as they came."""

    texts: list[str] = field(default_factory=list)
    images: list = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    closed: bool = False

    @property
    def errors(self) -> list[str]:
        return [text for text in self.texts if text.startswith("ERR")]


def text_message(kind: int, text: str) -> bytes:
    raw = text.encode() + b"\0"  # as the public client does
    return struct.pack("<HI", kind, len(raw)) + raw


def image_message(image) -> bytes:
    return struct.pack("<H", IMAGE) + image.to_bytes()


def stack(
    shape=(20, 18, 16), voxel=(1.0, 1.25, 2.0), centre=(3.0, -21.5, 40.25), rotate=0.3, dtype=np.float32, data=None
):
    """Slices of a head-like blob, obliquely placed: list of ismrmrd.Image, and the centre of the volume (LPS, mm)."""
    c, s = np.cos(rotate), np.sin(rotate)
    read, phase, normal = np.array([c, s, 0.0]), np.array([-s, c, 0.0]), np.array([0.0, 0.0, 1.0])
    if data is None:
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
        data = 1000 * np.exp(-3 * (grid**2).sum(0)) * (1.2 + np.sin(9 * grid[0])) + 20
    images = []
    for k in range(shape[2]):
        image = ismrmrd.Image.from_array(data[:, :, k].T.astype(dtype), transpose=False)
        image.field_of_view = (shape[0] * voxel[0], shape[1] * voxel[1], voxel[2] * 0.9)  # a gap
        image.position = tuple(np.array(centre) + normal * voxel[2] * (k - (shape[2] - 1) / 2))
        image.read_dir, image.phase_dir, image.slice_dir = tuple(read), tuple(phase), tuple(normal)
        image.image_type, image.image_index, image.slice, image.image_series_index = 1, k + 1, k, 3
        image.attribute_string = ismrmrd.Meta({"SequenceDescription": "t1 head", "IceMiniHead": "eA=="}).serialize()
        images.append(image)
    return images, np.array(centre)


def centre_of(images) -> np.ndarray:
    return np.mean([np.array(image.position, np.float64) for image in images], axis=0)


def send(address, *messages: bytes, config="mrisr", header="Dummy XML header", close=True, timeout=60.0) -> Reply:
    """What a client does from connecting to the server's CLOSE."""
    with socket.create_connection(address[:2], timeout=timeout) as sock:
        parts = []
        if config is not None:
            parts.append(struct.pack("<H1024s", 1, config.encode()))
        if header is not None:
            parts.append(text_message(3, header))
        parts += messages
        if close:
            parts.append(struct.pack("<H", CLOSE))
        try:
            for part in parts:
                sock.sendall(part)
        except OSError:
            pass  # the server has said why, and that is read below
        return receive(sock)


def receive(sock) -> Reply:
    reply = Reply()
    stream = sock.makefile("rb")

    def read(count: int) -> bytes:
        got = stream.read(count)
        if len(got) != count:
            raise EOFError
        return got

    try:
        while not reply.closed:
            (kind,) = struct.unpack("<H", read(2))
            reply.order.append(kind)
            if kind == CLOSE:
                reply.closed = True
            elif kind == TEXT:
                reply.texts.append(read(struct.unpack("<I", read(4))[0]).rstrip(b"\0").decode())
            elif kind == IMAGE:
                got = bytearray()

                def kept(count: int, got=got) -> bytes:
                    piece = read(count)
                    got.extend(piece)
                    return piece

                reply.images.append(ismrmrd.Image.deserialize_from(kept))
                reply.raw.append(bytes(got))
            else:
                raise AssertionError(f"message {kind}")
    except (EOFError, ConnectionError):
        pass
    return reply


def messages(images) -> list[bytes]:
    return [image_message(image) for image in images]


def assert_lives(server) -> None:
    """It serves the next client, and holds nothing of those before."""
    images, _ = stack((8, 8, 4))
    reply = send(server.server_address, *messages(images))
    assert reply.closed and len(reply.images) == 5
    wait_until(lambda: server.budget.in_use == 0)
