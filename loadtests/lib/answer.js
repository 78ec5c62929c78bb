// What an answer is worth. A status of 200 says nothing yet: an answer is complete when its last line is the metadata and
// its lines are the ones that the metadata counts.

import { check } from 'k6';
import { Counter, Rate, Trend } from 'k6/metrics';
import { countsLines } from './settings.js';

const firstByte = new Trend('first_byte_ms', true);
const wholeAnswer = new Trend('answer_ms', true);
const rawBytes = new Counter('raw_bytes');
const sentBytes = new Counter('sent_bytes');
const rows = new Counter('rows');
const answers = new Counter('answers');
const complete = new Rate('complete');

/** What every script demands. The metrics of a script's own scenarios come on top. */
export const demands = {
    complete: ['rate==1'],
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    // Named here so that the summary tells the methods apart; any count is in order.
    'answers{method:snapshot}': ['count>=0'],
    'answers{method:postgres}': ['count>=0'],
};

/** What one part of a script, named by a tag, is held against; by it the summary tells of the part by itself. */
export function limits(tag, milliseconds) {
    return {
        [`first_byte_ms{${tag}}`]: [`p(95)<${milliseconds}`],
        [`answer_ms{${tag}}`]: ['min>=0'],
        [`answers{${tag}}`]: ['count>=0'],
    };
}

/** What requests for NDJSON are sent with: bytes are enough where lines are not counted. */
export const responseType = countsLines ? 'text' : 'binary';

/**
 * Judges an NDJSON answer and counts it. Gives `{ metadata, lines }`, the lines still as text and without the metadata,
 * or null when it is not complete. `more` are tags that go on the metrics.
 */
export function judge(response, more = {}) {
    const lines = response.status === 200 && response.body ? split(response.body) : [];
    const metadata = read(lines.pop());
    const isComplete = metadata !== null && (!countsLines || countsFit(lines, metadata.returnedModelsCount));
    complete.add(isComplete);
    if (!check(response, { 'the answer is complete': () => isComplete })) {
        console.error(`${response.url}: ${response.status} ${response.error} ${problem(response)}`);
        return null;
    }
    const tags = { method: metadata.method, ...more };
    firstByte.add(response.timings.waiting, tags);
    wholeAnswer.add(response.timings.duration, tags);
    answers.add(1, tags);
    rows.add(sum(metadata.returnedModelsCount));
    rawBytes.add(response.body.length || response.body.byteLength);
    // Only answers of a known length tell it; k6's own data_received holds what all others brought.
    if (response.headers['Content-Length']) {
        sentBytes.add(Number(response.headers['Content-Length']));
    }
    return { metadata, lines };
}

/** The class of a line, without reading all of it. */
export function classOf(line) {
    return line.slice(12, line.indexOf('"', 12));
}

function countsFit(lines, counts) {
    const found = {};
    for (const line of lines) {
        const name = classOf(line);
        found[name] = (found[name] || 0) + 1;
    }
    const names = Object.keys(counts);
    return lines.length === sum(counts) && names.every((name) => (found[name] || 0) === counts[name]);
}

function sum(counts) {
    return Object.values(counts).reduce((total, count) => total + count, 0);
}

/** All lines of a text; the last line of bytes. Every line ends with a line break. */
function split(body) {
    if (typeof body === 'string') {
        const lines = body.split('\n');
        return lines.pop() === '' ? lines : [];
    }
    const bytes = new Uint8Array(body);
    const end = bytes.length - 1;
    let start = end;
    while (start > 0 && bytes[start - 1] !== 10) {
        start -= 1;
    }
    return bytes[end] === 10 ? [String.fromCharCode(...bytes.slice(start, end))] : [];
}

/** The metadata in a line, or null. */
function read(line) {
    if (!line || !line.startsWith('{"__class":"_metadata_"')) {
        return null;
    }
    try {
        return JSON.parse(line);
    } catch {
        return null;
    }
}

function problem(response) {
    return response.status === 200 || typeof response.body !== 'string' ? '' : response.body.slice(0, 300);
}
