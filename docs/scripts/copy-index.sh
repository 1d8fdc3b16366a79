#!/bin/sh
# Copy one index with all its items from one Sealdex database to another: copy-index.sh SOURCE_URL TARGET_URL INDEX_NAME
# Both schemas are at the same revision. Nothing is opened on the way, so no key is needed; the index keeps its key.
# Writes to this index wait meanwhile; reads, and all other indexes, do not.
set -eu
export SOURCE_URL="$1"
target=$2 name=$3

ask() { psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 --set=name="$name" "$@"; }

id=$(echo "SELECT id FROM indexes WHERE name = :'name'" | ask "$SOURCE_URL")
[ -n "$id" ] || { echo "copy-index: there is no index $name in the source" >&2; exit 1; }
taken=$(echo "SELECT count(*) FROM indexes WHERE name = :'name'" | ask "$target")
[ "$taken" = 0 ] || { echo "copy-index: there is an index $name already in the target" >&2; exit 1; }
partition=items_$(echo "$id" | tr -d -)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export WORK="$work"

# The rows of the tables that know the index, and its partition with the ivfflat index.
ask "$SOURCE_URL" <<SQL
BEGIN;
LOCK TABLE $partition IN SHARE MODE;
\\copy (SELECT * FROM indexes WHERE id = '$id') TO '$work/indexes' (FORMAT BINARY)
\\copy (SELECT * FROM item_counts WHERE index_id = '$id') TO '$work/item_counts' (FORMAT BINARY)
\\copy (SELECT * FROM users WHERE index_id = '$id') TO '$work/users' (FORMAT BINARY)
\\! pg_dump --table=$partition --no-owner --file="\$WORK/partition.sql" "\$SOURCE_URL" || touch "\$WORK/failed"
COMMIT;
SQL
[ ! -e "$work/failed" ] || exit 1

# All or nothing. The dump attaches the partition before it has its primary key, and the table items would give it another.
{
    cat <<SQL
BEGIN;
\\copy indexes FROM '$work/indexes' (FORMAT BINARY)
\\copy item_counts FROM '$work/item_counts' (FORMAT BINARY)
\\copy users FROM '$work/users' (FORMAT BINARY)
SQL
    grep -v '^ALTER .* ATTACH PARTITION ' "$work/partition.sql"
    grep '^ALTER TABLE .* ATTACH PARTITION ' "$work/partition.sql"
    echo "COMMIT;"
} | ask "$target" > /dev/null
echo "Copied index $name ($id)."
