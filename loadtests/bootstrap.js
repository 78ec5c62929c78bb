// Clients that begin with everything: from a snapshot that is there (hot), as members of few teams (few), going on with
// a download that broke (resume), and with a dump of their own (cold). One after the other, DURATION_S seconds each.

import { check, sleep } from 'k6';
import { createHash } from 'k6/crypto';
import http from 'k6/http';
import { demands, judge, limits, responseType } from './lib/answer.js';
import { firstByteMs, seconds, url, users } from './lib/settings.js';
import { headersOf, someUser, user } from './lib/workspace.js';

const scenario = (exec, place, vus) => ({
    executor: 'constant-vus',
    exec,
    vus,
    startTime: `${place * seconds}s`,
    duration: `${seconds}s`,
    // An answer that has begun is waited for.
    gracefulStop: '60s',
});

export const options = {
    scenarios: {
        hot: scenario('hot', 0, users),
        few: scenario('few', 1, users),
        resume: scenario('resume', 2, users),
        cold: scenario('cold', 3, Math.min(users, 2)),
    },
    thresholds: {
        ...demands,
        ...limits('scenario:hot', firstByteMs),
        ...limits('scenario:few', firstByteMs),
        ...limits('scenario:cold', firstByteMs * 4),
        'iterations{scenario:resume}': ['count>0'],
    },
    setupTimeout: '120s',
};

const everyone = user(1);

/** Waits for a snapshot, which the first request has made where there is none, and for the whole to hold parts against. */
export function setup() {
    judge(bootstrap(everyone, ''));
    let whole = part(everyone);
    for (let tries = 0; !whole.headers['Etag'] && tries < 100; tries += 1) {
        sleep(0.5);
        whole = part(everyone);
    }
    const etag = whole.headers['Etag'];
    check(whole, { 'a snapshot has an etag': () => whole.status === 200 && Boolean(etag) });
    return { etag, length: whole.body.byteLength, sha256: digest(whole.body) };
}

export function hot() {
    judge(bootstrap(everyone, ''));
}

export function few() {
    judge(bootstrap(someUser(), ''));
}

export function resume(whole) {
    const cut = 1 + Math.floor(Math.random() * (whole.length - 1));
    const first = part(everyone, whole.etag, `bytes=0-${cut - 1}`);
    const rest = part(everyone, whole.etag, `bytes=${cut}-`);
    check(rest, {
        'a part is a part': () => first.status === 206 && rest.status === 206,
        'the parts make the whole': () => digest(first.body, rest.body) === whole.sha256,
    });
}

export function cold() {
    const answer = judge(bootstrap(someUser(), '?noCache=true'));
    check(answer, { 'it was read from PostgreSQL': () => answer !== null && answer.metadata.method === 'postgres' });
}

function bootstrap(user, query) {
    return http.get(`${url}/sync/bootstrap${query}`, { headers: headersOf(user), responseType, tags: { name: 'bootstrap' } });
}

/** Bytes as they are sent, in a coding that k6 does not take off: all of them, or a range of what has the etag. */
function part(user, etag, range) {
    const headers = { ...headersOf(user), 'Accept-Encoding': 'identity' };
    if (range) {
        Object.assign(headers, { Range: range, 'If-Range': etag });
    }
    const tags = { name: 'bootstrap, a part' };
    return http.get(`${url}/sync/bootstrap?noSyncPackets=true`, { headers, responseType: 'binary', tags });
}

function digest(...pieces) {
    const hash = createHash('sha256');
    pieces.forEach((piece) => hash.update(piece));
    return hash.digest('hex');
}
