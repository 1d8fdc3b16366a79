#!/bin/sh
# Write the files of this folder anew; `make lock` runs this script with uv on the PATH.
#
# `service.txt` pins what the service needs, with the hash of every distribution, for Python 3.11
# and newer on every platform; `build.txt` what builds the service. A file named for an extra pins
# what that extra adds, and is used together with `service.txt`. `embeddings.txt` pins all, but has
# no hashes and is for pip's option --constraint: builds of torch for one kind of processor come
# from other places than the registry and have hashes of their own.
#
# Pins that are there already stay: delete a line (or a file) to have that package resolved anew.
set -eu
cd "$(dirname "$0")/.."

compile() {
    uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate "$@"
}

pins=$(mktemp)
trap 'rm "$pins"' EXIT
cat requirements/*.txt | sed -n 's/^\([A-Za-z0-9._-]*==[^ ;\\]*\).*/\1/p' | sort -u > "$pins"
compile pyproject.toml --all-extras --constraint "$pins" --output-file requirements/embeddings.txt
cp requirements/embeddings.txt "$pins"

locked() {
    compile --generate-hashes --constraint "$pins" "$@"
}
locked pyproject.toml --output-file requirements/service.txt
printf 'hatchling>=1.26\neditables\n' | locked - --output-file requirements/build.txt
# What the service needs on Windows alone stays in the file of the extra.
without_service=$(sed -n "/== .win32/!s/^\([A-Za-z0-9._-]*\)==.*/--no-emit-package \1/p" requirements/service.txt)
for extra in embedded otel parquet report dev; do
    # The names of packages have no spaces: each option is a word.
    locked pyproject.toml --extra "$extra" $without_service | sed '/^# /d; /^$/d' \
        > "requirements/$extra.new"
    mv "requirements/$extra.new" "requirements/$extra.txt"
done
