FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/sealdex
COPY pyproject.toml constraints.txt constraints-embeddings.txt README.md LICENSE ./
COPY app app
COPY migrations migrations
# docker build --build-arg EXTRAS=embeddings: with torch and sentence-transformers.
ARG EXTRAS=""
RUN /opt/sealdex/bin/pip install --no-cache-dir --disable-pip-version-check \
    --constraint constraints.txt --constraint constraints-embeddings.txt ".${EXTRAS:+[$EXTRAS]}"

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
