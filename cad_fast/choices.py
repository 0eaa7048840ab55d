"""The names that options take, in a module that imports nothing: the command line offers them without torch."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal["weight", "neuron", "filter", "head"]
Method = Literal["gradient", "ablated_gradient", "second_order", "regression", "exact", "sensitivity"]
Solver = Literal["ols", "ridge", "lasso", "lsmr"]
Draw = Literal["partitions", "bernoulli"]
Executor = Literal["local", "ray"]
Scope = Literal["global", "tensor", "row"]
Offload = Literal["none", "model", "sequential"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

KINDS: tuple[Kind, ...] = get_args(Kind)
METHODS: tuple[Method, ...] = get_args(Method)
SOLVERS: tuple[Solver, ...] = get_args(Solver)
DRAWS: tuple[Draw, ...] = get_args(Draw)
EXECUTORS: tuple[Executor, ...] = get_args(Executor)
SCOPES: tuple[Scope, ...] = get_args(Scope)
OFFLOADS: tuple[Offload, ...] = get_args(Offload)
SCORE_DTYPES = ("float32", "float16")
DTYPES: tuple[DtypeName, ...] = get_args(DtypeName)
