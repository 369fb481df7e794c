"""A model in one safetensors file: plan, towers' weights, fusion, features, embedding tables.

The file's ``__metadata__["resflow"]`` is a JSON text::

    {"format": "resflow-bundle", "version": 1, "tasks": [...], "plan": {...},
     "fusion": {"kind": ..., "weights": [...] or null}, "features": {...} or null}

and its tensors are ``weights.<i>`` (float32, as ``Plan.weight_shapes`` lists them, BatchNorms folded),
``table.<feature>`` (float32), ``vocabulary.<feature>`` (int64; string vocabularies are in the JSON) and
``boundaries.<feature>`` (float64). Nothing is ever unpickled. Imports torch only in :func:`save_model`
and :func:`load_model`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..core import fusion as fusions
from ..core.fusion import Fusion
from ..core.plan import Plan
from ..core.program import AnyPlan, Program
from ..data.features import FeatureSet
from .bundle_check import is_integer, is_strings, validate

if TYPE_CHECKING:
    from torch import nn

    from ..nn import PackedResFlow, ResFlow
    from ..nn.fused import FusedRanker

METADATA_KEY = "resflow"
FORMAT = "resflow-bundle"
VERSION = 1
_MAX_METADATA_BYTES = 90_000_000  # safetensors refuses to read headers beyond 100 MB
_JSON_KEYS = {"format", "version", "tasks", "plan", "fusion", "features"}
_PLAN_FIELDS = tuple(entry.name for entry in fields(Plan) if entry.init)
_PLAN_BOOLS = ("feature_residual", "logit_residual", "non_increasing", "affine")


class BundleError(ValueError):
    """A bundle that cannot be read or written: names the file, what was expected and what was got."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """The contents of a bundle file, in NumPy.

    ``plan`` is a forest of towers or a tile program. ``weights`` are float32 in the order of ``plan.weight_shapes``;
    ``tables`` float32 ``[V, dim]`` by feature.
    """

    plan: AnyPlan
    tasks: tuple[str, ...]
    weights: list[NDArray[np.float32]] = field(repr=False)
    fusion: Fusion
    features: FeatureSet | None = None
    tables: dict[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file; see :func:`save`."""
        save(path, self.plan, self.tasks, self.weights, self.fusion, self.features, self.tables)


def save(
    path: str | os.PathLike[str],
    plan: AnyPlan,
    tasks: Sequence[str],
    weights: Sequence[NDArray[np.float32]],
    fusion: Fusion,
    features: FeatureSet | None = None,
    tables: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """Write a bundle; the file appears complete or not at all.

    Args:
        path: the file; replaced if it exists.
        plan: the towers' shape.
        tasks: ``K`` different names.
        weights: float32, as ``plan.weight_shapes`` lists them (as returned by ``ResFlow.canonical_weights()``).
        fusion: how probabilities become a score.
        features: the features of an input row, fitted; ``None`` for a model of bare input rows.
        tables: float32 ``[V, dim]`` for each feature by name; with ``features`` only.

    Raises:
        BundleError: a value does not match the plan or the features, or is not finite.
        OSError: the file cannot be written.

    Example:
        >>> save("ranker.safetensors", plan, ("ctr", "ctcvr"), weights, Additive((1, 20)))  # doctest: +SKIP
    """
    bundle = Bundle(plan, tuple(tasks), list(weights), fusion, features, dict(tables or {}))
    try:
        validate(bundle)
        text = _to_json(bundle)
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in _tensors(bundle).items()}
    except ValueError as error:
        raise BundleError(f"{os.fspath(path)}: {error}") from None
    with atomic_path(path) as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata={METADATA_KEY: text})


def save_model(
    path: str | os.PathLike[str],
    model: FusedRanker,
    features: FeatureSet | None = None,
    tables: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """:func:`save` a PyTorch model: its canonical weights, with BatchNorms folded, and its fusion.

    Raises:
        BundleError: as :func:`save`; or the towers are part of a fused model that does more to their probabilities.
    """
    import torch

    if model.continued is not None:
        raise BundleError(
            f"{os.fspath(path)}: model must be all that makes probabilities, got the towers of a fused model in which "
            f"{model.continued} follows; bundle.from_model takes the whole model"
        )
    with torch.no_grad():
        weights = [weight.cpu().numpy() for weight in model.canonical_weights()]
        fusion = type(model.fusion)(tuple(model.fusion_weights.tolist()))
    save(path, model.served_plan, model.tasks, weights, fusion, features, tables)


def from_model(
    model: nn.Module,
    example_inputs: Any,
    features: FeatureSet | None = None,
    tasks: Sequence[str] | None = None,
    fusion: Fusion | None = None,
    vocabularies: Mapping[str, Mapping[Any, int] | Sequence[Any]] | None = None,
    inputs: Mapping[str, str | int] | None = None,
    tables: Mapping[str, str] | None = None,
) -> Bundle:
    """A bundle from a user's own trained model and vocabularies: for ``resflow score``, :class:`Scorer`, catalogs.

    All that the model computes behind its embedding tables must be one tile program (what ``fuse.explain`` calls a
    region). Its outputs, in order, are the tasks: logits, sigmoids of logits, or the probability of an earlier output
    times a sigmoid (ESMM: a conditional head). Anything else done to probabilities is refused, not left out.

    Args:
        model: the trained model.
        example_inputs: its positional arguments as a tuple, or its one argument; a few rows will do.
        features: what the columns of a table are; their ``dim`` is taken from the model's tables, side by side where it
            looks one feature up in several. ``None``: the model takes one matrix of rows.
        tasks: names of the outputs; by default ``task0``, ``task1``, ...
        fusion: how probabilities become a score; by default :class:`~resflow_kernels.Additive`.
        vocabularies: by feature, which value has which row of the model's table: a mapping, or the values in the order
            of the rows. Without one a fitted feature's vocabulary holds, from row 1 on (from row 0 if the table has
            no row more than it has values), and of an unfitted feature the values are the rows. Unknown values have
            row 0 if no value has it, else zeros.
        inputs: by feature, the argument, the key of a dict or the column of the one matrix that holds its rows; by
            default that of the feature's name.
        tables: by feature, the path of the module of its table, where no input tells it (a KeyedJaggedTensor).

    Raises:
        CannotFuse: the model is no such program, or a table is of no feature; the message names the part.
        ValueError: vocabularies that do not match the tables, or another number of tasks.

    Example:
        >>> features = FeatureSet((Feature("user", 8, "id"),), (Feature("video", 8, "id"),), "request", "video")
        ... # doctest: +SKIP
        >>> made = from_model(model, (user, video), features, ("click",))  # doctest: +SKIP
        >>> made.save("ranker.safetensors")  # doctest: +SKIP
    """
    from ..convert.bundled import bundle_of

    made = bundle_of(model, example_inputs, features, tasks, fusion, vocabularies or {}, inputs or {}, tables or {})
    validate(made)
    return made


def load(path: str | os.PathLike[str]) -> Bundle:
    """Read and validate a bundle, without torch.

    Raises:
        BundleError: the file is missing, damaged, foreign, newer than this package, or contradicts itself.

    Example:
        >>> load("ranker.safetensors").tasks  # doctest: +SKIP
        ('ctr', 'ctcvr')
    """
    name = os.fspath(path)
    if not Path(path).is_file():
        raise BundleError(f"{name}: must be a bundle file, got {'a directory' if Path(path).is_dir() else 'no file'}")
    try:
        # With numpy as the framework, each tensor is copied out of the mapped file once, and only if it is requested.
        with safe_open(name, framework="np") as file:
            bundle = _read(file)
        validate(bundle)
    except SafetensorError as error:
        with open(name, "rb") as file:
            zipped = file.read(2) == b"PK"
        got = "what torch.save or AOTInductor writes; bundle.from_model makes a bundle of a model" if zipped else error
        raise BundleError(f"{name}: must be a whole safetensors file, got {got}") from None
    except OSError as error:
        raise BundleError(f"{name}: must be readable, got {error.strerror or error}") from None
    except ValueError as error:
        raise BundleError(f"{name}: {error}") from None
    return bundle


def load_model(path: str | os.PathLike[str]) -> ResFlow | PackedResFlow:
    """:func:`load` as a PyTorch model in eval mode: towers as a ``ResFlow`` with BatchNorms folded into its weights.

    A tile program comes as a ``PackedResFlow``, which scores and cannot be trained.
    """
    from .. import convert

    bundle = load(path)
    if isinstance(bundle.plan, Program):
        return convert.packed_program(bundle.plan, bundle.weights, bundle.tasks, bundle.fusion)
    return convert.from_canonical(bundle.plan, bundle.weights, bundle.tasks, bundle.fusion)


def weights_digest(weights: Sequence[NDArray[np.float32]]) -> str:
    """A short text that two models share only if their canonical weights are equal."""
    digest = hashlib.blake2b(digest_size=16)
    for weight in weights:
        digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """A temporary path next to ``path`` that replaces it when the block succeeds, and is deleted when it fails."""
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: must be in an existing folder, got no folder {target.parent}")
    if target.is_dir():
        raise IsADirectoryError(f"{target}: must be a file's name, got a folder")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode  # the mode by the user's umask; safetensors would make it 0600
        yield str(temporary)
        os.chmod(temporary, mode)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def plan_fields(plan: AnyPlan) -> dict[str, Any]:
    """A plan's fields by name, as stored in the JSON; a program's encoding."""
    if isinstance(plan, Program):
        return {"program": list(plan.encoded)}
    return {name: getattr(plan, name) for name in _PLAN_FIELDS}


def _to_json(bundle: Bundle) -> str:
    features = bundle.features
    fusion = bundle.fusion
    content = {
        "format": FORMAT,
        "version": VERSION,
        "tasks": bundle.tasks,
        "plan": plan_fields(bundle.plan),
        "fusion": {"kind": fusion.kind, "weights": fusion.weights},
        "features": None if features is None else features.to_json(),
    }
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    size = len(text.encode())
    if size > _MAX_METADATA_BYTES:
        raise ValueError(f"string vocabularies and names must be at most {_MAX_METADATA_BYTES} bytes, got {size}")
    return text


def _tensors(bundle: Bundle) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {f"weights.{at}": weight for at, weight in enumerate(bundle.weights)}
    tensors |= {f"table.{name}": table for name, table in bundle.tables.items()}
    for feature in bundle.features.all if bundle.features else ():
        tensors |= {f"{kind}.{feature.name}": array for kind, array in feature.arrays.items()}
    return tensors


def _read(file: Any) -> Bundle:
    content = _metadata(file.metadata())
    names = set(file.keys())
    plan = _plan(content["plan"])
    weights = [_tensor(file, names, f"weights.{at}") for at in range(len(plan.weight_shapes))]
    features = None if content["features"] is None else _features(file, names, content["features"])
    tables = {f.name: _tensor(file, names, f"table.{f.name}") for f in features.all} if features else {}
    if names:
        raise ValueError(f"tensors must be those that its plan and features name, got also {sorted(names)[:3]}")
    return Bundle(plan, _tasks(content["tasks"]), weights, _fusion(content["fusion"]), features, tables)


def _metadata(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """The bundle's JSON, after checking format and version."""
    if not metadata or METADATA_KEY not in metadata:
        raise ValueError(f"must be a {FORMAT} file, got a safetensors file without {METADATA_KEY!r} in its metadata")
    try:
        content = json.loads(metadata[METADATA_KEY], parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"metadata {METADATA_KEY!r} must be JSON, got {error}") from None
    form = content.get("format") if isinstance(content, dict) else content
    if form != FORMAT:
        raise ValueError(f"format must be {FORMAT!r}, got {form!r}")
    version = content.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ValueError(f"version must be {VERSION} (this package reads no other), got {version!r}")
    if set(content) != _JSON_KEYS:
        raise ValueError(f"metadata must have the keys {sorted(_JSON_KEYS)}, got {sorted(content)}")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")


def _plan(content: Any) -> AnyPlan:
    if isinstance(content, dict) and set(content) == {"program"}:
        numbers = content["program"]
        if not isinstance(numbers, list) or not all(is_integer(one) and 0 <= one + 1 < 2**63 for one in numbers):
            raise ValueError("plan: program must be a list of integers")
        program = Program.decode(numbers)
        if not program.tasks:
            raise ValueError("plan: program must have tasks, got none")
        return program
    expected = set(_PLAN_FIELDS)
    if not isinstance(content, dict) or set(content) != expected:
        raise ValueError(f"plan must be an object of {sorted(expected)}, got {content!r}")

    def require(name: str, holds: bool, kind: str) -> None:
        if not holds:
            raise ValueError(f"plan: {name} must be {kind}, got {content[name]!r}")

    require("in_features", is_integer(content["in_features"]), "an integer")
    for name in ("hidden", "parents"):
        require(name, isinstance(content[name], list) and all(map(is_integer, content[name])), "a list of integers")
    require("activations", is_strings(content["activations"]), "a list of names")
    for name in _PLAN_BOOLS:
        require(name, isinstance(content[name], bool), "true or false")
    for name in ("head", "precision"):
        require(name, isinstance(content[name], str), "a name")
    return Plan(**content)


def _tasks(content: Any) -> tuple[str, ...]:
    if not is_strings(content):
        raise ValueError(f"tasks must be a list of names, got {content!r}")
    return tuple(content)


def _fusion(content: Any) -> Fusion:
    if not isinstance(content, dict) or set(content) != {"kind", "weights"} or not isinstance(content["kind"], str):
        raise ValueError(f"fusion must be an object of kind and weights, got {content!r}")
    weights = content["weights"]
    numbers = isinstance(weights, list) and all(is_integer(w) or isinstance(w, float) for w in weights)
    if weights is not None and not numbers:
        raise ValueError(f"fusion weights must be a list of numbers or null, got {weights!r}")
    return fusions.by_name(content["kind"], None if weights is None else tuple(weights))


def _features(file: Any, names: set[str], content: Any) -> FeatureSet:
    """The feature set, with numeric vocabularies and boundaries read from the file's tensors."""
    arrays: dict[str, dict[str, NDArray[Any]]] = {}
    for kind, dtype in (("vocabulary", np.int64), ("boundaries", np.float64)):
        for name in sorted(names):
            if name.startswith(kind + "."):
                array = _tensor(file, names, name)
                if array.dtype != dtype:
                    raise ValueError(f"{name} must be {np.dtype(dtype)}, got {array.dtype}")
                arrays.setdefault(name.removeprefix(kind + "."), {})[kind] = array
    return FeatureSet.from_json(content, arrays)


def _tensor(file: Any, names: set[str], name: str) -> NDArray[Any]:
    """A tensor of the file; ``names`` keeps the tensors that are not read yet."""
    if name not in names:
        raise ValueError(f"tensor {name} must be in the file, got none")
    names.remove(name)
    try:
        array: NDArray[Any] = file.get_tensor(name)
    except (TypeError, AttributeError):  # bfloat16, float8: NumPy has no such dtype
        raise ValueError(f"tensor {name} must be of a NumPy dtype, got {file.get_slice(name).get_dtype()}") from None
    return array
