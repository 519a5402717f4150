"""CrystFEL geometry files: read, write."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from xfelproc.errors import DataError
from xfelproc.io.exchange.geom_model import BadRegion, GeomFile, GeomPanel, MaskSpec, PhotonSource, Quantity
from xfelproc.models.experiment import Vector3

__all__ = ["BadRegion", "GeomFile", "GeomPanel", "MaskSpec", "PhotonSource", "Quantity", "parse_geom", "read_geom"]

LENGTH_UNITS = {"m": 1000.0, "mm": 1.0, "cm": 10.0, "um": 1e-3}
PHOTON_UNITS = {
    "photon_energy": {"": 1.0, "eV": 1.0, "keV": 1e3, "MeV": 1e6},
    "wavelength": {"": 1e10, "m": 1e10, "A": 1.0, "nm": 10.0},
    "electron_voltage": {"": 1.0, "V": 1.0, "kV": 1e3, "MV": 1e6},
}
_LEGACY = ("badrow_direction", "max_peaks", "min_peaks")
_TERM = re.compile(r"([+-]?\s*(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)?)\s*\*?\s*([xyz])")


@dataclass
class _State:
    """What has been read so far: defaults for the panels that follow, and the keys of each panel and bad region."""

    path: str
    defaults: dict[str, str] = field(default_factory=dict)
    panels: dict[str, dict[str, str]] = field(default_factory=dict)
    bad: dict[str, dict[str, str]] = field(default_factory=dict)
    top: dict[str, str] = field(default_factory=dict)
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    collections: dict[str, tuple[str, ...]] = field(default_factory=dict)
    nested: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


_TOP_KEYS = {
    "photon_energy", "wavelength", "electron_voltage", "bandwidth", "detector_shift_x", "detector_shift_y", "peak_list",
    "peak_list_type", "peak_info_location",
}  # fmt: skip
_PANEL_KEYS = {
    "min_fs", "max_fs", "min_ss", "max_ss", "corner_x", "corner_y", "fs", "ss", "res", "clen", "coffset", "data", "adu_per_photon",
    "adu_per_eV", "max_adu", "mask", "mask_file", "mask_good", "mask_bad", "mask_edge_pixels", "no_index", "saturation_map",
    "saturation_map_file", "flag_lessthan", "flag_morethan", "flag_equal",
}  # fmt: skip
_NUMBERED = re.compile(r"^(dim\d+|mask[0-7]_(file|data|goodbits|badbits))$")


def read_geom(path: str | Path) -> GeomFile:
    """Read a CrystFEL geometry file.

    Raises
    ------
    DataError
        If the file is missing, or a line cannot be understood (the message names the line).
    """
    try:
        state = Path(path).stat()
        return _parsed(str(path), state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise DataError(f"cannot read the geometry file ({error.strerror}): check input.geometry", path) from error


@lru_cache(maxsize=4)
def _parsed(path: str, size: int, mtime: int) -> GeomFile:
    """Read a geometry once for all the files it describes."""
    return parse_geom(Path(path).read_text(encoding="utf-8", errors="replace"), path)


def parse_geom(text: str, path: str = "") -> GeomFile:
    """Return the geometry in ``text``; ``path`` is for messages and for mask files beside it."""
    state = _State(path)
    for number, line in enumerate(text.splitlines(), 1):
        content = line.split(";", 1)[0].strip()
        if not content:
            continue
        key, separator, value = (part.strip() for part in content.partition("="))
        if not separator or not key or not value:
            raise DataError(f"line {number} is not 'key = value': {content!r}. Is this a CrystFEL geometry file?", path)
        _assign(state, key, value, number)
    if not state.panels:
        raise DataError("the geometry has no panel: lines such as 'p0/min_fs = 0' are missing", path)
    panels = tuple(_panel(state, name, keys) for name, keys in state.panels.items())
    names = {p.name for p in panels}
    groups = {name: _known(state, name, members, names) for name, members in state.groups.items()}
    collections = {name: _known(state, name, members, set(groups)) for name, members in state.collections.items()}
    return GeomFile(
        panels=panels,
        photons=_photons(state),
        bandwidth=_number(state, "bandwidth", state.top.get("bandwidth", "0")),
        bad=tuple(_bad(state, name, keys) for name, keys in state.bad.items()),
        groups=tuple(groups.items()),
        collections=tuple(collections.items()),
        nested=tuple(state.nested.items()),
        shift=(_shift(state, "detector_shift_x"), _shift(state, "detector_shift_y")),
        peak_list=state.top.get("peak_list", state.top.get("peak_info_location", "")),
        peak_list_type=state.top.get("peak_list_type", ""),
        path=path,
        notes=tuple(dict.fromkeys(state.notes)),
    )


def _known(state: _State, name: str, members: tuple[str, ...], known: set[str]) -> tuple[str, ...]:
    for member in members:
        if member not in known:
            raise DataError(f"rigid group {name!r} names {member!r}, which the geometry does not have", state.path)
    return members


def _assign(state: _State, key: str, value: str, number: int) -> None:
    """File one line under what it is about."""
    members = tuple(part.strip() for part in value.split(",") if part.strip())
    if key.startswith("rigid_group_collection_"):
        state.collections[key.removeprefix("rigid_group_collection_")] = members
    elif key.startswith("rigid_group_"):
        state.groups[key.removeprefix("rigid_group_")] = members
    elif key.startswith("group_"):
        state.nested[key.removeprefix("group_")] = members
    elif "/" in key and not key.startswith("/"):
        name, _, item = key.partition("/")
        if name.startswith("bad"):
            state.bad.setdefault(name, {})[item] = value
        else:
            _panel_key(state, item, number)
            # a panel takes the defaults that stand above its first line, as in CrystFEL
            state.panels.setdefault(name, dict(state.defaults))[item] = value
    elif key in _TOP_KEYS:
        state.top[key] = value
    else:
        _panel_key(state, key, number)
        state.defaults[key] = value


def _panel_key(state: _State, key: str, number: int) -> None:
    if key in _PANEL_KEYS or _NUMBERED.match(key):
        return
    if key in _LEGACY:
        state.notes.append(f"{key} has no meaning any more and is not used")
        return
    raise DataError(f"line {number}: unknown key {key!r}: correct it or take it out", state.path)


def _number(state: _State, key: str, value: str) -> float:
    try:
        return float(int(value, 0)) if value.lower().startswith("0x") else float(value)
    except ValueError:
        raise DataError(f"{key} = {value!r} is not a number", state.path) from None


def _quantity(state: _State, key: str, value: str, units: dict[str, float], default: str, default_path: str) -> Quantity:
    """Return a number with unit, or a path with unit."""
    parts = value.split()
    unit = parts[1] if len(parts) > 1 else None
    is_path = not _is_number(parts[0])
    if is_path and not parts[0].startswith("/") and "/" not in parts[0]:
        raise DataError(f"{key} = {value!r} is neither a number nor an HDF5 path", state.path)
    known = unit if unit is not None else (default_path if is_path else default)
    if known not in units or len(parts) > 2:
        raise DataError(f"{key} = {value!r}: the unit must be one of {', '.join(u for u in units if u)}", state.path)
    if is_path:
        return Quantity(path="/" + parts[0].lstrip("/"), unit=known, factor=units[known])
    number = float(parts[0])
    return Quantity(value=number, unit=known, factor=units[known])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _photons(state: _State) -> PhotonSource | None:
    for kind, units in PHOTON_UNITS.items():
        if kind in state.top:
            return PhotonSource(kind, _quantity(state, kind, state.top[kind], units, "", ""))
    return None


def _shift(state: _State, key: str) -> Quantity | None:
    return _quantity(state, key, state.top[key], LENGTH_UNITS, "m", "m") if key in state.top else None


def parse_direction(value: str) -> Vector3 | None:
    """Return the vector of such as ``-0.1x +0.99y -z``, or None if it is not one."""
    text = value.replace(" ", "").replace("\t", "")
    found = {"x": 0.0, "y": 0.0, "z": 0.0}
    end = 0
    for match in _TERM.finditer(text):
        if match.start() != end:
            return None
        end = match.end()
        number = match.group(1)
        found[match.group(2)] += float(number + "1" if number in ("", "+", "-") else number)
    vector = (found["x"], found["y"], found["z"])
    return vector if end == len(text) and any(vector) else None


def _bad(state: _State, name: str, keys: dict[str, str]) -> BadRegion:
    for kind, order in (("fsss", ("min_fs", "max_fs", "min_ss", "max_ss")), ("xy", ("min_x", "max_x", "min_y", "max_y"))):
        if any(k in keys for k in order):
            missing = [k for k in order if k not in keys]
            unknown = set(keys) - set(order) - {"panel"}
            if missing or unknown:
                raise DataError(
                    f"bad region {name!r}: needs {', '.join(order)}; missing or wrong: {sorted(unknown) + missing}", state.path
                )
            a0, a1, b0, b1 = (_number(state, f"{name}/{k}", keys[k]) for k in order)
            return BadRegion(name, kind, (a0, a1, b0, b1), keys.get("panel", ""))
    raise DataError(f"bad region {name!r} has no limits", state.path)


def _masks(state: _State, keys: dict[str, str]) -> tuple[MaskSpec, ...]:
    found = []
    if "mask" in keys:
        good = int(_number(state, "mask_good", keys.get("mask_good", "0")))
        bad = int(_number(state, "mask_bad", keys.get("mask_bad", "0")))
        found.append(MaskSpec(keys["mask"], keys.get("mask_file", ""), good, bad))
    for i in range(8):
        name = f"mask{i}"
        if f"{name}_data" in keys:
            good = int(_number(state, f"{name}_goodbits", keys.get(f"{name}_goodbits", "0")))
            bad = int(_number(state, f"{name}_badbits", keys.get(f"{name}_badbits", "0")))
            found.append(MaskSpec(keys[f"{name}_data"], keys.get(f"{name}_file", ""), good, bad))
    return tuple(found)


def _dims(state: _State, name: str, keys: dict[str, str]) -> tuple[str, ...]:
    """Return what each axis of the data is: '%' (frame), 'ss', 'fs' or a number."""
    given = {int(k[3:]): v for k, v in keys.items() if re.fullmatch(r"dim\d+", k)}
    if not given:
        return ("ss", "fs")
    if sorted(given) != list(range(len(given))):
        raise DataError(f"panel {name!r}: dim0 ... dim{max(given)} are not all given", state.path)
    dims = tuple(given[i] for i in range(len(given)))
    if dims.count("ss") != 1 or dims.count("fs") != 1 or any(d not in ("ss", "fs", "%") and not d.isdigit() for d in dims):
        raise DataError(f"panel {name!r}: dims {dims} must hold one ss, one fs, and otherwise % or numbers", state.path)
    return dims


def _panel(state: _State, name: str, keys: dict[str, str]) -> GeomPanel:
    def number(key: str, default: float | None = None) -> float:
        if key not in keys:
            if default is None:
                raise DataError(f"panel {name!r} has no {key}", state.path)
            return default
        return _number(state, f"{name}/{key}", keys[key])

    def vector(key: str, default: str) -> Vector3:
        found = parse_direction(keys.get(key, default))
        if found is None:
            raise DataError(f"{name}/{key} = {keys[key]!r} is not a direction such as '-0.1x +0.99y'", state.path)
        return found

    clen = _quantity(state, f"{name}/clen", keys["clen"], LENGTH_UNITS, "m", "mm") if "clen" in keys else None
    flags = tuple((k, number(f"flag_{k}")) for k in ("lessthan", "morethan", "equal") if f"flag_{k}" in keys)
    panel = GeomPanel(
        name=name,
        min_fs=int(number("min_fs")),
        max_fs=int(number("max_fs")),
        min_ss=int(number("min_ss")),
        max_ss=int(number("max_ss")),
        corner=(number("corner_x"), number("corner_y")),
        fs=vector("fs", "x"),
        ss=vector("ss", "y"),
        res=number("res"),
        clen=clen,
        coffset=number("coffset", 0.0),
        data=keys.get("data", ""),
        dims=_dims(state, name, keys),
        adu_per_photon=number("adu_per_photon") if "adu_per_photon" in keys else None,
        adu_per_ev=number("adu_per_eV") if "adu_per_eV" in keys else None,
        max_adu=number("max_adu") if "max_adu" in keys else None,
        masks=_masks(state, keys),
        flags=flags,
        mask_edge_pixels=int(number("mask_edge_pixels", 0.0)),
        no_index=bool(number("no_index", 0.0)),
        saturation_map=keys.get("saturation_map", ""),
        saturation_map_file=keys.get("saturation_map_file", ""),
    )
    if panel.size[0] < 1 or panel.size[1] < 1 or panel.res <= 0:
        raise DataError(f"panel {name!r}: size {panel.size} and res {panel.res} must be positive", state.path)
    return panel
