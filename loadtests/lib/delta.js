// The changes after a sync id, and whether they are what a client can rely on.

import { check } from 'k6';
import http from 'k6/http';
import { judge } from './answer.js';
import { url } from './settings.js';
import { headersOf } from './workspace.js';

/** 410 is an answer too: take a bootstrap. */
const expected = http.expectedStatuses(200, 410);

/** Asks for what changed and judges it. Gives `{ response, answer }`; the answer is null when a bootstrap is wanted. */
export function delta(user, epoch, lastSyncId, tags) {
    const response = http.get(`${url}/sync/delta?lastSyncId=${lastSyncId}&epoch=${encodeURIComponent(epoch)}`, {
        headers: headersOf(user),
        responseType: 'text',
        responseCallback: expected,
        tags: { name: 'delta' },
    });
    if (response.status === 410) {
        check(response, { 'who is too far behind is told so': () => response.json('code') === 'RESYNC_REQUIRED' });
        return { response, answer: null };
    }
    const answer = judge(response, tags);
    if (answer !== null) {
        const actions = answer.lines.map((line) => JSON.parse(line));
        const objects = new Set(actions.map((action) => `${action.modelName} ${action.modelId} ${action.action === 'G'}`));
        const ids = actions.map((action) => action.id);
        check(answer, {
            'actions come oldest first': () => ids.every((id, place) => place === 0 || ids[place - 1] < id),
            'they lie after what the client has, up to the end': () =>
                ids.every((id) => id > lastSyncId && id <= answer.metadata.lastSyncId),
            'each object once': () => objects.size === actions.length,
            'the end is never before the beginning': () => answer.metadata.lastSyncId >= lastSyncId,
        });
    }
    return { response, answer };
}
