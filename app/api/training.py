"""Routes of training."""

from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from app.api.around.auth import ROOT_ONLY
from app.api.schemas import TrainAnswer, TrainingStatusAnswer, TrainRequest
from app.domain import Caller
from app.services.training import TrainingService


@post("/train", status_code=200, opt=ROOT_ONLY)
async def train(
    data: JSONBody[TrainRequest],
    caller: NamedDependency[Caller],
    training: NamedDependency[TrainingService],
) -> TrainAnswer:
    """Train an index and answer when it is done; reads and writes go on meanwhile."""
    failure = await training.train(data.access(caller), data.to_n_lists())
    return TrainAnswer.of(data.index_name, failure)


@get("/training-status")
async def training_status(
    caller: NamedDependency[Caller], training: NamedDependency[TrainingService]
) -> TrainingStatusAnswer:
    """Name the indexes that are being trained, by whichever worker, and those that wait for it."""
    return TrainingStatusAnswer.of(await training.status(caller))


router = Router("/indexes", route_handlers=[train, training_status], tags=["training"])
