// Hours of an ordinary load: clients come, take all or a part, wait a little and come again. The answers must stay as
// good as they were; that memory stays flat is told by whoever runs the service (`make load` watches it).

import { sleep } from 'k6';
import http from 'k6/http';
import { demands, judge, limits, responseType } from './lib/answer.js';
import { firstByteMs, seconds, text, url, users } from './lib/settings.js';
import { headersOf, someUser, user } from './lib/workspace.js';

export const options = {
    scenarios: {
        soak: { executor: 'constant-vus', vus: users, duration: `${seconds}s`, gracefulStop: '60s' },
    },
    thresholds: {
        ...demands,
        ...limits('scenario:soak', firstByteMs),
    },
};

/** Models of the catalog that a client asks for by themselves. */
const models = text('MODELS', 'Team,TeamMembership,Comment');

const queries = ['', '?noSyncPackets=true', '', `?type=partial&onlyModels=${models}`, '', '?noCache=true'];

/** How clients take it: most as it is stored, some in what older ones know. */
const encodings = ['zstd', 'zstd', 'zstd', 'gzip', 'identity'];

export default function () {
    const turn = __ITER + __VU;
    // A dump of one's own is one client's now and then.
    const query = queries[turn % (__VU === 1 ? queries.length : queries.length - 1)];
    const headers = headersOf(turn % 3 === 0 ? user(1) : someUser());
    headers['Accept-Encoding'] = encodings[turn % encodings.length];
    judge(http.get(`${url}/sync/bootstrap${query}`, { headers, responseType, tags: { name: 'bootstrap' } }));
    sleep(0.2 + Math.random() * 0.6);
}
