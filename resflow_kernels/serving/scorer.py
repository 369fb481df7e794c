"""Serving without PyTorch: :class:`Scorer` scores NumPy arrays through the compiled kernels.

Importing this module needs neither torch nor the compiled library; the first :class:`Scorer` needs the library.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..contract import FORMS, POOLING, PRECISION_ROWS, TABLE_PRECISIONS, WEIGHTS_PER
from ..contract.results import Scores, TopK
from ..core.fusion import Additive, Fusion
from ..core.program import AnyPlan
from ..data.embedding import Encoded, looked_up
from ..data.features import Feature, FeatureSet, check_table
from .bundle import Bundle, weights_digest
from .bundle import load as load_bundle
from .library import Table, as_int64, as_rows, compiled

if TYPE_CHECKING:
    import pyarrow as pa

    from .catalog import Catalog

Floats = NDArray[np.float32]
Offsets = NDArray[np.int64]


class Scorer:
    """A ranker for serving: packed weights and the compiled kernels, NumPy in and out, no torch.

    Any number of threads may call one scorer at once; it has no mutable state. A candidate's result is bitwise the same
    whatever else is in the call and however many threads run.

    Args:
        plan: the towers' shape.
        packed: uint8 weights packed for ``plan`` (:meth:`pack`).
        fusion: how probabilities become a score; ``None``: :class:`~resflow_kernels.core.fusion.Additive`.
        tasks: the tasks' names; ``None``: ``task_0``, ``task_1``, ...
        features: the features of an input row, for :meth:`embed_users` and :meth:`embed_items`.
        tables: their embedding tables, float32 ``[V, dim]`` by name.
        threads: number of threads that a call may use; ``None``: all usable cores.

    Raises:
        ImportError: the compiled library is not built.
        ValueError: an argument does not fit the plan.

    Example:
        >>> scorer = Scorer.load("ranker.safetensors")                                  # doctest: +SKIP
        >>> best = scorer.request_topk(user, item, offsets, k=10)                     # doctest: +SKIP
        >>> best.positions.shape                                                        # doctest: +SKIP
        (8, 10)
    """

    def __init__(
        self,
        plan: AnyPlan,
        packed: NDArray[np.uint8],
        fusion: Fusion | None = None,
        tasks: Sequence[str] | None = None,
        features: FeatureSet | None = None,
        tables: Mapping[str, Floats] | None = None,
        threads: int | None = None,
    ) -> None:
        self._library = compiled()
        self.plan = plan
        self.packed = packed
        self.fusion = Additive() if fusion is None else fusion
        self.tasks = tuple(f"task_{task}" for task in range(plan.tasks)) if tasks is None else tuple(tasks)
        if len(self.tasks) != plan.tasks:
            raise ValueError(f"Scorer: tasks must be {plan.tasks} names, got {len(self.tasks)}")
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise ValueError(f"Scorer: threads must be at least 1, or None for all usable cores, got {threads!r}")
        self.threads = threads
        self.features = features
        self.tables = dict(tables or {})
        for feature in features.all if features else ():
            check_table(feature, self.tables.get(feature.name))
        self._weights_digest: str | None = None  # set by from_bundle, where the weights are known
        self._fusion_weights = np.asarray(self.fusion.weights_for(plan.tasks), np.float32)
        self.dense_scores(np.empty((0, plan.in_features), np.float32))  # the library checks plan and packed weights

    @classmethod
    def load(cls, path: str | os.PathLike[str], threads: int | None = None, precision: str | None = None) -> Scorer:
        """The scorer of a bundle file (:mod:`~resflow_kernels.bundle`), optionally in another precision than its own.

        Raises:
            BundleError: the file is missing, damaged, foreign or newer.
            ImportError: the compiled library is not built.
        """
        return cls.from_bundle(load_bundle(path), threads, precision=precision)

    @classmethod
    def from_bundle(
        cls, bundle: Bundle, threads: int | None = None, fusion: Fusion | None = None, precision: str | None = None
    ) -> Scorer:
        """The scorer of a loaded bundle; ``fusion`` and ``precision`` replace the bundle's own if given."""
        plan = bundle.plan if precision is None else replace(bundle.plan, precision=precision)
        packed = cls.pack(plan, bundle.weights)
        fusion = bundle.fusion if fusion is None else fusion
        scorer = cls(plan, packed, fusion, bundle.tasks, bundle.features, bundle.tables, threads)
        scorer._weights_digest = weights_digest(bundle.weights)
        return scorer

    @staticmethod
    def pack(plan: AnyPlan, weights: Sequence[Floats]) -> NDArray[np.uint8]:
        """Pack float32 weights, listed as in ``plan.weight_shapes``, into the kernels' layout, uint8."""
        packed: NDArray[np.uint8] = compiled().pack_towers(list(weights), plan.encoded)
        return packed

    def dense_scores(self, x: ArrayLike, fusion_weights: ArrayLike | None = None, weights_per: str = "call") -> Scores:
        """Score candidates.

        Args:
            x: float32 ``[B, D]``; float64 (pandas), float16 and integers are rounded to it, here and in all forms.
            fusion_weights: replace the model's own in this call: ``[K]``, or ``[B, K]`` with
                ``weights_per="candidate"`` (``K + 1`` values for ``ExpectedValue``).
            weights_per: ``"call"`` or ``"candidate"``.

        Returns:
            :class:`Scores`: float32 logits ``[B, K]``, probs ``[B, K]``, score ``[B]``.

        Raises:
            ValueError: an input of the wrong shape or dtype; the message names it.
        """
        return Scores(*self._run("dense_scores", (as_rows(x),), fusion_weights, weights_per))

    def request_scores(
        self,
        user: ArrayLike,
        item: ArrayLike,
        offsets: ArrayLike,
        fusion_weights: ArrayLike | None = None,
        weights_per: str = "call",
    ) -> Scores:
        """Score the candidates of requests; the user's part of the first layer is computed once per request.

        Args:
            user: float32 ``[R, Du]``, one row per request.
            item: float32 ``[N, Di]``, the candidates of all requests, concatenated; ``Du + Di = D``.
            offsets: int64 ``[R + 1]``; request ``r`` owns candidates ``offsets[r]`` to ``offsets[r + 1]``.
            fusion_weights: as in :meth:`dense_scores`, also ``[R, K]`` with ``weights_per="request"``.

        Returns:
            :class:`Scores` of the ``N`` candidates.
        """
        inputs = (as_rows(user), as_rows(item), as_int64(offsets))
        return Scores(*self._run("request_scores", inputs, fusion_weights, weights_per))

    def dense_topk(
        self,
        x: ArrayLike,
        k: int,
        offsets: ArrayLike | None = None,
        fusion_weights: ArrayLike | None = None,
        weights_per: str = "call",
    ) -> TopK:
        """The ``k`` best candidates of each request; their scores are never in memory.

        Args:
            x: float32 ``[B, D]``.
            k: number of candidates per request, at least 1.
            offsets: int64 ``[R + 1]``; ``None``: all rows are one request.
            fusion_weights: as in :meth:`request_scores`.

        Returns:
            :class:`TopK`: scores ``[R, k]`` and positions ``[R, k]`` within the request. Equal scores rank by
            lower position, NaN after every number; a request with fewer than ``k`` candidates is padded with
            score NaN and position -1.
        """
        rows = as_rows(x)
        places = np.array([0, *rows.shape[:1]], np.int64) if offsets is None else as_int64(offsets)
        return TopK(*self._run("dense_topk", (rows, places), fusion_weights, weights_per, _count(k)))

    def request_topk(
        self,
        user: ArrayLike,
        item: ArrayLike,
        offsets: ArrayLike,
        k: int,
        fusion_weights: ArrayLike | None = None,
        weights_per: str = "call",
    ) -> TopK:
        """:meth:`dense_topk` of the request form; arguments as in :meth:`request_scores`."""
        inputs = (as_rows(user), as_rows(item), as_int64(offsets))
        return TopK(*self._run("request_topk", inputs, fusion_weights, weights_per, _count(k)))

    def catalog_rows(self, items: ArrayLike, dtype: str = "bfloat16") -> Table:
        """Compute the items' part of the first layers, once for all calls of the catalog form.

        Args:
            items: float32 ``[M, Di]``, the last ``Di`` columns of the input row.
            dtype: the precision to which rows are rounded: ``"float32"``, ``"bfloat16"`` or ``"int8"``.

        Returns:
            :class:`Table` of ``M`` rows. :func:`resflow_kernels.serving.catalog.build_catalog` writes one to a file.
        """
        if dtype not in TABLE_PRECISIONS:
            raise ValueError(f"catalog_rows: dtype must be one of {', '.join(TABLE_PRECISIONS)}, got {dtype!r}")
        code = PRECISION_ROWS[dtype].code
        return Table(*self._library.catalog_rows(as_rows(items), self.packed, self.plan.encoded, code, self._threads))

    def catalog_scores(
        self,
        user: ArrayLike,
        ids: ArrayLike,
        offsets: ArrayLike,
        table: Table | Catalog,
        fusion_weights: ArrayLike | None = None,
        weights_per: str = "call",
    ) -> Scores:
        """Score items of a catalog by item number.

        Args:
            user: float32 ``[R, Du]``, one row per request.
            ids: int64 ``[N]``, rows of the table, the candidates of all requests, concatenated.
            offsets: int64 ``[R + 1]``; request ``r`` owns candidates ``offsets[r]`` to ``offsets[r + 1]``.
            table: an open catalog, which is checked to be of this model's weights, or a :class:`Table` made with
                them (:meth:`catalog_rows`), which is not checked.
            fusion_weights: as in :meth:`request_scores`.

        Returns:
            :class:`Scores` of the ``N`` candidates.

        Raises:
            ValueError: an input of the wrong shape or dtype, an id out of range; the message names it.
            CatalogError: a catalog built with other weights.
        """
        inputs = (as_rows(user), as_int64(ids), as_int64(offsets), *self._table(table))
        return Scores(*self._run("catalog_scores", inputs, fusion_weights, weights_per))

    def catalog_topk(
        self,
        user: ArrayLike,
        ids: ArrayLike,
        offsets: ArrayLike,
        table: Table | Catalog,
        k: int,
        fusion_weights: ArrayLike | None = None,
        weights_per: str = "call",
    ) -> TopK:
        """:meth:`dense_topk` of the catalog form; positions are indices in the request's list of ids."""
        inputs = (as_rows(user), as_int64(ids), as_int64(offsets), *self._table(table))
        return TopK(*self._run("catalog_topk", inputs, fusion_weights, weights_per, _count(k)))

    def feature_scores(
        self, encoded: Encoded, fusion_weights: ArrayLike | None = None, weights_per: str = "call"
    ) -> Scores:
        """Score candidates by their encoded features; their embeddings are never in memory.

        Args:
            encoded: all features of ``B`` candidates, as returned by ``FeatureSet.encode_user`` and ``encode_item``
                (both in one dict).
            fusion_weights: as in :meth:`dense_scores`.

        Returns:
            :class:`Scores` of the ``B`` candidates.

        Raises:
            ValueError: the model has no features, or others than those encoded; an index is out of range.
        """
        looked_up = self._looked_up(encoded, self._features().all)
        inputs = (*looked_up, *self._tables)
        return Scores(*self._run("feature_scores", inputs, fusion_weights, weights_per))

    def feature_request_scores(
        self,
        user: Encoded,
        item: Encoded,
        offsets: ArrayLike,
        fusion_weights: ArrayLike | None = None,
        weights_per: str = "call",
    ) -> Scores:
        """:meth:`request_scores` for encoded features: the users' ``R`` rows and the items' ``N`` rows.

        Example:
            >>> user, item = features.encode_user(users), features.encode_item(candidates)  # doctest: +SKIP
            >>> scorer.feature_request_scores(user, item, offsets).score                    # doctest: +SKIP
        """
        inputs = self._split(user, item, offsets)
        return Scores(*self._run("feature_request_scores", inputs, fusion_weights, weights_per))

    def feature_topk(
        self,
        encoded: Encoded,
        k: int,
        offsets: ArrayLike | None = None,
        fusion_weights: ArrayLike | None = None,
        weights_per: str = "call",
    ) -> TopK:
        """:meth:`dense_topk` for encoded features; see :meth:`feature_scores`."""
        looked_up = self._looked_up(encoded, self._features().all)
        places = np.array([0, len(looked_up[0])], np.int64) if offsets is None else as_int64(offsets)
        inputs = (*looked_up, *self._tables, places)
        return TopK(*self._run("feature_topk", inputs, fusion_weights, weights_per, _count(k)))

    def feature_request_topk(
        self,
        user: Encoded,
        item: Encoded,
        offsets: ArrayLike,
        k: int,
        fusion_weights: ArrayLike | None = None,
        weights_per: str = "call",
    ) -> TopK:
        """:meth:`request_topk` for encoded features; see :meth:`feature_request_scores`."""
        inputs = self._split(user, item, offsets)
        return TopK(*self._run("feature_request_topk", inputs, fusion_weights, weights_per, _count(k)))

    def _table(self, table: Table | Catalog) -> Table:
        if isinstance(table, Table):
            return table
        if self._weights_digest is None:
            raise ValueError("Scorer: table must be a Table for a scorer that no bundle made, got a catalog")
        table.check(self._weights_digest)
        return table.table

    def embed_users(self, table: pa.Table) -> Floats:
        """User rows ``[n, Du]`` of a table that has the user's feature columns.

        Raises:
            ValueError: the model has no features, or a column is missing or of the wrong type.
        """
        features = self._features()
        return features.embed(features.encode_user(table), self.tables)

    def embed_items(self, table: pa.Table) -> Floats:
        """Item rows ``[n, Di]`` of a table that has the item's feature columns; see :meth:`embed_users`."""
        features = self._features()
        return features.embed(features.encode_item(table), self.tables)

    def _features(self) -> FeatureSet:
        if self.features is None:
            raise ValueError("Scorer: features must be in the bundle to embed a table, got a bundle without")
        return self.features

    def _looked_up(self, encoded: Encoded, features: Sequence[Feature]) -> tuple[Any, ...]:
        names = [feature.name for feature in features]
        if set(encoded) != set(names):
            raise ValueError(f"Scorer: encoded must be the features {', '.join(names)}, got {', '.join(encoded)}")
        return looked_up(encoded, names, {feature.name for feature in features if feature.kind == "ids"})

    def _split(self, user: Encoded, item: Encoded, offsets: ArrayLike) -> tuple[Any, ...]:
        features = self._features()
        sides = (*self._looked_up(user, features.user), *self._looked_up(item, features.item))
        return (*sides, as_int64(offsets), *self._tables, len(features.user))

    @cached_property
    def _tables(self) -> tuple[list[Floats], list[Floats], list[int]]:
        """Tables, scales (none, because the tables are float32) and the indices of the features that are lists."""
        features = self._features().all
        ragged = [at for at, feature in enumerate(features) if feature.kind == "ids"]
        return [self.tables[feature.name] for feature in features], [], ragged

    @cached_property
    def _pooling(self) -> list[int]:
        """How each feature that is a list is pooled."""
        return [POOLING.index(feature.pooling) for feature in self._features().all if feature.kind == "ids"]

    @property
    def _threads(self) -> int:
        return 0 if self.threads is None else self.threads  # 0: the library uses all usable cores

    def _run(
        self, op: str, inputs: tuple[Any, ...], fusion_weights: ArrayLike | None, weights_per: str, *k: int
    ) -> tuple[Any, ...]:
        """Compute an op of the library from its form's inputs; without fusion weights, with the model's own."""
        if weights_per not in WEIGHTS_PER:
            raise ValueError(f"weights_per must be one of {', '.join(WEIGHTS_PER)}, got {weights_per!r}")
        if fusion_weights is None:
            weights, weights_per = self._fusion_weights, "call"
        else:
            weights = np.ascontiguousarray(fusion_weights, np.float32)
        settings = (weights, self.plan.encoded, self.fusion.code, WEIGHTS_PER.index(weights_per), *k)
        options = FORMS[op.rsplit("_", 1)[0]].options
        given = [self._pooling if name == "pooling" else default for name, default in options.items()]
        made: tuple[Any, ...] = getattr(self._library, op)(*inputs, self.packed, *settings, *given, self._threads)
        return made


def _count(k: int) -> int:
    try:
        return index(k)
    except TypeError:
        raise ValueError(f"k must be an integer, got {k!r}") from None
