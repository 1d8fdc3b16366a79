"""Routes of items."""

from litestar import Router, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from app.api.around.routes import changes, reads
from app.api.around.short_way import ShortWay
from app.api.bodies import DoneAnswer
from app.api.item_answers import CountAnswer, GetAnswer, IdsAnswer, QueryAnswer, UpsertAnswer
from app.api.item_bodies import (
    BinaryQueryRequest,
    BinaryUpsertRequest,
    CountRequest,
    DeleteRequest,
    GetRequest,
    ListIdsRequest,
    QueryRequest,
    UpsertRequest,
)
from app.domain import Caller
from app.services.context import ServiceContext


@post("/upsert", status_code=200, opt=changes("upsert", takes_batches=True))
async def upsert(
    data: JSONBody[UpsertRequest],
    caller: NamedDependency[Caller],
    services: NamedDependency[ServiceContext],
) -> UpsertAnswer:
    """Add items; those with a known id replace the old ones completely."""
    items = data.to_items(services.settings)
    outcome = await services.vectors.upsert(data.access(caller), items)
    return UpsertAnswer.of(len(items), outcome)


@post("/query", status_code=200, opt=reads("query"))
async def query(
    data: JSONBody[QueryRequest],
    caller: NamedDependency[Caller],
    services: NamedDependency[ServiceContext],
) -> QueryAnswer:
    """Return the items nearest to one or more vectors."""
    wanted = data.to_query(services.settings)
    found = await services.vectors.query(data.access(caller), wanted)
    return await QueryAnswer.of(found, wanted.include, services.settings.max_answer_bytes)


@post("/upsert_binary", status_code=200, opt=changes("upsert_binary", takes_batches=True))
async def upsert_binary(
    data: JSONBody[BinaryUpsertRequest],
    caller: NamedDependency[Caller],
    services: NamedDependency[ServiceContext],
) -> UpsertAnswer:
    """Add items as upsert does; their vectors come packed."""
    items = data.to_items(services.settings)
    outcome = await services.vectors.upsert_packed(data.access(caller), items)
    return UpsertAnswer.of(len(items.ids), outcome)


@post("/query_binary", status_code=200, opt=reads("query_binary"))
async def query_binary(
    data: JSONBody[BinaryQueryRequest],
    caller: NamedDependency[Caller],
    services: NamedDependency[ServiceContext],
) -> QueryAnswer:
    """Return the items nearest to one or more vectors, which come packed."""
    wanted = data.to_query(services.settings)
    found = await services.vectors.query(data.access(caller), wanted)
    return await QueryAnswer.of(found, wanted.include, services.settings.max_answer_bytes)


@post("/get", status_code=200, opt=reads("get_items"))
async def get_items(
    data: JSONBody[GetRequest],
    caller: NamedDependency[Caller],
    services: NamedDependency[ServiceContext],
) -> GetAnswer:
    """Return items by id, in the order asked for; unknown ids are left out."""
    include = data.known_includes()
    ids = data.different_ids(services.settings)
    items = await services.vectors.get(data.access(caller), ids, include)
    return await GetAnswer.of(data.ids, items, include, services.settings.max_answer_bytes)


@post("/delete", status_code=200, opt=changes("delete_items", takes_batches=True))
async def delete(
    data: JSONBody[DeleteRequest],
    caller: NamedDependency[Caller],
    services: NamedDependency[ServiceContext],
) -> DoneAnswer:
    """Delete items by id; unknown ids are fine."""
    ids = data.different_ids(services.settings)
    await services.vectors.delete(data.access(caller), ids)
    return DoneAnswer(message=f"Deleted {len(data.ids)} vectors")


@post("/list_ids", status_code=200, opt=reads("list_ids"))
async def list_ids(
    data: JSONBody[ListIdsRequest],
    caller: NamedDependency[Caller],
    services: NamedDependency[ServiceContext],
) -> IdsAnswer:
    """Return all ids of an index."""
    ids = await services.vectors.ids(data.access(caller))
    return await IdsAnswer.of(ids, services.settings.max_answer_bytes)


@post("/num_vectors", status_code=200, opt=reads("num_vectors"))
async def num_vectors(
    data: JSONBody[CountRequest],
    caller: NamedDependency[Caller],
    services: NamedDependency[ServiceContext],
) -> CountAnswer:
    """Count the items of an index, or those that match a filter."""
    return CountAnswer(await services.vectors.count(data.access(caller), data.filters))


router = Router(
    "/vectors",
    route_handlers=[
        upsert,
        upsert_binary,
        query,
        query_binary,
        get_items,
        delete,
        list_ids,
        num_vectors,
    ],
    tags=["vectors"],
    middleware=[ShortWay()],
)
