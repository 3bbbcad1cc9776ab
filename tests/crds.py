"""Kubernetes' custom resources checked as its API server would, and stricter: a field that it drops is an error."""

from pathlib import Path
from typing import Any

import jsonschema
import yaml

__all__ = ["faults", "schemas"]


def schemas(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The schemas in a folder of CustomResourceDefinitions, by (apiVersion, kind)."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        definition = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        spec = definition["spec"]
        for version in spec["versions"]:
            schema = _strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}  # the API server has a schema of its own
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


def _strict(schema: Any) -> Any:
    """An OpenAPI schema of Kubernetes as JSON Schema, in which unknown fields are errors."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    known = {k: _strict(v) for k, v in schema.items() if not k.startswith("x-") and k not in ("description", "format")}
    if "properties" in schema:
        # Names of properties are no keywords.
        known["properties"] = {name: _strict(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            known.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        known.pop("type", None)
        known["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return known


def faults(resource: dict[str, Any], known: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """What is wrong with a resource: where, and what."""
    validator = jsonschema.Draft202012Validator(known[resource["apiVersion"], resource["kind"]])
    return [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in validator.iter_errors(resource)
    ]
