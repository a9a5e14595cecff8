"""Three kinds of patch, as pure functions: merge (RFC 7396), JSON (RFC 6902), strategic merge.

None changes what it is given; unchanged parts are shared.
"""

from __future__ import annotations

from typing import Any

from .encode import Json
from .shapes import Shape
from .status import ApiError, bad_patch, bad_request


def merge(target: Any, patch: Any) -> Any:
    """Apply a merge patch: null deletes, lists are replaced."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value)
    return result


def json_patch(target: Any, operations: Any) -> Any:
    """Apply a JSON patch, or raise 422 if any of it cannot be."""
    if not isinstance(operations, list):
        raise bad_request("cannot unmarshal object into Go value of type jsonpatch.Patch")
    for operation in operations:
        try:
            target = _operate(target, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise bad_patch() from error
    return target


def _operate(target: Any, operation: Json) -> Any:
    path = _pointer(operation["path"])
    match operation["op"]:
        case "add":
            return _changed(target, path, operation["value"], "add")
        case "replace":
            _found(target, path)
            return _changed(target, path, operation["value"], "replace")
        case "remove":
            return _changed(target, path, None, "remove")
        case "test":
            if _found(target, path) != operation.get("value"):
                raise ValueError(operation["path"])
            return target
        case "copy":
            return _changed(target, path, _found(target, _pointer(operation["from"])), "add")
        case "move":
            origin = _pointer(operation["from"])
            value = _found(target, origin)
            return _changed(_changed(target, origin, None, "remove"), path, value, "add")
    raise ValueError(operation["op"])


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise ValueError(text)
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _index(value: list[Any], part: str, *, grow: bool) -> int:
    if part == "-" and grow:
        return len(value)
    number = int(part)
    if not 0 <= number < len(value) + grow:
        raise IndexError(part)
    return number


def _found(target: Any, path: list[str]) -> Any:
    for part in path:
        if isinstance(target, list):
            target = target[_index(target, part, grow=False)]
        else:
            target = target[part]
    return target


def _changed(target: Any, path: list[str], value: Any, op: str) -> Any:
    if not path:
        return value
    part, *rest = path
    if isinstance(target, list):
        items = list(target)
        at = _index(items, part, grow=op == "add" and not rest)
        if rest:
            items[at] = _changed(items[at], rest, value, op)
        elif op == "add":
            items.insert(at, value)
        elif op == "remove":
            del items[at]
        else:
            items[at] = value
        return items
    if not isinstance(target, dict):
        raise TypeError(part)
    fields = dict(target)
    if rest:
        fields[part] = _changed(fields[part], rest, value, op)
    elif op == "remove":
        del fields[part]
    else:
        fields[part] = value
    return fields


def strategic(target: Any, patch: Any, shape: Shape) -> Any:
    """Apply a strategic merge patch: lists that are maps or sets are merged by their key."""
    if not isinstance(patch, dict):
        return patch
    if "$patch" in patch:
        if patch["$patch"] == "replace":
            return {name: value for name, value in patch.items() if name != "$patch"}
        if patch["$patch"] == "delete":
            return {}
    result = dict(target) if isinstance(target, dict) else {}
    for name in (patch.get("$retainKeys") and list(result)) or ():
        if name not in patch["$retainKeys"]:
            del result[name]
    for name, value in patch.items():
        if name.startswith("$deleteFromPrimitiveList/"):
            field = name.partition("/")[2]
            result[field] = [item for item in result.get(field) or () if item not in value]
        elif name.startswith("$"):
            continue
        elif value is None:
            result.pop(name, None)
        else:
            order = patch.get(f"$setElementOrder/{name}")
            place = shape.child(name)
            result[name] = _strategic_value(result.get(name), value, place, order)
    return result


def _strategic_value(old: Any, value: Any, shape: Shape, order: Any) -> Any:
    if isinstance(value, dict):
        return strategic(old, value, shape)
    if not isinstance(value, list) or shape.listing == "atomic":
        return value
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in value):
        return [item for item in value if item.get("$patch") != "replace"]
    if shape.listing == "set":
        return [*(old or ()), *(item for item in value if item not in (old or ()))]
    return _merge_list(old or [], value, shape, order)


def _merge_list(old: list[Json], patch: list[Json], shape: Shape, order: Any) -> list[Json]:
    """Merge by the first key; as a real server does, new items come before those only it has."""
    key = shape.keys[0]
    gone = {item[key] for item in patch if item.get("$patch") == "delete"}
    given = [item for item in patch if item.get("$patch") != "delete"]
    by_key = {item[key]: item for item in old}
    merged: dict[Any, Json] = {}
    for item in given:
        if key not in item:
            raise _keyless(key)
        merged[item[key]] = strategic(by_key.get(item[key]), item, shape.item())
    kept = [item for item in old if item[key] not in merged and item[key] not in gone]
    if order:
        wanted = [one[key] for one in order]
        everything = {**{item[key]: item for item in kept}, **merged}
        listed = [everything.pop(name) for name in wanted if name in everything]
        return [*listed, *everything.values()]
    return _interleaved(kept, list(merged.values()), [item[key] for item in old], key)


def _interleaved(kept: list[Json], given: list[Json], server: list[Any], key: str) -> list[Json]:
    """Put `kept` among `given`: before the first that the server had later, else behind."""
    place = {name: number for number, name in enumerate(server)}
    result, left, right = [], 0, 0
    while left < len(kept) and right < len(given):
        mine, theirs = place[kept[left][key]], place.get(given[right][key])
        if theirs is not None and mine < theirs:
            result.append(kept[left])
            left += 1
        else:
            result.append(given[right])
            right += 1
    return [*result, *kept[left:], *given[right:]]


def _keyless(key: str) -> ApiError:
    return ApiError(500, "", f"map: map[] does not contain declared merge key: {key}", None)
