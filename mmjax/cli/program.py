"""From a config to everything a verb runs: task, optimizer, mesh, shapes and places. Nothing is allocated here."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from mmjax import tasks
from mmjax.core import lora, optim, sharding, state, step, tree
from mmjax.core.ema import decays
from mmjax.core.errors import UserError
from mmjax.core.state import Roles, TrainState
from mmjax.core.types import Task


@dataclasses.dataclass(frozen=True)
class Program:
    """A config bound to a mesh.

    Attributes:
      abstract: the train state as shapes with their places: what init makes and a checkpoint is restored into.
      batch: the same for a batch.
      train_step: not yet jitted; `compile_step` does that.
    """

    config: ConfigDict
    task: Task
    tx: optax.GradientTransformationExtraArgs
    mesh: sharding.AnyMesh
    table: dict[str, tuple[str, ...]]
    roles: Roles
    abstract: TrainState
    batch: Any
    train_step: Callable

    def init(self) -> TrainState:
        """A fresh state, created in its places."""
        fn = lambda: state.init(self.task, self.tx, dict(self.config.ema), self.config.seed)
        with sharding.use(self.mesh, self.table):
            return jax.jit(fn, out_shardings=state.places(self.abstract))()

    def lower(self) -> Any:
        """The train step lowered for the mesh, its state donated: `.compile()` gives the executable."""
        out = (state.places(self.abstract), None)
        with sharding.use(self.mesh, self.table):
            return jax.jit(self.train_step, donate_argnums=0, out_shardings=out).lower(self.abstract, self.batch)

    def ema_name(self) -> str | None:
        """The average that evaluations use."""
        return next(iter(self.config.ema), None)


def make_task(config: ConfigDict) -> Task:
    """The config's task with its adapters and its frozen parameters.

    Raises:
      UserError: accumulation of a loss that is no mean over examples.
    """
    task = tasks.make(config)
    task = lora.wrap(dataclasses.replace(task, frozen=(*task.frozen, *config.optim.freeze)), config.lora)
    if config.accumulate > 1 and not task.can_accumulate:
        raise UserError(
            f"accumulate={config.accumulate}: the loss of task '{config.task}' compares the examples of a batch with each other "
            "and is no mean over examples; set accumulate=1"
        )
    return task


def assemble(config: ConfigDict, mesh: sharding.AnyMesh | None = None) -> Program:
    """Binds a config to a mesh, by default the one it describes on this process's devices."""
    if config.dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype is {config.dtype!r}; compute in 'float32' or 'bfloat16'")
    for key in ("steps", "batch_size", "accumulate"):
        if config[key] < 1:
            raise UserError(f"{key} is {config[key]}; expected a positive number")
    mesh = sharding.make_mesh(dict(config.mesh)) if mesh is None else mesh
    table = sharding.make_table(config.sharding.table)
    sharding.check_batch(config.batch_size, config.accumulate, mesh)
    task = make_task(config)
    params = jax.eval_shape(task.init, jax.random.key(0))
    roles = state.roles(task, params)
    if not roles.trained:
        raise UserError("optim.freeze leaves no parameter to train")
    pick = lambda t: tree.select(t, roles.trained.__contains__)
    given = config.optim, pick(params), task.axes, config.steps
    tx, _ = optim.make(*given)
    ema = decays(config.ema, config.batch_size)
    shapes = jax.eval_shape(lambda: state.init(task, tx, ema, config.seed))
    places = state.shardings(shapes, task, mesh, table, config.sharding.rules)
    batch_place = sharding.batch_sharding(mesh)
    return Program(
        config=config,
        task=task,
        tx=tx,
        mesh=mesh,
        table=table,
        roles=roles,
        abstract=state.abstract(shapes, places),
        batch=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_place), task.batch_spec),
        train_step=step.make_train_step(task, tx, accumulate=config.accumulate, ema=ema, schedules=optim.learning_rates(*given)),
    )
