// The table of organizations: the worst of them come with the events, any others are asked for.

import * as api from './api.js';
import { share } from './dumps.js';
import { ago, bytes, compact, count, duration, ratio } from './format.js';

const STATES = { missing: 'No snapshot', unusable: 'Not served', stale: 'Due', unchecked: 'Unchecked', fresh: 'Fresh' };
const PAGE = 50;
const ASK_EVERY = 4000;

const body = document.getElementById('rows');
const search = document.getElementById('search');
const order = document.getElementById('order');
const rows = new Map();
let offset = 0;
let page = null;
let told = 0;
let pendingAsk = 0;
let running = new Map();

const isDefault = () => search.value === '' && order.value === 'attention' && offset === 0;

/** Rows stay where they are while somebody is about to use them. */
const isHeld = () => body.matches(':hover') || body.contains(document.activeElement);

function fill(row, org) {
    const part = (name) => row.querySelector(name);
    const { snapshot, lastAnswer } = org;
    const since = (Date.now() - told) / 1000;
    row.org = org.org;
    part('bdi').textContent = org.org;
    const chip = part('.chip');
    const dump = running.get(org.org);
    const done = dump && share(dump);
    chip.dataset.state = dump ? 'running' : org.standing;
    chip.textContent = !dump ? STATES[org.standing] : dump.phase === 'waiting' ? 'Waits for a dump' : dump.phase === 'storing' ? 'Storing' : done ? `Dumping ${Math.floor(done * 100)} %` : 'Dumping';
    chip.title = org.reason ?? '';
    part('.age').textContent = snapshot ? duration(snapshot.ageS + since) : '–';
    part('.pending').textContent = snapshot?.pending === undefined ? '–' : snapshot.pending > page.pendingLimit ? `> ${count(page.pendingLimit)}` : count(snapshot.pending);
    part('.count').textContent = snapshot ? compact(snapshot.rows) : '–';
    part('.size').textContent = snapshot ? bytes(snapshot.bytes) : '–';
    part('.ratio').textContent = snapshot ? ratio(snapshot.rawBytes, snapshot.bytes) : '–';
    part('.last').textContent = lastAnswer ? `${lastAnswer.method}, ${lastAnswer.why} · ${ago(lastAnswer.agoS + since)}` : 'none yet';
    part('[data-action=inspect]').disabled = part('[data-action=delete]').disabled = !snapshot;
    for (const button of row.querySelectorAll('button')) button.setAttribute('aria-label', `${button.textContent}: ${org.org}`);
    return row;
}

function draw() {
    if (!page) return;
    const wanted = page.orgs.map((org) => {
        if (!rows.has(org.org)) rows.set(org.org, document.getElementById('row-template').content.firstElementChild.cloneNode(true));
        return fill(rows.get(org.org), org);
    });
    const here = [...body.children];
    const same = here.length === wanted.length && wanted.every((row) => row.parentNode === body);
    const moved = wanted.some((row, place) => here[place] !== row);
    if (!same || (moved && !isHeld())) {
        const focused = document.activeElement;
        body.replaceChildren(...wanted);
        if (body.contains(focused)) focused.focus();
    }
    const ids = new Set(page.orgs.map(({ org }) => org));
    [...rows.keys()].filter((org) => !ids.has(org)).forEach((org) => rows.delete(org));
    const none = document.getElementById('no-orgs');
    none.hidden = wanted.length > 0;
    none.textContent = page.totals.orgs ? 'No organization has an id like that.' : 'The database has no organization yet.';
    document.getElementById('pages').hidden = page.matched <= PAGE && offset === 0;
    document.getElementById('before').disabled = offset === 0;
    document.getElementById('after').disabled = offset + PAGE >= page.matched;
    document.getElementById('range').textContent = wanted.length ? `${count(offset + 1)} to ${count(offset + wanted.length)} of ${count(page.matched)}` : '';
}

function take(found) {
    page = found;
    told = Date.now();
    draw();
}

async function ask() {
    const mine = ++pendingAsk;
    try {
        const found = await api.orgs({ search: search.value, order: order.value, offset, limit: PAGE });
        if (mine === pendingAsk) take(found);
    } catch (error) {
        if (mine === pendingAsk) document.dispatchEvent(new CustomEvent('say', { detail: error.message }));
    }
}

/** What an event tells of the orgs. */
export function orgs(found) {
    if (isDefault()) {
        pendingAsk += 1;
        take(found);
    }
}

/** Which orgs are dumped now. */
export function dumping(inProgress) {
    running = new Map(inProgress.map((dump) => [dump.org, dump]));
    draw();
}

function choose(to) {
    offset = to;
    ask();
}

let typing;
search.addEventListener('input', () => {
    clearTimeout(typing);
    typing = setTimeout(() => choose(0), 200);
});
order.addEventListener('change', () => choose(0));
document.getElementById('tools').addEventListener('submit', (event) => {
    event.preventDefault();
    choose(0);
});
document.getElementById('before').addEventListener('click', () => choose(Math.max(0, offset - PAGE)));
document.getElementById('after').addEventListener('click', () => choose(offset + PAGE));
setInterval(() => {
    if (!isDefault() && document.visibilityState === 'visible') ask();
}, ASK_EVERY);

/** Calls `act` with the action, the org and the button when one is pressed. */
export function onAction(act) {
    body.addEventListener('click', (event) => {
        const button = event.target.closest('button[data-action]');
        if (button) act(button.dataset.action, button.closest('tr').org, button);
    });
}
