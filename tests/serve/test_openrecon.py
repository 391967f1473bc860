"""The OpenRecon label: the keys that its schema wants, and parameters that the server knows."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
from pathlib import Path

import mrisr

HERE = Path(__file__).resolve().parents[2] / "docker" / "openrecon" / "label.py"
spec = importlib.util.spec_from_file_location("openrecon_label", HERE)
label = importlib.util.module_from_spec(spec)
spec.loader.exec_module(label)

# Schema 1.1.0 (of its own text): what has to be there, per part.
REQUIRED = {
    "general": {"name", "version", "vendor", "information", "id", "regulatory_information"},
    "reconstruction": {
        "transfer_protocol", "port", "emitter", "injector", "can_use_gpu", "min_required_memory",
        "min_count_required_cpu_cores",
    },
}  # fmt: skip
REGULATORY = {
    "device_trade_name", "production_identifier", "manufacturer_address", "made_in", "manufacture_date",
    "material_number", "gtin", "udi", "safety_advices", "special_operating_instructions",
    "additional_relevant_information",
}  # fmt: skip


def test_the_label_has_the_published_keys():
    found = label.label()
    assert set(found) == {"general", "reconstruction", "parameters"}
    for part, keys in REQUIRED.items():
        assert keys <= set(found[part]), part
    assert set(found["general"]["regulatory_information"]) == REGULATORY
    assert found["general"]["version"] == mrisr.__version__
    how = found["reconstruction"]
    assert how["transfer_protocol"] == {"protocol": "ISMRMRD", "version": "1.4.1"}
    assert (how["emitter"], how["injector"], how["content_qualification_type"]) == ("image", "image", "RESEARCH")
    assert len(found["parameters"]) <= 14
    for parameter in found["parameters"]:
        assert re.fullmatch("[A-Za-z0-9]+", parameter["id"]) and parameter["label"]["en"] and "default" in parameter
        assert len(parameter.get("unit", {"en": "mm"})["en"]) <= 3


def test_its_parameters_are_those_of_the_server():
    from mrisr.serve import mrd

    text = Path(mrd.__file__).read_text()
    for parameter in label.label()["parameters"]:
        assert f'"{parameter["id"]}"' in text


def test_the_dockerfile_carries_it_and_listens_where_a_container_has_to():
    text = label.dockerfile("some/image:1")
    assert text.startswith("FROM some/image:1\n")
    encoded = re.search(
        r'^LABEL "com\.siemens-healthineers\.magneticresonance\.openrecon\.metadata:1\.1\.0"="(.*)"$', text, re.M
    )
    assert json.loads(base64.b64decode(encoded[1])) == label.label()
    command = json.loads(re.search(r"^CMD (.*)$", text, re.M)[1])
    assert command == ["mrisr", "serve", "mrd", "--host", "0.0.0.0", "--port", "9002"]
