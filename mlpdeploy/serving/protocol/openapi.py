"""The description of the HTTP interface, OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

from mlpdeploy.serving.protocol.tensors import BYTES, DATATYPES

_ERRORS = {
    400: "The request is wrong",
    401: "No valid API key",
    404: "No such model or version",
    408: "The body did not come in time",
    413: "The body is too large",
    415: "This kind of body is not taken",
    429: "Too many requests wait; try again after Retry-After seconds",
    500: "The server failed; its log tells more",
    503: "Not ready, or about to stop; try again after Retry-After seconds",
    504: "No answer in time",
}


def openapi(version: str) -> dict[str, Any]:
    """Return the document; it names no model, so it is the same for every server of a version."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mlpdeploy serve",
            "version": version,
            "description": "Open Inference Protocol v2 with binary tensors and shared memory, and pictures.",
        },
        "security": [{}, {"bearer": []}, {"key": []}],
        "paths": {**_model_paths(), **_server_paths(), **_region_paths(), **_other_paths()},
        "components": {"schemas": _schemas(), "securitySchemes": _SECURITY},
    }


_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _operation(name: str, summary: str, result: dict[str, Any], errors: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Return one operation; `result` is the content of status 200."""
    responses: dict[str, Any] = {"200": {"description": "The answer", "content": result}}
    for status in errors:
        responses[str(status)] = {"description": _ERRORS[status], "content": _json(_ref("Error"))}
    return {"operationId": name, "summary": summary, "responses": responses, **more}


def _model_paths() -> dict[str, Any]:
    """Return the paths below a model, with and without a version."""
    infer_body = {
        "required": True,
        "description": "JSON; or JSON and behind it the binary tensors, with the JSON's length in the header.",
        "content": {**_json(_ref("InferRequest")), "application/octet-stream": {}},
    }
    header = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "description": "Length of the JSON in bytes, where binary tensors follow it.",
        "schema": {"type": "integer", "minimum": 0},
    }
    calls = {
        "": ("get", "Metadata", "Inputs and outputs", "ModelMetadata", {}),
        "/ready": ("get", "Ready", "Whether the model is warm", "ModelReady", {}),
        "/config": ("get", "Config", "Configuration, as Triton's clients read it", "Object", {}),
        "/stats": ("get", "Statistics", "Counts of requests and batches", "Object", {}),
        "/infer": ("post", "Infer", "Inference", "InferResponse", {"requestBody": infer_body}),
    }
    paths: dict[str, Any] = {}
    for versions in ("", "/versions/{version}"):
        names = ["model", "version"] if versions else ["model"]
        shared = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
        for suffix, (method, name, summary, schema, more) in calls.items():
            result, own = _json(_ref(schema)), list[Any]()
            errors: tuple[int, ...] = (401, 404, 503)
            if name == "Infer":
                result, errors, own = {**result, "application/octet-stream": {}}, tuple(_ERRORS), [header]
            operation = _operation(f"model{name}{'Version' if versions else ''}", summary, result, errors, **more)
            paths[f"/v2/models/{{model}}{versions}{suffix}"] = {
                "parameters": shared,
                method: {**operation, "parameters": own} if own else operation,
            }
    return paths


def _server_paths() -> dict[str, Any]:
    index_body = {"content": _json({"type": "object", "properties": {"ready": {"type": "boolean"}}})}
    return {
        "/v2": {"get": _operation("server", "Name, version and extensions", _json(_ref("Server")), (401,))},
        "/v2/health/live": {"get": _operation("live", "Whether the process answers", _json(_ref("Live")), ())},
        "/v2/health/ready": {"get": _operation("ready", "Whether all models are warm", _json(_ref("Ready")), (503,))},
        "/v2/models/stats": {"get": _operation("statistics", "Counts of all models", _json(_ref("Object")), (401,))},
        "/v2/repository/index": {
            "post": _operation(
                "index",
                "The models with their state",
                _json({"type": "array", "items": _ref("Object")}),
                (400, 401, 408, 413, 415, 503),
                requestBody=index_body,
            )
        },
    }


def _region_paths() -> dict[str, Any]:
    """Return the calls about shared memory, which a server refuses that was not started for it."""
    name = [{"name": "region", "in": "path", "required": True, "schema": {"type": "string"}}]
    status, empty, where = _json(_list(_ref("Region"))), _json(_ref("Object")), "/v2/systemsharedmemory"
    body = {"required": True, "content": _json(_ref("RegionRequest"))}
    errors = (400, 401, 408, 413, 415, 503)
    register = _operation("registerRegion", "Take a region of shared memory", empty, errors, requestBody=body)
    one = f"{where}/region/{{region}}"
    return {
        f"{where}/status": {"get": _operation("regions", "All regions", status, (401,))},
        f"{where}/unregister": {"post": _operation("unregisterRegions", "Forget all regions", empty, (401,))},
        f"{one}/status": {"parameters": name, "get": _operation("region", "A region", status, (400, 401))},
        f"{one}/unregister": {
            "parameters": name,
            "post": _operation("unregisterRegion", "Forget a region", empty, (401,)),
        },
        f"{one}/register": {"parameters": name, "post": register},
    }


def _other_paths() -> dict[str, Any]:
    picture: dict[str, Any] = {
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "string", "format": "binary"}},
                "required": ["file"],
            }
        },
    }
    query = [
        {"name": "top", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 5}},
        {"name": "model", "in": "query", "schema": {"type": "string"}, "description": "Needed with several models."},
    ]
    return {
        "/v1/classify": {
            "post": _operation(
                "classify",
                "Labels of a JPEG, PNG, WebP, ... picture",
                _json(_ref("Classification")),
                tuple(_ERRORS),
                parameters=query,
                requestBody={"required": True, "content": picture},
            )
        },
        "/v1/recent": {"get": _operation("recent", "Latencies of the last minute", _json(_ref("Object")), (401,))},
        "/metrics": {
            "get": _operation("metrics", "Prometheus", {"text/plain": {"schema": {"type": "string"}}}, (401,))
        },
    }


def _schemas() -> dict[str, Any]:
    string, whole = {"type": "string"}, {"type": "integer"}
    sizes = {"type": "array", "items": {"type": "integer"}, "maxItems": 16}
    flags = {"type": "object", "additionalProperties": True}
    tensor = {"name": string, "datatype": {"enum": [*DATATYPES, BYTES]}, "shape": sizes}
    metadata = _object({"name": string, "datatype": string, "shape": sizes})
    scores = _object({"index": whole, "label": string, "probability": {"type": "number"}})
    return {
        "Object": {"type": "object"},
        "Error": _object({"error": string}),
        "Live": _object({"live": {"const": True}}),
        "Ready": _object({"ready": {"const": True}}),
        "Server": _object({"name": string, "version": string, "extensions": _list(string)}),
        "ModelReady": _object({"name": string, "ready": {"const": True}}),
        "ModelMetadata": _object(
            {
                "name": string,
                "versions": _list(string),
                "platform": string,
                "inputs": _list(metadata),
                "outputs": _list(metadata),
            }
        ),
        "InferRequest": _object(
            {
                "id": {"type": "string", "maxLength": 1000},
                "parameters": flags,
                "inputs": _list(_object({**tensor, "parameters": flags, "data": {"type": "array"}}, optional=2)),
                "outputs": _list(_object({"name": string, "parameters": flags}, optional=1)),
            },
            required=["inputs"],
        ),
        "InferResponse": _object(
            {
                "model_name": string,
                "model_version": string,
                "outputs": _list(_object({**tensor, "parameters": flags, "data": {"type": "array"}}, optional=2)),
                "id": string,
            },
            optional=1,
        ),
        "Region": _object({"name": string, "key": string, "offset": whole, "byte_size": whole}),
        "RegionRequest": _object(
            {
                "key": string,
                "offset": {"type": "integer", "minimum": 0},
                "byte_size": {"type": "integer", "minimum": 1},
            },
            required=["key", "byte_size"],
        ),
        "Classification": _object(
            {
                "model": string,
                "version": string,
                "random_weights": {"type": "boolean"},
                "classes": _list(scores),
                "ms": {"type": "number"},
            }
        ),
    }


def _object(properties: dict[str, Any], optional: int = 0, required: list[str] | None = None) -> dict[str, Any]:
    """Return an object's schema, in which all properties but the last `optional` ones have to be there."""
    names = list(properties)[: len(properties) - optional] if required is None else required
    return {"type": "object", "properties": properties, "required": names}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}
