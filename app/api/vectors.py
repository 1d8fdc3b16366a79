"""Routes of items."""

from litestar import Router, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from app.api.around.short_way import DirectVectors
from app.api.schemas import (
    BinaryQueryRequest,
    BinaryUpsertRequest,
    CountAnswer,
    CountRequest,
    DeleteRequest,
    DoneAnswer,
    GetAnswer,
    GetRequest,
    IdsAnswer,
    IndexRequest,
    ItemAnswer,
    QueryAnswer,
    QueryRequest,
    UpsertAnswer,
    UpsertRequest,
)
from app.domain import Caller
from app.services.vectors import VectorService


@post("/upsert", status_code=200)
async def upsert(
    data: JSONBody[UpsertRequest],
    caller: NamedDependency[Caller],
    vectors: NamedDependency[VectorService],
) -> UpsertAnswer:
    """Add items; those with a known id replace the old ones completely."""
    return UpsertAnswer.of(
        len(data.items), await vectors.upsert(data.access(caller), data.to_items())
    )


@post("/query", status_code=200)
async def query(
    data: JSONBody[QueryRequest],
    caller: NamedDependency[Caller],
    vectors: NamedDependency[VectorService],
) -> QueryAnswer:
    """Return the items nearest to one or more vectors."""
    wanted = data.to_query()
    return QueryAnswer.of(await vectors.query(data.access(caller), wanted), wanted.include)


@post("/upsert_binary", status_code=200)
async def upsert_binary(
    data: JSONBody[BinaryUpsertRequest],
    caller: NamedDependency[Caller],
    vectors: NamedDependency[VectorService],
) -> UpsertAnswer:
    """Add items as upsert does; their vectors come packed."""
    return UpsertAnswer.of(
        len(data.batch.ids), await vectors.upsert_packed(data.access(caller), data.to_items())
    )


@post("/query_binary", status_code=200)
async def query_binary(
    data: JSONBody[BinaryQueryRequest],
    caller: NamedDependency[Caller],
    vectors: NamedDependency[VectorService],
) -> QueryAnswer:
    """Return the items nearest to one or more vectors, which come packed."""
    wanted = data.to_query()
    return QueryAnswer.of(await vectors.query(data.access(caller), wanted), wanted.include)


@post("/get", status_code=200)
async def get_items(
    data: JSONBody[GetRequest],
    caller: NamedDependency[Caller],
    vectors: NamedDependency[VectorService],
) -> GetAnswer:
    """Return items by id, in the order asked for; unknown ids are left out."""
    include = data.known_includes()
    items = await vectors.get(data.access(caller), data.ids, include)
    return GetAnswer([ItemAnswer.of(item, include) for item in items])


@post("/delete", status_code=200)
async def delete(
    data: JSONBody[DeleteRequest],
    caller: NamedDependency[Caller],
    vectors: NamedDependency[VectorService],
) -> DoneAnswer:
    """Delete items by id; unknown ids are fine."""
    await vectors.delete(data.access(caller), data.ids)
    return DoneAnswer(message=f"Deleted {len(data.ids)} vectors")


@post("/list_ids", status_code=200)
async def list_ids(
    data: JSONBody[IndexRequest],
    caller: NamedDependency[Caller],
    vectors: NamedDependency[VectorService],
) -> IdsAnswer:
    """Return all ids of an index."""
    ids = await vectors.ids(data.access(caller))
    return IdsAnswer(ids, len(ids))


@post("/num_vectors", status_code=200)
async def num_vectors(
    data: JSONBody[CountRequest],
    caller: NamedDependency[Caller],
    vectors: NamedDependency[VectorService],
) -> CountAnswer:
    """Count the items of an index, or those that match a filter."""
    return CountAnswer(await vectors.count(data.access(caller), data.filters))


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
    middleware=[DirectVectors()],
)
