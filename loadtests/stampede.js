// Everyone at once, and nothing is prepared: each of USERS asks for a dump that starts after its request. Those who come
// together share them, so that the database is read a few times however many ask.

import { check } from 'k6';
import http from 'k6/http';
import { Counter } from 'k6/metrics';
import { demands, judge, responseType } from './lib/answer.js';
import { admin, firstByteMs, url, users } from './lib/settings.js';
import { headersOf, someUser, user } from './lib/workspace.js';

const dumps = new Counter('dumps');

export const options = {
    scenarios: {
        stampede: { executor: 'per-vu-iterations', vus: users, iterations: 1, maxDuration: '5m' },
    },
    thresholds: {
        ...demands,
        'first_byte_ms{scenario:stampede}': [`p(95)<${firstByteMs * 10}`],
        'answer_ms{scenario:stampede}': ['max>0'],
        // One that runs, and one for those who came while it ran; connections that are accepted late meet a third.
        ...(admin ? { dumps: ['count>=1', 'count<=3'] } : {}),
    },
};

export function setup() {
    return { before: dumpsStarted() };
}

export default function () {
    const asking = __VU % 4 === 1 ? user(1) : someUser();
    const headers = headersOf(asking);
    const answer = judge(http.get(`${url}/sync/bootstrap?noCache=true`, { headers, responseType, timeout: '300s' }));
    check(answer, { 'it was read from PostgreSQL': () => answer !== null && answer.metadata.method === 'postgres' });
}

export function teardown({ before }) {
    if (admin) {
        dumps.add(dumpsStarted() - before);
    }
}

/** How many dumps began to read since the service started. */
function dumpsStarted() {
    if (!admin) {
        return 0;
    }
    const found = /^headstart_dumps_started_total (\d+)$/m.exec(http.get(`${admin}/metrics`).body);
    return found ? Number(found[1]) : 0;
}
