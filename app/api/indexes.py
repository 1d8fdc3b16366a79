"""Routes of indexes."""

from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from app.api.around.routes import changes, reads
from app.api.bodies import DoneAnswer, IndexRequest
from app.api.index_bodies import CreateRequest, DescribeAnswer, IndexNamesAnswer
from app.api.stats import StatsAnswer
from app.domain import Caller
from app.services.context import ServiceContext


@get("/list", opt=reads("list"))
async def list_indexes(
    caller: NamedDependency[Caller], services: NamedDependency[ServiceContext]
) -> IndexNamesAnswer:
    """Name the indexes that the caller may see."""
    names = await services.indexes.names(caller)
    await services.trail.read(caller)
    return IndexNamesAnswer(names)


@post("/create", status_code=200, opt=changes("create", is_root_only=True))
async def create(
    data: JSONBody[CreateRequest],
    caller: NamedDependency[Caller],
    services: NamedDependency[ServiceContext],
) -> DoneAnswer:
    """Create an empty index."""
    await services.indexes.create(data.to_new_index(), caller)
    return DoneAnswer(message=f"Index '{data.index_name}' created successfully")


@post("/describe", status_code=200, opt=reads("describe"))
async def describe(
    data: JSONBody[IndexRequest],
    caller: NamedDependency[Caller],
    services: NamedDependency[ServiceContext],
) -> DescribeAnswer:
    """Describe an index."""
    return DescribeAnswer.of(await services.indexes.describe(data.access(caller)))


@post("/delete", status_code=200, opt=changes("delete", is_root_only=True))
async def delete(
    data: JSONBody[IndexRequest],
    caller: NamedDependency[Caller],
    services: NamedDependency[ServiceContext],
) -> DoneAnswer:
    """Delete an index with all its items."""
    await services.indexes.delete(data.access(caller))
    return DoneAnswer(message=f"Index '{data.index_name}' deleted successfully")


@post("/stats", status_code=200, opt=reads("stats"))
async def stats(
    data: JSONBody[IndexRequest],
    caller: NamedDependency[Caller],
    services: NamedDependency[ServiceContext],
) -> StatsAnswer:
    """Report what is known of an index beyond the contract: sizes, drift, search profile."""
    return StatsAnswer.of(await services.indexes.stats(data.access(caller)))


router = Router(
    "/indexes", route_handlers=[list_indexes, create, describe, delete, stats], tags=["indexes"]
)
