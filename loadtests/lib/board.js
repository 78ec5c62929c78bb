// What clients load late: batches by key, over teams and issues that a first answer named.

import { check } from 'k6';
import http from 'k6/http';
import { judge } from './answer.js';
import { url } from './settings.js';
import { headersOf, user } from './workspace.js';

/** How many issues a script knows at most; they are handed to every client. */
const MOST = 5000;

/** The issues that the user of all teams sees, as `{ team, issues }` of ids. For `setup`. */
export function issuesByTeam() {
    const tags = { name: 'bootstrap, issues' };
    const answer = judge(
        http.get(`${url}/sync/bootstrap?onlyModels=Issue`, { headers: headersOf(user(1)), responseType: 'text', tags }),
    );
    const teams = {};
    for (const line of answer.lines.filter((line) => line.startsWith('{"__class":"Issue"')).slice(0, MOST)) {
        const issue = JSON.parse(line);
        (teams[issue.teamId] = teams[issue.teamId] || []).push(issue.id);
    }
    return Object.entries(teams).map(([team, issues]) => ({ team, issues }));
}

/** One request of a batch. */
export const by = (modelName, indexedKey, keyValue) => ({ modelName, indexedKey, keyValue });

/** What a client asks for when it opens the board of a team: its states, its issues, and what was said of some. */
export function boardOf(issues, team) {
    const said = issues.slice(0, 25).map((issue) => by('Comment', 'issueId', issue));
    return [by('WorkflowState', 'teamId', team), by('Issue', 'teamId', team), ...said];
}

/** Asks for a batch and judges the answer: every row is one that was asked for, and comes once. */
export function batch(user, requests, name, tags) {
    const headers = { ...headersOf(user), 'Content-Type': 'application/json' };
    const body = JSON.stringify({ requests });
    const answer = judge(http.post(`${url}/sync/batch`, body, { headers, responseType: 'text', tags: { name } }), tags);
    const asked = new Set(requests.map((request) => `${request.modelName} ${request.indexedKey} ${request.keyValue}`));
    const keys = [...new Set(requests.map((request) => request.indexedKey))];
    const rows = answer === null ? [] : answer.lines.map((line) => JSON.parse(line));
    const seen = new Set(rows.map((row) => `${row.__class} ${row.id}`));
    check(rows, {
        'only rows that were asked for': () =>
            rows.every((row) => keys.some((key) => asked.has(`${row.__class} ${key} ${row[key]}`))),
        'each row once': () => seen.size === rows.length,
    });
    return answer;
}
