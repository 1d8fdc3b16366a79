"""Routes of training, and their bodies."""

from typing import Any

from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from msgspec import Struct

from app.api.around.routes import changes, reads
from app.api.bodies import IndexRequest, Integer
from app.api.json_bodies import integer
from app.domain import Caller, TrainingStatus
from app.services.context import ServiceContext


class TrainRequest(IndexRequest, frozen=True, kw_only=True):
    """Body of train. Only `n_lists` has an effect; the other fields are the protocol's."""

    n_lists: Integer = None
    batch_size: Integer = None
    max_iters: Integer = None
    tolerance: float | None = None
    max_memory: Integer = None

    def to_n_lists(self) -> int | None:
        """Return how many lists to make, None for the automatic number. Raises `InvalidBody`."""
        for name in ("batch_size", "max_iters", "max_memory"):
            integer(getattr(self, name), name)
        return integer(self.n_lists, "n_lists")


class TrainAnswer(Struct, frozen=True, kw_only=True):
    """Answer to train: a failure is told with status 200, too."""

    status: str
    message: str

    @classmethod
    def of(cls, index_name: str, failure: str | None) -> "TrainAnswer":
        """Report success, or `failure`."""
        if failure is None:
            return cls(status="success", message=f"Index '{index_name}' trained successfully")
        return cls(status="error", message=f"Training failed for '{index_name}': {failure}")


class TrainingStatusAnswer(Struct, frozen=True, kw_only=True):
    """Answer to training-status; clients up to 0.14 need the last two, which say nothing."""

    training_indexes: list[str]
    currently_training: str | None
    queued_indexes: list[str]
    retrain_threshold: int
    worker_running: bool
    worker_pid: int = 0
    global_training: dict[str, Any] = {}

    @classmethod
    def of(cls, status: TrainingStatus) -> "TrainingStatusAnswer":
        """Return `status` in the contract's words."""
        return cls(
            training_indexes=[*status.running, *status.queued],
            currently_training=status.running[0] if status.running else None,
            queued_indexes=list(status.queued),
            retrain_threshold=status.retrain_threshold,
            worker_running=bool(status.running),
        )


@post("/train", status_code=200, opt=changes("train", is_root_only=True, takes_long=True))
async def train(
    data: JSONBody[TrainRequest],
    caller: NamedDependency[Caller],
    services: NamedDependency[ServiceContext],
) -> TrainAnswer:
    """Train an index and answer when it is done; reads and writes go on meanwhile."""
    failure = await services.training.train(data.access(caller), data.to_n_lists())
    return TrainAnswer.of(data.index_name, failure)


@get("/training-status", opt=reads("training_status"))
async def training_status(
    caller: NamedDependency[Caller], services: NamedDependency[ServiceContext]
) -> TrainingStatusAnswer:
    """Name the indexes that are being trained, by whichever worker, and those that wait for it."""
    status = await services.training.status(caller)
    await services.trail.read(caller)
    return TrainingStatusAnswer.of(status)


router = Router("/indexes", route_handlers=[train, training_status], tags=["training"])
