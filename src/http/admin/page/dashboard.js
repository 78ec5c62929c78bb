// The page follows the service's events and shows the newest of each; what a button does goes through the operations API.

import * as api from './api.js';
import { Chart } from './chart.js';
import { age, dumps } from './dumps.js';
import { bytes, compact, count, percent, plural, ratio } from './format.js';
import { inspect } from './inspect.js';
import { dumping, onAction, orgs } from './orgs.js';

/** Without an event for so long the line is taken for dead. */
const SILENCE = 15_000;
const KEPT = 300;
const NEWEST = 5;

const by = (id) => document.getElementById(id);

// Charts

const sum = (points, of) => points.slice(-NEWEST).reduce((all, point) => all + of(point), 0);
const rate = (points, seconds, of) => (points.length ? sum(points, of) / (Math.min(NEWEST, points.length) * seconds) : 0);
const perSecond = (figure) => `${compact(figure)}/s`;
const bytesPerSecond = (figure) => `${bytes(figure)}/s`;
const requests = ({ served, refused, failed }) => served + refused + failed;
const faults = ({ refused, failed }) => refused + failed;
const charts = [
    new Chart({
        title: 'Requests', show: perSecond,
        series: [{ name: 'all', of: requests }, { name: 'refused or failed', of: faults }],
        value: (points, seconds) => perSecond(rate(points, seconds, requests)),
    }),
    new Chart({
        title: 'Bytes', show: bytesPerSecond, base: 1024,
        series: [{ name: 'sent to clients', of: ({ sent }) => sent }, { name: 'read by dumps', of: ({ scanned }) => scanned }],
        value: (points, seconds) => bytesPerSecond(rate(points, seconds, ({ sent }) => sent)),
    }),
    new Chart({
        title: 'Pack cache', show: perSecond,
        series: [{ name: 'hits', of: ({ hits }) => hits }, { name: 'loads', of: ({ loads }) => loads }],
        value: (points) => `${percent(sum(points, ({ hits }) => hits), sum(points, ({ hits, loads }) => hits + loads))} hits`,
    }),
    new Chart({
        title: 'Batch loader', show: perSecond,
        series: [{ name: 'keys asked for', of: ({ asked }) => asked }, { name: 'keys read', of: ({ read }) => read }],
        value: (points) => `${percent(Math.max(0, sum(points, ({ asked, read }) => asked - read)), sum(points, ({ asked }) => asked))} saved`,
    }),
];
by('charts').append(...charts.map(({ figure }) => figure));
let points = [];
let seconds = 2;

function draw() {
    if (document.visibilityState === 'visible') charts.forEach((chart) => chart.draw(points, seconds));
    const last = points.at(-1);
    if (!last) return;
    by('tile-slow').textContent = count(last.slow);
    by('tile-slow-note').textContent = last.followers ? `${plural(last.followers, 'client')} follow dumps` : 'no client follows a dump';
    by('tile-dumps-note').textContent = last.spool ? `${bytes(last.spool)} in spool files` : 'no spool files';
}
document.addEventListener('visibilitychange', draw);

// What holds now

function health(parts) {
    by('health').replaceChildren(...parts.map(({ name, status, reason }) => {
        const part = document.createElement('li');
        part.className = 'chip';
        part.dataset.state = { ok: 'fresh', degraded: 'stale', down: 'unusable' }[status];
        part.textContent = status === 'ok' ? name : `${name}: ${status}`;
        part.title = reason ?? '';
        return part;
    }));
    return parts.filter(({ reason }) => reason).map(({ name, reason }) => `${name}: ${reason}`);
}

function tell({ health: parts, page, fault }) {
    const faults = health(parts);
    if (fault) faults.push(`The organizations can't be looked at: ${fault}`);
    // A text that is set again is read out again.
    const text = faults.join('\n');
    if (by('fault').textContent !== text) by('fault').textContent = text;
    by('fault').classList.toggle('mild', !fault && parts.every(({ status }) => status !== 'down'));
    by('fault').hidden = faults.length === 0;
    if (!page) return;
    orgs(page);
    const { totals } = page;
    const attention = totals.missing + totals.unusable + totals.stale;
    by('tile-orgs').textContent = count(totals.orgs);
    by('tile-orgs-note').textContent = `${plural(totals.fresh, 'fresh snapshot')}`;
    by('tile-attention').textContent = count(attention);
    by('tile-attention').parentNode.dataset.state = totals.missing + totals.unusable ? 'unusable' : attention ? 'stale' : 'fresh';
    by('tile-attention-note').textContent = attention
        ? [[totals.missing, 'without'], [totals.unusable, 'not served'], [totals.stale, 'due']].filter(([number]) => number).map(([number, word]) => `${count(number)} ${word}`).join(', ')
        : 'all is fresh';
    by('tile-bytes').textContent = bytes(totals.bytes);
    by('tile-bytes-note').textContent = `${compact(totals.rows)} rows, ${bytes(totals.rawBytes)} as lines, ${ratio(totals.rawBytes, totals.bytes)}`;
    document.title = `${attention ? `(${count(attention)}) ` : ''}Headstart operations`;
}

// Events

const hear = {
    history: ({ everyMs, points: all }) => {
        seconds = everyMs / 1000;
        points = all;
        draw();
    },
    point: (point) => {
        points = [...points, point].slice(-KEPT);
        draw();
    },
    dumps: (list) => {
        dumps(list);
        dumping(list.inProgress);
        by('tile-dumps').textContent = count(list.inProgress.length);
    },
    orgs: tell,
};

function link(state, text) {
    if (by('link').dataset.state === state) return;
    by('link').dataset.state = state;
    by('link').textContent = text;
}

let source;
let silence;
let pause = 1000;

function heard() {
    clearTimeout(silence);
    silence = setTimeout(connect, SILENCE);
    pause = 1000;
    link('live', 'Live');
}

function connect() {
    source?.close();
    clearTimeout(silence);
    source = new EventSource('operations/events');
    for (const [name, act] of Object.entries(hear)) {
        source.addEventListener(name, (event) => {
            heard();
            act(JSON.parse(event.data));
        });
    }
    source.onerror = () => {
        const since = new Date().toLocaleTimeString();
        link('lost', `Not connected since ${since}; trying again`);
        source.close();
        clearTimeout(silence);
        silence = setTimeout(connect, pause);
        pause = Math.min(pause * 2, 15_000);
    };
}
connect();
setInterval(age, 5000);

// Actions

let quiet;
function say(text, isFault = false) {
    const toast = by('toast');
    toast.textContent = text;
    toast.classList.toggle('fault', isFault);
    toast.classList.add('shown');
    clearTimeout(quiet);
    quiet = setTimeout(() => toast.classList.remove('shown'), isFault ? 10_000 : 5000);
}
document.addEventListener('say', ({ detail }) => say(detail, true));

/** The last answer of the dialog. The event of its closing comes a moment after it has closed, and is not the next one's. */
let answered = Promise.resolve(false);

/** Asks for leave to delete; true when it was given. */
async function confirmed(org) {
    await answered;
    const dialog = by('confirm');
    by('confirm-title').querySelector('bdi').textContent = org;
    dialog.returnValue = 'cancel';
    dialog.showModal();
    answered = new Promise((resolve) => dialog.addEventListener('close', () => resolve(dialog.returnValue === 'delete'), { once: true }));
    return answered;
}

const acts = {
    inspect,
    refresh: async (org) => {
        await api.refresh(org);
        say(`A new snapshot of ${org} is being made.`);
    },
    delete: async (org) => {
        if (!(await confirmed(org))) return;
        const { snapshots } = await api.remove(org);
        say(`${plural(snapshots, 'snapshot')} of ${org} deleted.`);
    },
};

onAction(async (action, org, button) => {
    button.setAttribute('aria-busy', 'true');
    try {
        await acts[action](org);
    } catch (error) {
        say(error.message, true);
    } finally {
        button.removeAttribute('aria-busy');
    }
});
