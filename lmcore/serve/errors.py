"""Errors as the API answers them: `{"error": {"message", "type", "param", "code"}}` with a status of 4xx or 5xx."""

from typing import Any

from lmcore.errors import shown

__all__ = ["ApiError", "error_body", "from_validation"]

TYPES = {401: "authentication_error", 429: "rate_limit_error"}
EXPECTED = {
    "extra_forbidden": "no such field: it is unknown, or not supported",
    "missing": "this field, which is required",
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null, since it is not supported",
}
"""Kind of pydantic's error -> what was expected, where pydantic's own words say less."""


class ApiError(Exception):
    """A request that cannot be answered, and how the client is told."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry: int | None = None
    ):
        """Describe an error.

        Args:
            status: HTTP status.
            message: one line: the field, the value found, and the value expected.
            param: name of the request's field.
            code: a word for programs, where there is one.
            retry: seconds after which the client may try again.
        """
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry = status, message, param, code, retry

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the status."""
        headers = {} if self.retry is None else {"Retry-After": str(self.retry)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def error_body(error: ApiError) -> dict[str, Any]:
    """Return the JSON of an error."""
    kind = TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def from_validation(errors: list[Any]) -> ApiError:
    """Return the error that tells of the first of pydantic's, by the field and not by the branch of a union.

    Args:
        errors: of `ValidationError.errors()`.
    """
    first = errors[0]
    unknown = first["loc"][-1:] if first["type"] == "extra_forbidden" else ()
    known = first["loc"][: len(first["loc"]) - len(unknown)]
    names = [str(part) for part in known if isinstance(part, int) or str(part).isidentifier()]
    names += [shown(part, 80)[1:-1] for part in unknown]
    param = ".".join(names) or None
    if first["type"] in ("value_error", "assertion_error"):
        expected = str(first["ctx"]["error"])
    else:
        expected = EXPECTED.get(first["type"], first["msg"].removeprefix("Input should be "))
    found = "nothing" if first["type"] == "missing" else shown(first["input"], 80)
    return ApiError(400, f"{param or 'body'}: found {found}, expected {expected}", names[0] if names else None)
