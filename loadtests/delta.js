// Clients that come back: with nothing new, after a minute (MINUTE actions behind), after a week (WEEK actions behind).
// One after the other, DURATION_S seconds each. After a week the right answer may also be that a bootstrap is cheaper.

import { check } from 'k6';
import http from 'k6/http';
import { Counter } from 'k6/metrics';
import { demands, judge, limits } from './lib/answer.js';
import { delta } from './lib/delta.js';
import { firstByteMs, seconds, url, users, whole } from './lib/settings.js';
import { headersOf, someUser, user } from './lib/workspace.js';

const minute = whole('MINUTE', 100);
const week = whole('WEEK', 20_000);
const resyncs = new Counter('resyncs');

const scenario = (exec, place) => ({
    executor: 'constant-vus',
    exec,
    vus: users,
    startTime: `${place * seconds}s`,
    duration: `${seconds}s`,
    gracefulStop: '30s',
});

export const options = {
    scenarios: {
        nothing_new: scenario('nothingNew', 0),
        a_minute: scenario('aMinute', 1),
        a_week: scenario('aWeek', 2),
    },
    thresholds: {
        ...demands,
        ...limits('scenario:nothing_new', firstByteMs),
        ...limits('scenario:a_minute', firstByteMs),
        ...limits('scenario:a_week', firstByteMs * 4),
        resyncs: ['count>=0'],
    },
};

/** Where the service stands: the epoch and the sync id of an answer. */
export function setup() {
    const headers = headersOf(user(1));
    const answer = judge(http.get(`${url}/sync/bootstrap?onlyModels=Team`, { headers, tags: { name: 'bootstrap, teams' } }));
    resyncs.add(0);
    return { epoch: answer.metadata.epoch, last: answer.metadata.lastSyncId };
}

export function nothingNew({ epoch, last }) {
    delta(someUser(), epoch, last);
}

export function aMinute({ epoch, last }) {
    const { response } = delta(user(1), epoch, Math.max(0, last - minute));
    check(response, { 'a minute is never too far behind': () => response.status === 200 });
}

export function aWeek({ epoch, last }) {
    const { response } = delta(user(1), epoch, Math.max(0, last - week));
    resyncs.add(response.status === 410 ? 1 : 0);
}
