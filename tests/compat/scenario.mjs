// One scenario with the vendor's JavaScript SDK: `node scenario.mjs URL API_KEY`, where node_modules holds `cyborgdb`.
// Prints a JSON object: what each step ended in, as scenario.py does.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.cwd(), "scenario.cjs"));
const { Client, CyborgDB } = require("cyborgdb");

const [baseUrl, apiKey] = process.argv.slice(2);
const client = new (CyborgDB ?? Client)({ baseUrl, apiKey });
const indexName = `compat-js-${randomBytes(4).toString("hex")}`;
const indexKey = new Uint8Array(randomBytes(32));
const vectors = Array.from({ length: 100 }, (_, n) => [n, 1, 0.5]);
const ids = (found) => found.map((match) => match.id);
let index;

const steps = {
  async create() {
    index = await client.createIndex({
      indexName,
      indexKey,
      indexConfig: { type: "ivfflat", dimension: 3 },
      metric: "euclidean",
    });
    assert((await client.listIndexes()).includes(indexName));
  },
  async describe() {
    assert.equal(await index.getIndexName(), indexName);
    assert.equal(await index.getIndexType(), "ivfflat");
    assert.equal(await index.isTrained(), false);
    assert.equal((await index.getIndexConfig()).dimension, 3);
  },
  async create_kinds() {
    const kinds = [{ type: "ivf", dimension: 3 }, { type: "ivfpq", dimension: 3, pqDim: 8, pqBits: 8 }, undefined];
    for (const [n, indexConfig] of kinds.entries()) {
      const made = await client.createIndex({ indexName: `${indexName}-${n}`, indexKey, indexConfig });
      assert.equal(await made.getIndexType(), indexConfig?.type ?? "ivfflat");
      await made.deleteIndex();
    }
  },
  async upsert() {
    await index.upsert({
      items: vectors.map((vector, n) => ({
        id: `${n}`,
        vector,
        contents: Buffer.from(`text ${n}`),
        metadata: { n, group: n % 2 ? "odd" : "even" },
      })),
    });
    await index.upsert({ ids: ["100", "101"], vectors: [[100, 1, 0.5], [101, 1, 0.5]] });
  },
  async query_single() {
    const { results } = await index.query({
      queryVectors: [7.1, 1, 0.5],
      topK: 2,
      include: ["distance", "metadata"],
    });
    assert.deepEqual(ids(results), ["7", "8"]);
    assert(Math.abs(results[0].distance - 0.1) < 1e-5);
    assert.deepEqual(results[0].metadata, { n: 7, group: "odd" });
  },
  async query_batch() {
    const { results } = await index.query({ queryVectors: [[3, 1, 0.5], [90.2, 1, 0.5]], topK: 1 });
    assert.deepEqual(results.map(ids), [["3"], ["90"]]);
  },
  async filters() {
    const { results } = await index.query({ queryVectors: [0, 1, 0.5], topK: 3, filters: { group: "odd" } });
    assert.deepEqual(ids(results), ["1", "3", "5"]);
  },
  async get() {
    const items = await index.get({ ids: ["5", "unknown", "6"] });
    assert.deepEqual(ids(items), ["5", "6"]);
    assert.deepEqual(items[0].vector, [5, 1, 0.5]);
    assert.deepEqual(items[0].metadata, { n: 5, group: "odd" });
    // This SDK sends buffers as base64 and decodes what comes back.
    assert.equal(items[0].contents.toString(), "text 5");
  },
  async list_ids() {
    const { ids, count } = await index.listIds();
    assert.equal(count, 102);
    assert.equal(new Set(ids).size, 102);
  },
  async load() {
    const loaded = await client.loadIndex({ indexName, indexKey });
    assert.equal(await loaded.getIndexType(), "ivfflat");
    await assert.rejects(client.loadIndex({ indexName, indexKey: new Uint8Array(32) }));
  },
  async train() {
    await index.train();
    await index.train({ nLists: 2, batchSize: 2048, maxIters: 10, tolerance: 1e-6 });
  },
  async is_training() {
    if (apiKey) {
      // The SDK asks without its API key, which only an open service answers.
      await assert.rejects(client.isTraining());
      return "no: asks without its API key";
    }
    assert.deepEqual((await client.isTraining()).training_indexes, []);
  },
  async delete() {
    await index.delete({ ids: ["5"] });
    assert.deepEqual(await index.get({ ids: ["5"] }), []);
  },
  async delete_index() {
    await index.deleteIndex();
    assert(!(await client.listIndexes()).includes(indexName));
    // The SDK means to call this a success, but looks for the detail where its own client does not put it.
    await assert.rejects(index.deleteIndex());
  },
};

const outcome = {};
for (const [name, step] of Object.entries(steps)) {
  try {
    outcome[name] = (await step()) ?? "pass";
  } catch (error) {
    outcome[name] = `fail: ${error.message ?? error}`;
  }
}
console.log(JSON.stringify(outcome));
