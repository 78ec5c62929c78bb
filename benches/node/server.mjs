// The bootstrap as a team would write it by hand, twice, in one Node process each:
//
//   GET /dump    a dump of the org, kept in MongoDB in chunks of zstd, sent as it is kept
//   GET /cursor  the rows read for each client with a cursor, each through JSON.stringify
//
// `node server.mjs make` makes the dump that /dump sends. Whoever holds a token of the org gets all of it: nobody's groups
// are looked at.
//
// Environment: QUERIES (a file with a list of statements, one a model), ORG, DATABASE_URL, MONGODB_URL, SECRET (of the
// tokens, HS256), PORT.

import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import { once } from 'node:events';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import zlib from 'node:zlib';
import jwt from 'jsonwebtoken';
import { MongoClient } from 'mongodb';
import pg from 'pg';
import QueryStream from 'pg-query-stream';

// As JSON of PostgreSQL's writes it: no Date is made and formatted again.
pg.types.setTypeParser(pg.types.builtins.TIMESTAMPTZ, (text) => `${text.replace(' ', 'T')}:00`);
pg.types.setTypeParser(pg.types.builtins.DATE, (text) => text);

const CHUNK = 8 << 20;
const queries = JSON.parse(readFileSync(process.env.QUERIES, 'utf8'));
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10, options: '-c timezone=UTC' });
const mongo = await new MongoClient(process.env.MONGODB_URL).connect();
const chunks = mongo.db().collection('chunks');

/** The lines of the org, some at a time. */
async function* lines() {
    const client = await pool.connect();
    try {
        await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY');
        let counted = 0;
        for (const text of queries) {
            let piece = '';
            for await (const row of client.query(new QueryStream(text, [], { batchSize: 1000 }))) {
                piece += `${JSON.stringify(row)}\n`;
                counted += 1;
                if (piece.length > 65536) {
                    yield piece;
                    piece = '';
                }
            }
            yield piece;
        }
        yield `${JSON.stringify({ __class: '_metadata_', rows: counted })}\n`;
    } finally {
        await client.query('COMMIT').catch(() => {});
        client.release();
    }
}

/** Node has zstd of its own since version 22.15. */
function compressed(bytes) {
    return zlib.zstdCompressSync?.(bytes) ?? spawnSync('zstd', ['-q', '-3', '-c'], { input: bytes, maxBuffer: 2 * CHUNK }).stdout;
}

async function make() {
    await chunks.deleteMany({ org: process.env.ORG });
    await chunks.createIndex({ org: 1, seq: 1 });
    let [pieces, size, seq] = [[], 0, 0];
    const keep = async () => {
        await chunks.insertOne({ org: process.env.ORG, seq: seq++, data: compressed(Buffer.concat(pieces)) });
        [pieces, size] = [[], 0];
    };
    for await (const line of lines()) {
        pieces.push(Buffer.from(line));
        size += pieces.at(-1).length;
        if (size >= CHUNK) {
            await keep();
        }
    }
    await keep();
}

async function sendDump(org, response) {
    response.writeHead(200, { 'content-type': 'application/x-ndjson', 'content-encoding': 'zstd' });
    for await (const { data } of chunks.find({ org }).sort({ seq: 1 }).batchSize(4)) {
        if (!response.write(data.buffer)) {
            await once(response, 'drain');
        }
    }
    response.end();
}

async function sendRows(response) {
    response.writeHead(200, { 'content-type': 'application/x-ndjson' });
    await pipeline(Readable.from(lines()), response);
}

if (process.argv[2] === 'make') {
    await make();
    await mongo.close();
    await pool.end();
} else {
    const server = http.createServer(async (request, response) => {
        try {
            const { org } = jwt.verify(request.headers.authorization.slice('Bearer '.length), process.env.SECRET, {
                algorithms: ['HS256'],
            });
            await (request.url === '/dump' ? sendDump(org, response) : sendRows(response));
        } catch (error) {
            console.error(error);
            response.destroy();
        }
    });
    server.listen(Number(process.env.PORT), '127.0.0.1');
}
