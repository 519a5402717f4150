from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BeforeValidator, Field

from tests.stages.fakes import SECTIONS
from xfelproc.errors import ConfigError
from xfelproc.models.parameters import Algorithm, Parameters
from xfelproc.run.config import (
    apply_overrides,
    config_class,
    dump_config,
    load_config,
    make_config,
    parse_override,
    template,
)


class First(Algorithm):
    method: Literal["first"] = "first"
    sigma: Annotated[float, Field(gt=0)] = 6.0


class Second(Algorithm):
    method: Literal["second"] = "second"
    width: int = 3


def named(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


class Choice(Parameters):
    method: Annotated[First | Second, Field(discriminator="method"), BeforeValidator(named)] = First()
    min_snr: Annotated[float, Field(ge=0)] = 5.0


MODEL = config_class({**SECTIONS, "spots": Choice})


def make(**document: Any) -> Any:
    return make_config({"input": {"files": "a.h5"}, **document}, Path("/base"), MODEL)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"spots": {"min_snrr": 5}}, ["spots.min_snrr", "did you mean 'min_snr'"]),
        ({"spotz": {}}, ["spotz: there is no such section", "did you mean 'spots'"]),
        ({"spots": {"method": "frist"}}, ["spots.method: 'frist' is not known", "did you mean 'first'", "second"]),
        ({"spots": {"method": {"method": "first", "sigmas": 1}}}, ["spots.method.sigmas", "did you mean 'sigma'"]),
        ({"spots": {"method": {"method": "first", "sigma": -1}}}, ["spots.method.sigma", "must be greater than 0", "-1"]),
        ({"input": {"files": "a", "distance": -5.0}}, ["input.distance", "greater than 0", "-5"]),
        ({"input": {"files": "a", "distance": float("nan")}}, ["input.distance", "finite", "nan"]),
        ({"input": {}}, ["input.files: must be given"]),
        ({"input": {"files": []}}, ["input.files", "at least 1 item"]),
        ({"input": {"files": "a", "frames": "1:x"}}, ["input.frames", "'1:x' is no frame"]),
        ({"recipe": "stils"}, ["recipe: 'stils' is not known", "did you mean 'stills'"]),
        ({"execution": {"driver": "pol"}}, ["execution.driver", "did you mean 'pool'"]),
        ({"execution": {"workers": 0}}, ["execution.workers", "greater than or equal to 1"]),
        ({"spots": {"min_snr": "five"}}, ["spots.min_snr", "valid number", "'five'"]),
        ({"index": {"cell": [1, 2, 3]}}, ["index.cell: too few values"]),
    ],
)
def test_wrong_documents(document: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**document)
    for word in words:
        assert word in str(caught.value)


def test_bare_method_and_table_are_the_same() -> None:
    assert make(spots={"method": "second"}) == make(spots={"method": {"method": "second"}})


def test_resolved_job_reads_back() -> None:
    config = make(spots={"method": {"method": "first", "sigma": 1e-7}}, index={"cell": [1, 2, 3, 90, 90, 90]})
    again = make_config(tomllib.loads(dump_config(config)), Path("/elsewhere"), MODEL)
    assert again == config
    assert config.input.files == ("/base/a.h5",)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("spots.min_snr=6", ["spots", "min_snr"], 6),
        ("a.b = [1.0, 2]", ["a", "b"], [1.0, 2]),
        ("a.b=true", ["a", "b"], True),
        ("recipe=stills", ["recipe"], "stills"),
        ('a.b="x = y"', ["a", "b"], "x = y"),
        ("a={b=1}", ["a"], {"b": 1}),
    ],
)
def test_overrides(text: str, path: list[str], value: Any) -> None:
    assert parse_override(text) == (path, value)


def test_override_inside_a_bare_method() -> None:
    document = apply_overrides({"spots": {"method": "first"}}, ["spots.method.sigma=3"])
    assert document == {"spots": {"method": {"method": "first", "sigma": 3}}}


@pytest.mark.parametrize("text", ["spots", "=3", "spots.=3"])
def test_wrong_overrides(text: str) -> None:
    with pytest.raises(ConfigError, match="write --set"):
        parse_override(text)


def test_override_through_a_value() -> None:
    with pytest.raises(ConfigError, match="not a table"):
        apply_overrides({"recipe": "stills"}, ["recipe.x=1"])


def test_job_file_with_wrong_syntax(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text("[input\nfiles = 3")
    with pytest.raises(ConfigError, match=r"job.toml: this is not TOML: .*line 1"):
        load_config(path, (), MODEL)
    with pytest.raises(ConfigError, match="xfelproc init"):
        load_config(tmp_path / "none.toml", (), MODEL)


def test_template_is_a_job() -> None:
    text = template(MODEL)
    config = make_config(tomllib.loads(text), Path("/base"), MODEL)
    assert config == make(input={"files": "frames.h5"})
    # every key that is commented out is one, with its default
    awake = "\n".join(
        line.removeprefix("#") if line.startswith("#") and not line.startswith("# ") else line for line in text.splitlines()
    )
    awake = "\n".join(line for line in awake.splitlines() if not line.endswith("= ..."))
    assert make_config(tomllib.loads(awake), Path("/base"), MODEL) == config
