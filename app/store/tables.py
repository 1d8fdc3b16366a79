"""The schema, with which Alembic compares the database.

The comments are written for whoever owns the database.

`items` is LIST-partitioned by index. Each index has one partition, `items_<index id in hex>`. An
index of the kind `ivfflat` has on it one ivfflat index, `ivf_<index id in hex>_<generation>`, and
one GIN index of tokens; one of the kind `sealed` has a partition of `chunks` instead,
`chunks_<index id in hex>`. All these are made while the service runs and are no part of the
migrations.
"""

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BIT, BYTEA, JSONB, TIMESTAMP
from sqlalchemy.dialects.postgresql import UUID as PG_UUID

IVF_PREFIX = "ivf_"
PARTITION_PREFIX = "items_"
CHUNK_PARTITION_PREFIX = "chunks_"

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_NOW = sa.text("now()")

indexes = sa.Table(
    "indexes",
    metadata,
    sa.Column(
        "id",
        PG_UUID(as_uuid=True),
        primary_key=True,
        comment="Names the partition of items and is bound into every sealed value",
    ),
    sa.Column(
        "name", sa.Text, nullable=False, unique=True, comment="The name clients use; not encrypted"
    ),
    sa.Column(
        "revision",
        sa.BigInteger,
        nullable=False,
        server_default="1",
        comment="Grows with every change of this row that a worker must notice",
    ),
    sa.Column("metric", sa.Text, nullable=False, comment="cosine, euclidean or squared_euclidean"),
    sa.Column(
        "storage_precision",
        sa.Text,
        nullable=False,
        comment="Number format of the vectors before sealing",
    ),
    sa.Column(
        "dimension",
        sa.Integer,
        comment="Length of the vectors; null until the first upsert when none was given",
    ),
    sa.Column(
        "sketch_bits", sa.Integer, comment="Length of a sketch; null until the dimension is known"
    ),
    sa.Column(
        "sketch_noise",
        sa.Double,
        nullable=False,
        comment="Share of the bits of a stored sketch that are flipped",
    ),
    sa.Column(
        "wrapped_dek",
        BYTEA,
        nullable=False,
        comment="The data-encryption key, wrapped under the index key of the client",
    ),
    sa.Column(
        "encoder_version",
        sa.SmallInteger,
        nullable=False,
        server_default="0",
        comment="Version of the encoder that queries use; version v lives in column"
        " sketch_(v mod 2)",
    ),
    sa.Column(
        "sealed_encoder",
        BYTEA,
        comment="Mean and scale of the encoder, sealed; null until the first upsert",
    ),
    sa.Column(
        "sealed_next_encoder",
        BYTEA,
        comment="Mean and scale of the next version while a training moves to it, sealed",
    ),
    sa.Column(
        "generation",
        sa.Integer,
        nullable=False,
        server_default="1",
        comment="Generation of the ivfflat index that queries use: ivf_(id)_(generation)",
    ),
    sa.Column(
        "n_lists",
        sa.Integer,
        nullable=False,
        server_default="1",
        comment="IVF lists of that index; 1 until the first training",
    ),
    sa.Column(
        "requested_n_lists", sa.Integer, comment="IVF lists the client asked for at creation"
    ),
    sa.Column(
        "trained_at",
        TIMESTAMP(timezone=True),
        comment="When the last training ended; null before the first",
    ),
    sa.Column(
        "profile",
        JSONB,
        comment="Search profile: recall by probes and pool, measured by the last training",
    ),
    sa.Column(
        "n_items_at_training",
        sa.BigInteger,
        comment="Number of items when the last training began to build; null before the first",
    ),
    sa.Column(
        "n_changes_at_training",
        sa.BigInteger,
        comment="Count of changes when the last training began to build; null before the first",
    ),
    sa.Column(
        "n_outdated_at_training",
        sa.BigInteger,
        comment="Count of items replaced or deleted when the last training began to build; "
        "null before the first",
    ),
    sa.Column(
        "is_training_due",
        sa.Boolean,
        nullable=False,
        server_default=sa.false(),
        comment="A training has begun and not succeeded: a request that holds the key"
        " starts it again",
    ),
    sa.Column("embedding_model", sa.Text, comment="Model that embeds contents, if any"),
    sa.Column(
        "embedding_weights",
        sa.Text,
        comment="SHA-256 of the weights of that model when the index was created",
    ),
    sa.Column("index_config", JSONB, comment="The index_config an older client sent at creation"),
    sa.Column(
        "created_at",
        TIMESTAMP(timezone=True),
        nullable=False,
        server_default=_NOW,
        comment="When the index was created",
    ),
    sa.Column(
        "sealed_schema",
        BYTEA,
        comment="The metadata schema, sealed; null when the index was created without",
    ),
    sa.Column(
        "sealed_header",
        BYTEA,
        comment="What this row says in the clear of name, metric, noise and the like, sealed; "
        "null until the first request with the key after an upgrade",
    ),
    sa.Column(
        "kind",
        sa.Text,
        nullable=False,
        server_default="ivfflat",
        comment="ivfflat: PostgreSQL searches keyed sketches; "
        "sealed: the service searches sealed lists",
    ),
    comment="One row an index. Holds no key that opens anything without the client's index key",
)

items = sa.Table(
    "items",
    metadata,
    sa.Column(
        "index_id",
        PG_UUID(as_uuid=True),
        primary_key=True,
        comment="The index this item belongs to; partition key",
    ),
    sa.Column(
        "item_key",
        BYTEA,
        primary_key=True,
        comment="Keyed hash of the id: first 16 bytes of HMAC-SHA256",
    ),
    sa.Column("sealed_id", BYTEA, nullable=False, comment="The id, sealed"),
    sa.Column(
        "sketch_0",
        BIT(varying=True),
        comment="Keyed sketch of the vector by the encoder's even versions. "
        "Not encryption: near vectors have near sketches",
    ),
    sa.Column(
        "sketch_1",
        BIT(varying=True),
        comment="Keyed sketch of the vector by the encoder's odd versions",
    ),
    sa.Column("sealed_vector", BYTEA, nullable=False, comment="The exact vector, sealed"),
    sa.Column("sealed_contents", BYTEA, comment="The contents, sealed; null when there are none"),
    sa.Column(
        "sealed_metadata", BYTEA, comment="The metadata as JSON, sealed; null when there is none"
    ),
    sa.Column(
        "created_at",
        TIMESTAMP(timezone=True),
        nullable=False,
        server_default=_NOW,
        comment="When the id was first stored",
    ),
    sa.Column(
        "updated_at",
        TIMESTAMP(timezone=True),
        nullable=False,
        server_default=_NOW,
        comment="When the item was last replaced",
    ),
    sa.Column(
        "tokens",
        ARRAY(sa.BigInteger),
        comment="Keyed hashes of the metadata's strings and numbers, in no telling"
        " order; null for none",
    ),
    sa.Column(
        "tag",
        sa.BigInteger,
        comment="Random number of this version of the item, also in its entry; "
        "null outside sealed indexes",
    ),
    comment="The items of all indexes, one partition an index; every value is sealed or keyed",
    postgresql_partition_by="LIST (index_id)",
)

chunks = sa.Table(
    "chunks",
    metadata,
    sa.Column(
        "index_id",
        PG_UUID(as_uuid=True),
        primary_key=True,
        comment="The index this chunk belongs to; partition key",
    ),
    sa.Column(
        "name", BYTEA, primary_key=True, comment="Random name of the chunk, never used again"
    ),
    sa.Column(
        "generation",
        sa.Integer,
        nullable=False,
        comment="Generation of the lists that the entries were made for",
    ),
    sa.Column(
        "encoder_version",
        sa.SmallInteger,
        nullable=False,
        comment="Version of the encoder that the entries were made with",
    ),
    sa.Column(
        "epoch",
        sa.BigInteger,
        comment="Epoch in which a writer added the chunk; null for what belongs to a layout",
    ),
    sa.Column(
        "sealed_entries",
        BYTEA,
        nullable=False,
        comment="Entries of many items, or a page of a layout, sealed and padded",
    ),
    sa.Column(
        "sealed_terms",
        BYTEA,
        comment="What filters need of the same items, sealed and padded; null for none",
    ),
    # Searches begin at an epoch, so they never walk over what is left of merged chunks.
    # The index id is in it, or the primary key would seem as good to the planner.
    sa.Index("ix_chunks_epoch", "index_id", "epoch", postgresql_where=sa.text("epoch IS NOT NULL")),
    comment="The lists of all sealed indexes, one partition an index; every value is sealed",
    postgresql_partition_by="LIST (index_id)",
)

layouts = sa.Table(
    "layouts",
    metadata,
    sa.Column(
        "index_id",
        PG_UUID(as_uuid=True),
        sa.ForeignKey("indexes.id", ondelete="CASCADE"),
        primary_key=True,
        comment="The index whose lists are told",
    ),
    sa.Column(
        "version",
        sa.BigInteger,
        primary_key=True,
        autoincrement=False,
        comment="Number of the layout; the highest one holds",
    ),
    sa.Column(
        "generation", sa.Integer, nullable=False, comment="Generation of the lists: of a training"
    ),
    sa.Column(
        "encoder_version",
        sa.SmallInteger,
        nullable=False,
        comment="Version of the encoder that the lists were made with",
    ),
    sa.Column(
        "open_epoch",
        sa.BigInteger,
        nullable=False,
        comment="Epoch that writers give the chunks they add",
    ),
    sa.Column(
        "first_epoch",
        sa.BigInteger,
        nullable=False,
        comment="All chunks of earlier epochs have been merged into lists",
    ),
    sa.Column(
        "pages",
        ARRAY(BYTEA),
        nullable=False,
        comment="Names of the chunks that hold pages of the layout: directory and centroids",
    ),
    sa.Column(
        "sealed_root",
        BYTEA,
        nullable=False,
        comment="What the pages are, sealed together with the numbers of this row",
    ),
    sa.Column(
        "retired",
        ARRAY(BYTEA),
        nullable=False,
        comment="Names of the chunks that the layout before used and this one does not",
    ),
    sa.Column(
        "created_at",
        TIMESTAMP(timezone=True),
        nullable=False,
        server_default=sa.text("clock_timestamp()"),
        comment="When the layout was made; retired chunks are deleted a minute later",
    ),
    comment="Which chunks of a sealed index are in use: "
    "a row for each change, those of the last minute kept",
)

item_counts = sa.Table(
    "item_counts",
    metadata,
    sa.Column(
        "index_id",
        PG_UUID(as_uuid=True),
        sa.ForeignKey("indexes.id", ondelete="CASCADE"),
        primary_key=True,
        comment="The index that is counted",
    ),
    sa.Column(
        "shard",
        sa.Integer,
        primary_key=True,
        comment="Writers at work at the same time use different shards, so that none waits",
    ),
    sa.Column(
        "n_items",
        sa.BigInteger,
        nullable=False,
        comment="Items added less items deleted; the sum over the shards is the number of items",
    ),
    sa.Column(
        "n_changes", sa.BigInteger, nullable=False, comment="Items added, replaced or deleted"
    ),
    sa.Column(
        "n_outdated",
        sa.BigInteger,
        nullable=False,
        server_default="0",
        comment="Items replaced or deleted; n_changes counts them too",
    ),
    comment="How many items each index has, kept in the transaction that changes them",
)

users = sa.Table(
    "users",
    metadata,
    sa.Column(
        "index_id",
        PG_UUID(as_uuid=True),
        sa.ForeignKey("indexes.id", ondelete="CASCADE"),
        primary_key=True,
        comment="The index the user belongs to",
    ),
    sa.Column(
        "user_id",
        BYTEA,
        primary_key=True,
        index=True,
        comment="Random name of the user, part of its token",
    ),
    sa.Column(
        "wrapped_read_key",
        BYTEA,
        comment="What opens the items, wrapped under the key in the token; null"
        " without the permission",
    ),
    sa.Column(
        "wrapped_write_key",
        BYTEA,
        comment="What writes items, wrapped under the key in the token; null without"
        " the permission",
    ),
    sa.Column(
        "created_at",
        TIMESTAMP(timezone=True),
        nullable=False,
        server_default=_NOW,
        comment="When the user was made",
    ),
    sa.CheckConstraint(
        "wrapped_read_key IS NOT NULL OR wrapped_write_key IS NOT NULL", name="permission"
    ),
    comment="Users of one index each. A permission is a wrapped key; a row opens"
    " nothing without the user's token",
)

dropped_indexes = sa.Table(
    "dropped_indexes",
    metadata,
    sa.Column(
        "id",
        PG_UUID(as_uuid=True),
        primary_key=True,
        comment="A deleted index whose partition is still to be dropped",
    ),
    sa.Column(
        "dropped_at",
        TIMESTAMP(timezone=True),
        nullable=False,
        server_default=_NOW,
        comment="When it was deleted",
    ),
    comment="Deleted indexes whose partition is not yet gone; normally empty",
)

training_jobs = sa.Table(
    "training_jobs",
    metadata,
    sa.Column(
        "index_id",
        PG_UUID(as_uuid=True),
        sa.ForeignKey("indexes.id", ondelete="CASCADE"),
        primary_key=True,
        comment="The index that is trained",
    ),
    sa.Column(
        "claim",
        PG_UUID(as_uuid=True),
        nullable=False,
        comment="Random name of the trainer that holds the job",
    ),
    sa.Column(
        "state",
        sa.Text,
        nullable=False,
        comment="queued, running, succeeded, failed or interrupted",
    ),
    sa.Column(
        "queued_at",
        TIMESTAMP(timezone=True),
        nullable=False,
        server_default=_NOW,
        comment="When the training was asked for; the queue is in this order",
    ),
    sa.Column(
        "started_at",
        TIMESTAMP(timezone=True),
        comment="When the training began; null while it is queued",
    ),
    sa.Column(
        "heartbeat_at",
        TIMESTAMP(timezone=True),
        nullable=False,
        server_default=_NOW,
        comment="The trainer's last sign of life; a queued or running job without one"
        " for 30 s belongs to nobody",
    ),
    sa.Column(
        "phase",
        sa.Text,
        nullable=False,
        comment="waiting, fitting, encoding, building, calibrating, swapping or cleaning",
    ),
    sa.Column(
        "progress", sa.Integer, nullable=False, comment="Per cent of the training that is done"
    ),
    sa.Column(
        "generation",
        sa.Integer,
        nullable=False,
        comment="Generation of the ivfflat index that is being built",
    ),
    sa.Column(
        "requested_n_lists",
        sa.Integer,
        comment="IVF lists the client asked for; null for as many as fit the items",
    ),
    sa.Column(
        "n_failures",
        sa.Integer,
        nullable=False,
        comment="Trainings that failed since one succeeded",
    ),
    sa.Column("failure", sa.Text, comment="Why the last training failed; null when it did not"),
    sa.Column(
        "next_attempt_at",
        TIMESTAMP(timezone=True),
        comment="No automatic training before; null when one may start at once",
    ),
    comment="The last training of each index that was ever asked for, and how far it is",
)

index_drift = sa.Table(
    "index_drift",
    metadata,
    sa.Column(
        "index_id",
        PG_UUID(as_uuid=True),
        sa.ForeignKey("indexes.id", ondelete="CASCADE"),
        primary_key=True,
        comment="The index that was looked at",
    ),
    sa.Column(
        "looked_at",
        TIMESTAMP(timezone=True),
        nullable=False,
        server_default=_NOW,
        comment="When the service looked",
    ),
    sa.Column(
        "n_changes",
        sa.BigInteger,
        nullable=False,
        comment="Count of changes at that time; another count calls for another look",
    ),
    sa.Column(
        "drift_share",
        sa.Double,
        nullable=False,
        comment="SEALDEX_DRIFT_SHARE of the service that looked",
    ),
    sa.Column(
        "list_imbalance",
        sa.Double,
        comment="Size of the list of an average item over the size of an average list",
    ),
    sa.Column(
        "reasons",
        ARRAY(sa.Text),
        nullable=False,
        comment="Why the index should be trained again; empty when there is no reason",
    ),
    comment="Whether each trained index should be trained again, as the service saw it last",
)

trainings = sa.Table(
    "trainings",
    metadata,
    sa.Column(
        "id", sa.BigInteger, sa.Identity(), primary_key=True, comment="Number of the training"
    ),
    sa.Column(
        "index_id",
        PG_UUID(as_uuid=True),
        sa.ForeignKey("indexes.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
        comment="The index that was trained",
    ),
    sa.Column(
        "started_at", TIMESTAMP(timezone=True), nullable=False, comment="When the training began"
    ),
    sa.Column(
        "finished_at",
        TIMESTAMP(timezone=True),
        nullable=False,
        server_default=_NOW,
        comment="When the training ended",
    ),
    sa.Column("outcome", sa.Text, nullable=False, comment="succeeded, failed or interrupted"),
    sa.Column("failure", sa.Text, comment="Why it failed; null when it did not"),
    sa.Column("generation", sa.Integer, comment="Generation of the ivfflat index it built"),
    sa.Column(
        "n_items",
        sa.BigInteger,
        comment="Number of items when it began to build; null when it did not get there",
    ),
    sa.Column("n_lists", sa.Integer, comment="IVF lists it made; null when it did not get there"),
    sa.Column("encoder_version", sa.SmallInteger, comment="Version of the encoder it built for"),
    sa.Column(
        "recall",
        sa.Double,
        comment="Measured recall@10 at the default target; null when it was not measured",
    ),
    comment="Every training that has ended, the newest with the highest number",
)

audit_chains = sa.Table(
    "audit_chains",
    metadata,
    sa.Column(
        "chain",
        sa.Integer,
        primary_key=True,
        autoincrement=False,
        comment="Number of the chain; writers at work at the same time use different ones",
    ),
    sa.Column(
        "position",
        sa.BigInteger,
        nullable=False,
        server_default="0",
        comment="Position of the last entry",
    ),
    sa.Column(
        "hash",
        BYTEA,
        nullable=False,
        server_default=sa.text("'\\x'"),
        comment="Hash of the last entry; empty before the first",
    ),
    sa.Column(
        "kept_after",
        sa.BigInteger,
        nullable=False,
        server_default="0",
        comment="Position of the last entry that retention has dropped",
    ),
    sa.Column(
        "kept_hash",
        BYTEA,
        nullable=False,
        server_default=sa.text("'\\x'"),
        comment="Hash of that entry; empty when none was dropped",
    ),
    comment="Where each chain of the audit log ends, and where it begins since old"
    " months were dropped",
)

audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column(
        "chain",
        sa.Integer,
        primary_key=True,
        autoincrement=False,
        comment="The chain of this entry",
    ),
    sa.Column(
        "position",
        sa.BigInteger,
        primary_key=True,
        autoincrement=False,
        comment="Place in the chain, from 1, without gaps",
    ),
    sa.Column(
        "recorded_at",
        TIMESTAMP(timezone=True),
        primary_key=True,
        server_default=_NOW,
        comment="When the transaction of the change began; decides the partition",
    ),
    sa.Column(
        "caller", sa.Text, nullable=False, comment="Who: root, user and its id, open, or operator"
    ),
    sa.Column("key_id", sa.Text, comment="Keyed fingerprint of the index key that was used"),
    sa.Column("operation", sa.Text, nullable=False, comment="What was done"),
    sa.Column("index_id", PG_UUID(as_uuid=True), comment="To which index"),
    sa.Column("index_name", sa.Text, comment="Its name at that time"),
    sa.Column("n_items", sa.BigInteger, comment="How many items were written or deleted"),
    sa.Column("request_id", sa.Text, nullable=False, comment="X-Request-Id of the request"),
    sa.Column("outcome", sa.Text, nullable=False, comment="done, refused or failed"),
    sa.Column(
        "previous_hash", BYTEA, nullable=False, comment="Hash of the entry before; empty at first"
    ),
    sa.Column(
        "hash",
        BYTEA,
        nullable=False,
        comment="SHA-256 over previous_hash and the columns before it",
    ),
    comment="Append-only: who changed what, written in the transaction of the"
    " change. No key, no plaintext",
    postgresql_partition_by="RANGE (recorded_at)",
)

rate_limits = sa.Table(
    "rate_limits",
    metadata,
    sa.Column("caller", sa.Text, primary_key=True, comment="Whose rate, as in the audit log"),
    sa.Column(
        "busy_until",
        TIMESTAMP(timezone=True),
        nullable=False,
        comment="Until when that rate is used up",
    ),
    comment="How far each caller is ahead of its rate; empty unless a rate limit"
    " is set, and lost in a crash",
    prefixes=["UNLOGGED"],
)


def partition_name(index_id: UUID) -> str:
    """Return the name of the partition of `items` that holds the items of an index."""
    return f"{PARTITION_PREFIX}{index_id.hex}"


def chunk_partition_name(index_id: UUID) -> str:
    """Return the name of the partition of `chunks` that holds the lists of an index."""
    return f"{CHUNK_PARTITION_PREFIX}{index_id.hex}"


def ivf_name(index_id: UUID, generation: int) -> str:
    """Return the name of the ivfflat index of one generation of an index."""
    return f"{IVF_PREFIX}{index_id.hex}_{generation}"


def sketch_column(encoder_version: int) -> str:
    """Return the column that holds the sketches made by one version of the encoder."""
    return f"sketch_{encoder_version % 2}"
