"""CBF files for tests, written from the definition of the format."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import numpy as np

from tests.kernels.test_cbf import PACKED, PACKED_V2, encode_byte_offset, encode_packed

MAGIC = b"\x0c\x1a\x04\xd5"

MINI = """
# Detector: PILATUS 300K, S/N 3-0100
# 2019-09-11T13:20:29.029
# Pixel_size 172e-6 m x 172e-6 m
# Silicon sensor, thickness 0.000450 m
# Exposure_time 0.0190000 s
# Count_cutoff 115897 counts
# Wavelength 0.96859 A
# Detector_distance 0.35100 m
# Beam_xy (3.5, 2.25) pixels
# Start_angle 90.0 deg.
# Angle_increment 0.1000 deg.
# Detector_2theta 0.0000 deg.
# Polarization 0.990
# Oscillation_axis X.CW
"""


def binary_section(pixels: np.ndarray, conversion: str = "byte_offset", binary_id: int = 1, md5: bool = True) -> bytes:
    """The text from the boundary to the closing one."""
    stack = pixels if pixels.ndim == 3 else pixels[None]
    if conversion == "byte_offset":
        data = encode_byte_offset(pixels)
    elif conversion == "none":
        data = pixels.astype("<i4").tobytes()
    else:
        data = bytes(32) + encode_packed(stack, PACKED if conversion == "packed" else PACKED_V2, True, 3)
    digest = base64.b64encode(hashlib.md5(data).digest()).decode()
    header = [
        "--CIF-BINARY-FORMAT-SECTION--",
        "Content-Type: application/octet-stream;",
        f'     conversions="x-CBF_{conversion.upper()}"',
        "Content-Transfer-Encoding: BINARY",
        f"X-Binary-Size: {len(data)}",
        f"X-Binary-ID: {binary_id}",
        'X-Binary-Element-Type: "signed 32-bit integer"',
        "X-Binary-Element-Byte-Order: LITTLE_ENDIAN",
        *([f"Content-MD5: {digest}"] if md5 else []),
        f"X-Binary-Number-of-Elements: {pixels.size}",
        f"X-Binary-Size-Fastest-Dimension: {stack.shape[2]}",
        f"X-Binary-Size-Second-Dimension: {stack.shape[1]}",
        *([f"X-Binary-Size-Third-Dimension: {stack.shape[0]}"] if pixels.ndim == 3 else []),
        "",
        "",
    ]
    return "\r\n".join(header).encode() + MAGIC + data + b"\r\n--CIF-BINARY-FORMAT-SECTION----\r\n;\r\n"


def mini_cbf(pixels: np.ndarray, comments: str = MINI, conversion: str = "byte_offset", md5: bool = True) -> bytes:
    head = '###CBF: VERSION 1.5\r\ndata_x\r\n\r\n_array_data.header_convention "PILATUS_1.2"\r\n_array_data.header_contents\r\n;'
    text = comments.replace("\n", "\r\n")
    return (head + text + ";\r\n\r\n_array_data.data\r\n;\r\n").encode() + binary_section(pixels, conversion, md5=md5)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


TWO_PANELS = """###CBF: VERSION 1.5
data_two
_diffrn_detector.id DET
_diffrn_detector.type 'Test pad'
loop_
_diffrn_data_frame.id
_diffrn_data_frame.array_id
_diffrn_data_frame.binary_id
F1 A 1
F1 B 2
{more_frames}loop_
_diffrn_scan_frame_axis.frame_id
_diffrn_scan_frame_axis.axis_id
_diffrn_scan_frame_axis.angle
_diffrn_scan_frame_axis.displacement
F1 TILT 30 0
F1 ARM 0 -100
F1 OMEGA 12.5 0
{more_settings}_diffrn_scan_axis.axis_id OMEGA
_diffrn_scan_axis.angle_start 10
_diffrn_scan_axis.angle_increment 0.5
_diffrn_radiation.polarizn_source_ratio 0.98
_diffrn_radiation.polarizn_source_norm 0
_diffrn_radiation_wavelength.id W
_diffrn_radiation_wavelength.wavelength 1.25(3)
loop_
_axis.id
_axis.type
_axis.equipment
_axis.depends_on
_axis.vector[1]
_axis.vector[2]
_axis.vector[3]
_axis.offset[1]
_axis.offset[2]
_axis.offset[3]
SOURCE general source . 0 0 1 . . .
OMEGA rotation goniometer . -1 0 0 . . .
KAPPA rotation goniometer OMEGA 0 0.6 0.8 . . .
TILT rotation detector . 2 0 0 . . .
ARM translation detector TILT 0 0 1 0 0 0
MA rotation detector ARM 0 0 1 -2 0 0
MB rotation detector ARM 0 0 1 2 0 0
AS translation detector MA 0 -1 0 -0.5 0.25 0
AF translation detector AS 1 0 0 0 0 0
BS translation detector MB 0 -1 0 -0.5 0.25 0
BF translation detector BS 1 0 0 0 0 0
loop_
_array_structure_list.array_id
_array_structure_list.index
_array_structure_list.dimension
_array_structure_list.precedence
_array_structure_list.direction
_array_structure_list.axis_set_id
A 1 5 1 increasing AF
A 2 3 2 increasing AS
B 1 5 1 decreasing BF
B 2 3 2 increasing BS
loop_
_array_structure_list_axis.axis_set_id
_array_structure_list_axis.axis_id
_array_structure_list_axis.displacement
_array_structure_list_axis.displacement_increment
AF AF 0 0.2
AS AS 0 0.1
BF BF 0 0.2
BS BS 0 0.1
loop_
_array_intensities.array_id
_array_intensities.gain
_array_intensities.overload
_array_intensities.undefined_value
A 2.0 5000 -1
B 2.0 6000 -1
loop_
_array_data.array_id
_array_data.binary_id
_array_data.data
"""


def two_panels(frames: list[tuple[np.ndarray, np.ndarray]], angles: list[float]) -> bytes:
    """An imgCIF file of two arrays a frame."""
    more_frames = "".join(f"F{k + 1} {name} {2 * k + i + 1}\n" for k in range(1, len(frames)) for i, name in enumerate("AB"))
    more_settings = "".join(
        f"F{k + 1} TILT 30 0\nF{k + 1} ARM 0 -100\nF{k + 1} OMEGA {angles[k]} 0\n" for k in range(1, len(frames))
    )
    content = TWO_PANELS.format(more_frames=more_frames, more_settings=more_settings).replace(
        "F1 OMEGA 12.5", f"F1 OMEGA {angles[0]}"
    )
    out = content.encode()
    number = 1
    for pair in frames:
        for name, pixels in zip("AB", pair, strict=True):
            out += f"{name} {number}\n;\n".encode() + binary_section(pixels, "packed", number)
            number += 1
    return out
