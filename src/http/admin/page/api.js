// Calls of the operations API. Org ids go as parameters: they may be any text.

async function ask(method, call, parameters) {
    const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== undefined));
    let answer;
    try {
        answer = await fetch(`operations/${call}?${query}`, { method, cache: 'no-store', headers: { accept: 'application/json' } });
    } catch {
        throw new Error('The service does not answer.');
    }
    if (answer.status === 401) throw new Error('The token is not taken any more: load the page again.');
    const body = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(body.detail ? `${body.detail} (${body.code})` : `The service answered with ${answer.status}.`);
    return body;
}

export const orgs = (parameters) => ask('GET', 'orgs', parameters);
export const snapshot = (org) => ask('GET', 'snapshot', { org });
export const frames = (org, snapshot, offset, limit) => ask('GET', 'frames', { org, snapshot, offset, limit });
export const groups = (org, snapshot, offset, limit) => ask('GET', 'groups', { org, snapshot, offset, limit });
export const refresh = (org) => ask('POST', 'refresh', { org });
export const remove = (org) => ask('DELETE', 'snapshots', { org });
