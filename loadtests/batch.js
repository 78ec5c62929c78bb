// Clients that load late: all the same few issues (hot), any issues (cold), the board of a team (boards). One after the
// other, DURATION_S seconds each.

import { batch, boardOf, by, issuesByTeam } from './lib/board.js';
import { demands, limits } from './lib/answer.js';
import { firstByteMs, seconds, users } from './lib/settings.js';
import { user } from './lib/workspace.js';

const scenario = (exec, place) => ({
    executor: 'constant-vus',
    exec,
    vus: users,
    startTime: `${place * seconds}s`,
    duration: `${seconds}s`,
    gracefulStop: '30s',
});

export const options = {
    scenarios: { hot: scenario('hot', 0), cold: scenario('cold', 1), boards: scenario('boards', 2) },
    thresholds: {
        ...demands,
        ...limits('scenario:hot', firstByteMs),
        ...limits('scenario:cold', firstByteMs),
        ...limits('scenario:boards', firstByteMs),
    },
    setupTimeout: '120s',
};

export function setup() {
    return issuesByTeam();
}

export function hot(teams) {
    const issues = teams[0].issues.slice(0, 10);
    batch(user(1), issues.map((issue) => by('Comment', 'issueId', issue)), 'batch, hot');
}

export function cold(teams) {
    const any = (list) => list[Math.floor(Math.random() * list.length)];
    const issues = Array.from({ length: 20 }, () => any(any(teams).issues));
    batch(user(1), issues.map((issue) => by('Comment', 'issueId', issue)), 'batch, cold');
}

export function boards(teams) {
    const { team, issues } = teams[(__VU + __ITER) % teams.length];
    batch(user(1), boardOf(issues, team), 'batch, a board');
}
