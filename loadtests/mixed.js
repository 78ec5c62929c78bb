// A working day in miniature: clients arrive and take everything, come back for what changed, open boards, while others
// write (`make load` runs writers.sql against the database meanwhile; k6 has no client for it).

import { sleep } from 'k6';
import http from 'k6/http';
import { Counter } from 'k6/metrics';
import { demands, judge, limits, responseType } from './lib/answer.js';
import { batch, boardOf, issuesByTeam } from './lib/board.js';
import { delta } from './lib/delta.js';
import { firstByteMs, seconds, url, users } from './lib/settings.js';
import { headersOf, someUser, user } from './lib/workspace.js';

const actions = new Counter('actions');

export const options = {
    scenarios: {
        // The morning: everyone arrives within the first tenth, then stays.
        day: {
            executor: 'ramping-vus',
            startVUs: 1,
            stages: [
                { duration: `${Math.ceil(seconds / 10)}s`, target: users },
                { duration: `${seconds}s`, target: users },
            ],
            gracefulStop: '60s',
            gracefulRampDown: '60s',
        },
    },
    thresholds: {
        ...demands,
        ...limits('part:arrival', firstByteMs),
        ...limits('part:reconnect', firstByteMs),
        ...limits('part:board', firstByteMs),
        actions: ['count>=0'],
    },
    setupTimeout: '120s',
};

export function setup() {
    return issuesByTeam();
}

/** What this client has: its user, the epoch and up to which sync id. One VU is one client; some start over. */
let client = null;

export default function (teams) {
    if (client === null || __ITER % 40 === 39) {
        client = arrive();
    } else if (__ITER % 8 === 5) {
        const { team, issues } = teams[(__VU + __ITER) % teams.length];
        batch(client.user, boardOf(issues, team), 'board', { part: 'board' });
    } else {
        reconnect();
    }
    sleep(0.1 + Math.random() * 0.4);
}

function arrive() {
    const asking = __VU % 5 === 1 ? user(1) : someUser();
    const headers = headersOf(asking);
    const tags = { name: 'bootstrap' };
    const answer = judge(http.get(`${url}/sync/bootstrap`, { headers, responseType, tags }), { part: 'arrival' });
    return answer && { user: asking, epoch: answer.metadata.epoch, last: answer.metadata.lastSyncId };
}

function reconnect() {
    const { answer } = delta(client.user, client.epoch, client.last, { part: 'reconnect' });
    if (answer === null) {
        client = null;
        return;
    }
    actions.add(answer.lines.length);
    client.last = answer.metadata.lastSyncId;
}
