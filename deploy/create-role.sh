#!/bin/sh
# Run once by the database's image, when its volume is empty: make the role and the database that
# the service works with. The role owns its database and nothing else; only the superuser may make
# the extension. Afterwards the superuser has no password, so nobody becomes one over the network:
#   docker compose exec database psql -U postgres
set -eu

psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname=postgres <<'SQL'
\getenv password POSTGRES_PASSWORD
\getenv superuser POSTGRES_USER
CREATE ROLE sealdex LOGIN PASSWORD :'password';
CREATE ROLE sealdex_auditor NOLOGIN;
CREATE DATABASE sealdex OWNER sealdex;
REVOKE ALL ON DATABASE sealdex FROM PUBLIC;
ALTER ROLE :"superuser" PASSWORD NULL;
\connect sealdex
CREATE EXTENSION vector;
SQL
