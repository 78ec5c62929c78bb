// The dumps in progress, each with a bar, and the last that ended.

import { ago, bytes, count, duration } from './format.js';

const PHASES = { waiting: 'Waits for its turn', starting: 'Begins', reading: 'Reads rows', storing: 'Is being stored', failed: 'Failed' };
const OUTCOMES = {
    published: 'Published', superseded: 'Another was published', store: 'Not stored yet', source: 'The database failed', spool: 'The spool failed',
    spool_full: 'The spool was full', schema_changed: 'The schema changed', orphaned: 'The other instance went', stopping: 'Stopped', broken: 'Broke off',
};

const list = document.getElementById('dumps');
const items = new Map();
let ended = [];
let told = 0;

/** What share of a dump is read; null while nobody can tell. */
export const share = ({ rows, expectedRows, phase }) => (phase === 'storing' ? 1 : expectedRows && phase === 'reading' ? Math.min(0.99, rows / expectedRows) : null);

function show(dump) {
    let item = items.get(dump.id);
    if (!item) {
        item = { element: document.getElementById('dump-template').content.firstElementChild.cloneNode(true) };
        items.set(dump.id, item);
    }
    const part = (name) => item.element.querySelector(name);
    part('.name').textContent = dump.org;
    part('.phase').textContent = PHASES[dump.phase] ?? dump.phase;
    const bar = part('progress');
    const done = share(dump);
    if (done === null) bar.removeAttribute('value');
    else bar.value = done;
    bar.setAttribute('aria-label', `Dump of ${dump.org}`);
    item.element.dataset.phase = dump.phase;
    const of = dump.expectedRows && dump.phase === 'reading' ? ` of about ${count(Math.max(dump.rows, dump.expectedRows))}` : '';
    part('.done').textContent = dump.phase === 'waiting' ? '' : of ? `${count(dump.rows)}${of} rows` : `${count(dump.rows)} rows, ${bytes(dump.bytes)}`;
    const rest = done && dump.phase === 'reading' && dump.runningS > 1 ? (dump.runningS * (1 - done)) / done : null;
    part('.left').textContent = dump.runningS === undefined ? '' : rest === null ? `for ${duration(dump.runningS)}` : `about ${duration(rest)} left`;
    return item.element;
}

export function dumps({ inProgress, ended: last }) {
    const elements = inProgress.map(show);
    const ids = new Set(inProgress.map(({ id }) => id));
    [...items.keys()].filter((id) => !ids.has(id)).forEach((id) => items.delete(id));
    if (elements.some((element, place) => list.children[place] !== element) || list.children.length !== elements.length) list.replaceChildren(...elements);
    document.getElementById('no-dumps').hidden = elements.length > 0;
    ended = last;
    told = Date.now();
    age();
}

/** What ended, as long ago as it is by now. */
export function age() {
    const box = document.getElementById('ended-box');
    box.hidden = ended.length === 0;
    document.getElementById('ended-count').textContent = ended.length;
    const since = (Date.now() - told) / 1000;
    const lines = ended.map((dump) => {
        const line = document.createElement('li');
        const outcome = document.createElement('span');
        outcome.className = 'chip';
        outcome.dataset.state = dump.outcome === 'published' ? 'fresh' : dump.outcome === 'superseded' || dump.outcome === 'stopping' ? 'unchecked' : 'unusable';
        outcome.textContent = OUTCOMES[dump.outcome] ?? dump.outcome;
        const org = document.createElement('bdi');
        org.textContent = dump.org;
        const took = dump.tookMs === undefined ? '' : ` in ${dump.tookMs < 10_000 ? `${(dump.tookMs / 1000).toFixed(1)} s` : duration(dump.tookMs / 1000)}`;
        const figures = document.createElement('span');
        figures.className = 'figures';
        figures.textContent = `${count(dump.rows)} rows, ${bytes(dump.bytes)}${took} · ${ago(dump.agoS + since)}`;
        line.append(outcome, org, figures);
        return line;
    });
    document.getElementById('ended').replaceChildren(...lines);
}
