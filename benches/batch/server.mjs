// The batch endpoint as a team would write it by hand: one Node process, pg, dataloader, JSON.stringify. It knows one
// model and one key, comments by their issue, and answers the same requests with the same rows as POST /sync/batch.
//
// LOADER=request makes a dataloader for each request, as its documentation advises. LOADER=shared keeps one an org for
// all requests, which waits for company for 5 ms and forgets a key once it is loaded, so that requests that come together share a
// read.
//
// Environment: DATABASE_URL, SECRET (of the tokens, HS256), PORT, LOADER.

import http from 'node:http';
import DataLoader from 'dataloader';
import jwt from 'jsonwebtoken';
import pg from 'pg';

// As JSON of PostgreSQL's writes it: no Date is made and formatted again.
pg.types.setTypeParser(pg.types.builtins.TIMESTAMPTZ, (text) => `${text.replace(' ', 'T')}:00`);

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10, options: '-c timezone=UTC' });

const COMMENTS = {
    name: 'comments',
    text: `SELECT c.id, c.issue_id AS "issueId", c.user_id AS "userId", c.body, c.created_at AS "createdAt",
                  c.edited_at AS "editedAt", c.deleted_at AS "deletedAt", i.team_id AS team
           FROM comment c JOIN issue i ON i.id = c.issue_id
           WHERE i.organization_id = $1 AND c.issue_id = ANY($2::uuid[])
             AND c.deleted_at IS NULL AND i.archived_at IS NULL`,
};

const TEAMS = {
    name: 'teams',
    text: 'SELECT team_id FROM team_membership WHERE organization_id = $1 AND user_id = $2',
};

async function loadComments(org, issues) {
    const { rows } = await pool.query({ ...COMMENTS, values: [org, issues] });
    const found = new Map(issues.map((issue) => [issue, []]));
    for (const { team, ...comment } of rows) {
        found.get(comment.issueId).push({ team, comment: { __class: 'Comment', ...comment } });
    }
    return issues.map((issue) => found.get(issue));
}

const shared = new Map();

function loaderOf(org) {
    if (process.env.LOADER !== 'shared') {
        return new DataLoader((issues) => loadComments(org, issues));
    }
    if (!shared.has(org)) {
        const loader = new DataLoader(
            (issues) => loadComments(org, issues).finally(() => issues.forEach((issue) => loader.clear(issue))),
            { batchScheduleFn: (load) => setTimeout(load, 5) },
        );
        shared.set(org, loader);
    }
    return shared.get(org);
}

async function batch({ org, sub }, { requests }) {
    if (requests.some(({ modelName, indexedKey }) => modelName !== 'Comment' || indexedKey !== 'issueId')) {
        throw new Error('no such key');
    }
    const loader = loaderOf(org);
    const issues = [...new Set(requests.map(({ keyValue }) => keyValue))];
    const loaded = await loader.loadMany(issues);
    const failed = loaded.find((rows) => rows instanceof Error);
    if (failed) {
        throw failed;
    }
    // After the rows, so that a right that was taken away meanwhile is not used.
    const memberships = await pool.query({ ...TEAMS, values: [org, sub] });
    const teams = new Set(memberships.rows.map(({ team_id }) => team_id));
    const lines = [];
    for (const rows of loaded) {
        for (const { team, comment } of rows) {
            if (teams.has(team)) {
                lines.push(JSON.stringify(comment));
            }
        }
    }
    lines.push(JSON.stringify({ __class: '_metadata_', returnedModelsCount: { Comment: lines.length } }));
    return `${lines.join('\n')}\n`;
}

async function read(request) {
    const pieces = [];
    for await (const piece of request) {
        pieces.push(piece);
    }
    return JSON.parse(Buffer.concat(pieces));
}

const server = http.createServer(async (request, response) => {
    try {
        const claims = jwt.verify(request.headers.authorization.slice('Bearer '.length), process.env.SECRET, {
            algorithms: ['HS256'],
        });
        const answer = await batch(claims, await read(request));
        response.writeHead(200, { 'content-type': 'application/x-ndjson' });
        response.end(answer);
    } catch (error) {
        console.error(error);
        response.writeHead(500);
        response.end();
    }
});

server.listen(Number(process.env.PORT), '127.0.0.1');
