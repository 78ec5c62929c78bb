// Everyone at once, and nothing is prepared: USERS clients ask in one moment, each for a dump that starts after its
// request. Those who come together share dumps, so that the database is read a few times however many ask.

import { check } from 'k6';
import http from 'k6/http';
import { Counter } from 'k6/metrics';
import { demands, judge, limits, responseType } from './lib/answer.js';
import { firstByteMs, url, users } from './lib/settings.js';
import { headersOf, someUser, user } from './lib/workspace.js';

const dumps = new Counter('dumps');

export const options = {
    scenarios: {
        // One VU that asks for all, so that one place sees all answers.
        stampede: { executor: 'per-vu-iterations', vus: 1, iterations: 1, maxDuration: '10m' },
    },
    thresholds: {
        ...demands,
        ...limits('scenario:stampede', firstByteMs * 10),
        // One that runs and one for those who came meanwhile; what reaches the service late meets a third.
        dumps: ['count>=1', 'count<=3'],
    },
};

export default async function () {
    const snapshots = new Set();
    const ask = async (number) => {
        const headers = headersOf(number % 4 === 0 ? user(1) : someUser(number));
        const response = await http.asyncRequest('GET', `${url}/sync/bootstrap?noCache=true`, null, {
            headers,
            responseType,
            timeout: '600s',
            tags: { name: 'bootstrap' },
        });
        const answer = judge(response);
        check(answer, { 'it was read from PostgreSQL': () => answer !== null && answer.metadata.method === 'postgres' });
        snapshots.add(response.headers['X-Snapshot-Id']);
    };
    await Promise.all(Array.from({ length: users }, (_, number) => ask(number)));
    dumps.add(snapshots.size);
}
