"""Routes of indexes."""

from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from app.api.around.auth import ROOT_ONLY
from app.api.schemas import (
    CreateRequest,
    DescribeAnswer,
    DoneAnswer,
    IndexNamesAnswer,
    IndexRequest,
)
from app.api.stats import StatsAnswer
from app.domain import Caller
from app.services.indexes import IndexService


@get("/list")
async def list_indexes(
    caller: NamedDependency[Caller], indexes: NamedDependency[IndexService]
) -> IndexNamesAnswer:
    """Name the indexes that the caller may see."""
    return IndexNamesAnswer(await indexes.names(caller))


@post("/create", status_code=200, opt=ROOT_ONLY)
async def create(
    data: JSONBody[CreateRequest],
    caller: NamedDependency[Caller],
    indexes: NamedDependency[IndexService],
) -> DoneAnswer:
    """Create an empty index."""
    await indexes.create(data.to_new_index(), caller)
    return DoneAnswer(message=f"Index '{data.index_name}' created successfully")


@post("/describe", status_code=200)
async def describe(
    data: JSONBody[IndexRequest],
    caller: NamedDependency[Caller],
    indexes: NamedDependency[IndexService],
) -> DescribeAnswer:
    """Describe an index."""
    return DescribeAnswer.of(await indexes.describe(data.access(caller)))


@post("/delete", status_code=200, opt=ROOT_ONLY)
async def delete(
    data: JSONBody[IndexRequest],
    caller: NamedDependency[Caller],
    indexes: NamedDependency[IndexService],
) -> DoneAnswer:
    """Delete an index with all its items."""
    await indexes.delete(data.access(caller))
    return DoneAnswer(message=f"Index '{data.index_name}' deleted successfully")


@post("/stats", status_code=200)
async def stats(
    data: JSONBody[IndexRequest],
    caller: NamedDependency[Caller],
    indexes: NamedDependency[IndexService],
) -> StatsAnswer:
    """Report what is known of an index beyond the contract: sizes, drift, search profile."""
    return StatsAnswer.of(await indexes.stats(data.access(caller)))


router = Router(
    "/indexes", route_handlers=[list_indexes, create, describe, delete, stats], tags=["indexes"]
)
